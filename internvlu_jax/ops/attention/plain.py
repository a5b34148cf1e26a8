"""Attention that holds all scores, [b, n, s, t] in float32. Axes as in the package."""

from __future__ import annotations

from functools import reduce
from operator import and_

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool

# Finite, so that a row which sees no key gets the mean of the values and not 0/0.
MASKED = -1e30


def plain_attention(
    q: Array,
    k: Array,
    v: Array,
    causal: bool,
    key_lengths: Array | None,
    segment_ids: Array | None,
    mask: Bool[Array, "#b #s t"] | None = None,
) -> Array:
    """`attention`, by two products and a softmax. A key is seen where `mask` is True besides."""
    seen = _combine(q.shape[1], k.shape[1], causal, key_lengths, segment_ids, mask)
    grouped = rearrange(q, "b s (m g) h -> b s m g h", m=k.shape[2])
    logits = jnp.einsum("bsmgh,btmh->bmgst", grouped, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if seen is not None:
        logits = jnp.where(seen[:, None, None], logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    out = jnp.einsum("bmgst,btmh->bsmgh", weights, v)
    return rearrange(out, "b s m g h -> b s (m g) h").astype(q.dtype)


def _combine(
    queries: int,
    keys: int,
    causal: bool,
    key_lengths: Array | None,
    segment_ids: Array | None,
    mask: Array | None,
) -> Bool[Array, "#b #s t"] | None:
    """All restrictions as one mask, kept as small as it broadcasts; None if every key is seen."""
    parts = [] if mask is None else [mask]
    if segment_ids is not None:
        parts.append(segment_ids[:, :, None] == segment_ids[:, None, :])
    if key_lengths is not None:
        parts.append((jnp.arange(keys) < key_lengths[:, None])[:, None, :])
    if causal:
        parts.append((jnp.arange(keys) <= jnp.arange(queries)[:, None])[None])
    return reduce(and_, parts) if parts else None
