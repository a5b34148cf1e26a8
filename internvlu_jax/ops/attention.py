"""Scaled dot-product attention with grouped key/value heads, by XLA or by cuDNN's flash kernel.

Axes: b batch, s queries, t keys, n query heads, m key/value heads, h head width.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

# Finite, so that a row which sees no key gets the mean of the values and not 0/0.
_MASKED = -1e30


def attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b t m h"],
    v: Float[Array, "b t m h"],
    *,
    causal: bool = False,
    key_lengths: Int[Array, "b"] | None = None,
    mask: Bool[Array, "#b #s t"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "b s n h"]:
    """softmax(q k^T / sqrt(h)) v, with the softmax in float32.

    Query head j reads key/value head `j // (n / m)`. What restricts the keys combines by "and": `causal` lets query i
    see keys 0..i, `key_lengths` lets row b see its first `key_lengths[b]` keys, `mask` is True where a key is seen.
    A query that sees no key gets finite numbers that mean nothing.

    Raises ValueError if n is not a multiple of m, or if `implementation` is "cudnn" where cuDNN cannot run.
    """
    heads, kv_heads, head_dim = q.shape[2], k.shape[2], q.shape[3]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are not a multiple of {kv_heads} key/value heads")
    if resolve_implementation(implementation, q.dtype, head_dim, mask is not None) == "cudnn":
        return _cudnn_attention(q, k, v, causal, key_lengths)
    return _xla_attention(q, k, v, _combine(q.shape[1], k.shape[1], causal, key_lengths, mask))


def resolve_implementation(requested: str, dtype: Any, head_dim: int, has_mask: bool) -> str:
    """The implementation that runs, "xla" or "cudnn"; "auto" takes cuDNN where it can run.

    Raises ValueError if `requested` is unknown, or is "cudnn" and cuDNN cannot run: the message says why.
    """
    if requested not in ("auto", "xla", "cudnn"):
        raise ValueError(f"attention implementation {requested!r}; expected 'auto', 'xla' or 'cudnn'")
    if requested == "xla":
        return "xla"
    obstacle = _cudnn_obstacle(jnp.dtype(dtype), head_dim, has_mask)
    if obstacle is None:
        return "cudnn"
    if requested == "cudnn":
        raise ValueError(f"attention='cudnn' cannot run here: {obstacle}. Use attention='xla', or 'auto' to choose")
    return "xla"


def _cudnn_obstacle(dtype: jnp.dtype, head_dim: int, has_mask: bool) -> str | None:
    """Why cuDNN attention cannot run, or None if it can."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"it needs bfloat16 or float16, and the arrays are {dtype.name}"
    if head_dim % 8 or head_dim > 128:
        return f"it needs a head width that is a multiple of 8 and at most 128, and this one is {head_dim}"
    if has_mask:
        return "it takes lengths and causal order, and this call has an explicit mask"
    if _cuda_capability() < 8.0:
        return f"it needs a CUDA device of compute capability 8.0 or later, and JAX runs on {jax.devices()[0]}"
    return None


def _cuda_capability() -> float:
    """Compute capability of the default device; 0 where it is no CUDA device."""
    if jax.default_backend() != "gpu":
        return 0.0
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))  # ROCm says "gfx942" here
    return float(capability) if re.fullmatch(r"\d+\.\d+", capability) else 0.0


def _combine(
    queries: int, keys: int, causal: bool, key_lengths: Array | None, mask: Array | None
) -> Bool[Array, "#b #s t"] | None:
    """All restrictions as one mask, kept as small as it broadcasts; None if every key is seen."""
    parts = [] if mask is None else [mask]
    if key_lengths is not None:
        parts.append((jnp.arange(keys) < key_lengths[:, None])[:, None, :])
    if causal:
        parts.append((jnp.arange(keys) <= jnp.arange(queries)[:, None])[None])
    if not parts:
        return None
    combined = parts[0]
    for part in parts[1:]:
        combined = combined & part
    return combined


def _xla_attention(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    grouped = rearrange(q, "b s (m g) h -> b s m g h", m=k.shape[2])
    logits = jnp.einsum("bsmgh,btmh->bmgst", grouped, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bmgst,btmh->bsmgh", weights, v)
    return rearrange(out, "b s m g h -> b s (m g) h").astype(q.dtype)


def _cudnn_attention(q: Array, k: Array, v: Array, causal: bool, key_lengths: Array | None) -> Array:
    # An empty row would divide by a sum over nothing; one garbage key keeps it finite.
    lengths = None if key_lengths is None else jnp.maximum(key_lengths, 1).astype(jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )
