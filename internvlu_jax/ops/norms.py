"""Normalisation over the last axis, with statistics in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(x: Float[Array, "*n d"], scale: Float[Array, "d"], eps: float = 1e-6) -> Float[Array, "*n d"]:
    """x / sqrt(mean(x^2) + eps) * scale.

    Computed in float32, cast to the dtype of `scale` and only then multiplied, as the released code does; the result
    has that dtype.
    """
    x = x.astype(jnp.float32)
    normalised = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return normalised.astype(scale.dtype) * scale


def layer_norm(
    x: Float[Array, "*n d"],
    scale: Float[Array, "d"] | None = None,
    bias: Float[Array, "d"] | None = None,
    eps: float = 1e-6,
) -> Float[Array, "*n d"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias, all in float32; the result has the dtype of x."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    out = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    if scale is not None:
        out = out * scale.astype(jnp.float32)
    if bias is not None:
        out = out + bias.astype(jnp.float32)
    return out.astype(x.dtype)
