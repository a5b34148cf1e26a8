"""Attention of new tokens over a cache of keys and values, as while text is written.

Keys lie in the cache as [b, m, h, t] and values as [b, m, t, h], with t slots: so the two products of one query read
both from end to end, at the speed of memory. The cache is only read here. Whoever wrote the new keys into it first
would make XLA copy all of it, since a layer that is read from an array just written is fused with the writing of it.

Axes as in the package.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from internvlu_jax.ops.attention.blocks import CHUNKED_SCORES, even_block
from internvlu_jax.ops.attention.plain import MASKED, plain_attention


def cached_attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b s m h"],
    v: Float[Array, "b s m h"],
    cached_k: Float[Array, "b m h t"],
    cached_v: Float[Array, "b m t h"],
    starts: Int[Array, "b"],
) -> Float[Array, "b s n h"]:
    """What new tokens see: of the cache the first `starts` slots of their row, and the new tokens up to themselves.

    Never by a flash kernel: what is seen differs from row to row, and few queries a row leave it nothing to save.
    """
    seen = jnp.arange(cached_v.shape[2]) < starts[:, None]
    cached_k, cached_v = cached_k.astype(k.dtype), cached_v.astype(v.dtype)
    if q.shape[1] == 1:
        return _one_query(q, k, v, cached_k, cached_v, seen)
    keys = jnp.concatenate([rearrange(cached_k, "b m h t -> b t m h"), k], axis=1)
    values = jnp.concatenate([rearrange(cached_v, "b m t h -> b t m h"), v], axis=1)
    return _in_blocks(q, keys, values, seen)


def _in_blocks(
    q: Float[Array, "b s n h"], keys: Float[Array, "b k m h"], values: Float[Array, "b k m h"], seen: Bool[Array, "b t"]
) -> Float[Array, "b s n h"]:
    """The new keys stand behind the t of the cache; as many queries at a time as have at most `CHUNKED_SCORES`, in
    multiples of 16 (`even_block`)."""
    batch, length, heads = q.shape[:3]
    most = max(CHUNKED_SCORES // (batch * heads * keys.shape[1]), 1)

    def block(at: Int[Array, "p"], q: Float[Array, "b p n h"]) -> Float[Array, "b p n h"]:
        among = jnp.broadcast_to(jnp.arange(length) <= at[:, None], (batch, len(at), length))
        old = jnp.broadcast_to(seen[:, None], (batch, len(at), seen.shape[1]))
        return plain_attention(q, keys, values, False, None, None, jnp.concatenate([old, among], axis=2))

    if length <= most:
        return block(jnp.arange(length), q)
    size = even_block(length, most)
    filled = jnp.pad(q, ((0, 0), (0, -length % size), (0, 0), (0, 0)))
    blocks = rearrange(filled, "b (i p) n h -> i b p n h", p=size)
    places = jnp.arange(filled.shape[1]).reshape(-1, size)
    out = jax.lax.map(lambda one: block(*one), (places, blocks))
    return rearrange(out, "i b p n h -> b (i p) n h")[:, :length]


def _one_query(q: Array, k: Array, v: Array, cached_k: Array, cached_v: Array, seen: Array) -> Array:
    """Its own key and value stand beside those of the cache, which would have to be copied to join them."""
    grouped = rearrange(q, "b 1 (m g) h -> b m g h", m=k.shape[2])
    k, v = (rearrange(new, "b 1 m h -> b m 1 h").astype(jnp.float32) for new in (k, v))
    old = jnp.einsum("bmgh,bmht->bmgt", grouped, cached_k, preferred_element_type=jnp.float32)
    own = (grouped.astype(jnp.float32) * k).sum(-1, keepdims=True)
    logits = jnp.concatenate([jnp.where(seen[:, None, None], old, MASKED), own], axis=-1) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits, axis=-1).astype(cached_v.dtype)
    out = jnp.einsum("bmgt,bmth->bmgh", weights[..., :-1], cached_v, preferred_element_type=jnp.float32)
    out = out + weights[..., -1:].astype(jnp.float32) * v
    return rearrange(out, "b m g h -> b 1 (m g) h").astype(q.dtype)
