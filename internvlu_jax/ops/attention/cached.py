"""Attention of new tokens over a cache of keys and values, as while text is written.

The cache is only read. Whoever wrote the new keys into it first would make XLA copy all of it, since a layer that is
read from an array just written is fused with the writing of it.

Axes as in the package; t slots of the cache.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from internvlu_jax.ops.attention.plain import MASKED, plain_attention


def cached_attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s m h"],
    v: Float[Array, "b s m h"],
    cached_k: Float[Array, "b t m h"],
    cached_v: Float[Array, "b t m h"],
    starts: Int[Array, "b"],
) -> Float[Array, "b s n h"]:
    """What new tokens see: of the cache the first `starts` slots of their row, and the new tokens up to themselves.

    Never by a flash kernel: what is seen differs from row to row, and few queries a row leave it nothing to save.
    """
    seen = jnp.arange(cached_k.shape[1]) < starts[:, None]
    if q.shape[1] == 1:
        return _one_query(q, k, v, cached_k, cached_v, seen)
    length = q.shape[1]
    among = jnp.broadcast_to(jnp.tri(length, dtype=bool), (len(q), length, length))
    mask = jnp.concatenate([jnp.broadcast_to(seen[:, None], (len(q), length, seen.shape[1])), among], axis=2)
    keys, values = (
        jnp.concatenate([old.astype(new.dtype), new], axis=1) for old, new in ((cached_k, k), (cached_v, v))
    )
    return plain_attention(q, keys, values, False, None, None, mask)


def _one_query(q: Array, k: Array, v: Array, cached_k: Array, cached_v: Array, seen: Array) -> Array:
    """By sums in place of batched matrix products, for which XLA would bring the heads of the cache together: a copy.

    A layer of a cache of all layers is read where it lies, too.
    """
    grouped = rearrange(q, "b 1 (m g) h -> b 1 m g h", m=k.shape[2]).astype(jnp.float32)
    old = sum_of_products(grouped, _ungrouped(cached_k), axis=-1)
    own = (grouped * _ungrouped(k)).sum(-1)
    logits = jnp.concatenate([jnp.where(seen[:, :, None, None], old, MASKED), own], axis=1) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=1).astype(v.dtype).astype(jnp.float32)[..., None]
    out = sum_of_products(weights[:, :-1], _ungrouped(cached_v), axis=1) + weights[:, -1] * _ungrouped(v)[:, 0]
    return rearrange(out, "b m g h -> b 1 (m g) h").astype(q.dtype)


def _ungrouped(keys: Float[Array, "b t m h"]) -> Float[Array, "b t m 1 h"]:
    return keys.astype(jnp.float32)[:, :, :, None]


@partial(jax.jit, static_argnames="axis")
def sum_of_products(a: Array, b: Array, *, axis: int) -> Array:
    """A product of arrays that broadcast, summed over one axis; `utils.flops` knows it by this name."""
    return (a * b).sum(axis)
