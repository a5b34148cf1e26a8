"""Attention by cuDNN's flash kernel. Axes as in the package."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cudnn_attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b t m h"],
    v: Float[Array, "b t m h"],
    causal: bool,
    key_lengths: Int[Array, "b"] | None,
) -> Float[Array, "b s n h"]:
    """`attention`, by the kernel, given even numbers of queries and keys: of others JAX refuses the gradients."""
    queries, keys = q.shape[1], k.shape[1]
    if key_lengths is None and keys % 2:
        key_lengths = jnp.full(q.shape[0], keys)
    # An empty row would divide by a sum over nothing; one garbage key keeps it finite.
    lengths = None if key_lengths is None else jnp.maximum(key_lengths, 1).astype(jnp.int32)
    q, k, v = (_even(x) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn")
    return out[:, :queries]


def _even(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) if x.shape[1] % 2 else x
