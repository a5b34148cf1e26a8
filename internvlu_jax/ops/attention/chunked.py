"""Attention in blocks of queries and keys, with no array of all scores, forward or backward, in plain XLA.

The softmax runs along the keys block by block (online softmax, Milakov and Gimelshein, arXiv 1805.02867); the backward
pass computes the scores anew from the logarithm of their sum (FlashAttention, Dao et al., arXiv 2205.14135). Scores,
sums and gradients are float32. Blocks in which no query sees a key are passed over.

Axes: b batch, s queries, t keys, n query heads, m key/value heads, g query heads of one of these, h head width,
i blocks of queries, p queries of a block, j blocks of keys, r keys of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from internvlu_jax.ops.attention.blocks import CHUNK, even_block
from internvlu_jax.ops.attention.plain import MASKED


class How(NamedTuple):
    """precision: of products. It is told, for the passes of a derivative are traced when what called is over."""

    causal: bool
    precision: str | None


class Places(NamedTuple):
    """Of blocks of tokens: where each stands in its row, and its segment."""

    at: Int[Array, "i p"]
    segments: Int[Array, "i b p"] | None


class Tokens(NamedTuple):
    """What says who sees whom; lengths are None where every key of a block is real."""

    queries: Places
    keys: Places
    lengths: Int[Array, "b"] | None


class Queries(NamedTuple):
    """For the backward pass: queries, gradients of their outputs, log sum exp(score), and output times its gradient."""

    q: Float[Array, "*i b m g p h"]
    d_out: Float[Array, "*i b m g p h"]
    log_sum: Float[Array, "*i b m g p"]
    inner: Float[Array, "*i b m g p"]


class Sums(NamedTuple):
    """Of the keys so far: the highest score, the sum of exp(score - highest), and that of the values so weighted."""

    highest: Float[Array, "b m g p"]
    total: Float[Array, "b m g p"]
    values: Float[Array, "b m g p h"]


def chunked_attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b t m h"],
    v: Float[Array, "b t m h"],
    causal: bool,
    key_lengths: Int[Array, "b"] | None,
    segment_ids: Int[Array, "b t"] | None,
    chunk: tuple[int, int] = CHUNK,
) -> Float[Array, "b s n h"]:
    """`attention`, with at most `chunk` (queries, keys) scores of a head at a time."""
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    p, r = even_block(queries, chunk[0]), even_block(keys, chunk[1])
    if key_lengths is None and keys % r:
        key_lengths = jnp.full(batch, keys)
    tokens = Tokens(_places(queries, segment_ids, p), _places(keys, segment_ids, r), key_lengths)
    grouped = rearrange(_cut(q, p), "i b p (m g) h -> i b m g p h", m=k.shape[2])
    k_blocks, v_blocks = (rearrange(_cut(x, r), "j b r m h -> j b m r h") for x in (k, v))
    how = How(causal, jax.config.jax_default_matmul_precision)  # type: ignore[attr-defined]
    out = _attend(how, grouped, k_blocks, v_blocks, tokens)
    return rearrange(out, "i b m g p h -> b (i p) (m g) h")[:, :queries]


def _places(tokens: int, segment_ids: Array | None, size: int) -> Places:
    at = jnp.arange(tokens + -tokens % size).reshape(-1, size)
    # What fills a block up joins its last segment, so that the block needs no others.
    return Places(at, None if segment_ids is None else _cut(segment_ids, size, mode="edge"))


def _cut(x: Array, size: int, mode: str = "constant") -> Array:
    """[b, s, ...] -> [blocks, b, size, ...], the last block filled up."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2), mode)
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: How, q: Array, k: Array, v: Array, tokens: Tokens) -> Float[Array, "i b m g p h"]:
    return _forward(how, q, k, v, tokens)[0]


def _in_its_precision(run: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(run)
    def told(how: How, *arrays: Any) -> Any:
        with jax.default_matmul_precision(how.precision):
            return run(how.causal, *arrays)

    return told


@_in_its_precision
def _forward(causal: bool, q: Array, k: Array, v: Array, tokens: Tokens) -> tuple[Array, Any]:
    """The output, and what the backward pass needs: all arguments, the output, and log sum exp(score) [i b m g p]."""
    q, tokens = _together(q, tokens)

    def queries_block(_: None, block: Any) -> tuple[None, tuple[Array, Array]]:
        q_block, queries, needed_row = block

        def keys_block(sums: Sums, block: Any) -> tuple[Sums, None]:
            k_block, v_block, keys, needed = block
            seen = _seen(causal, queries, keys, tokens.lengths)
            return jax.lax.cond(needed, lambda: _add(sums, q_block, k_block, v_block, seen), lambda: sums), None

        shape = q_block.shape[:-1]
        start = Sums(jnp.full(shape, MASKED), jnp.zeros(shape), jnp.zeros(q_block.shape, jnp.float32))
        sums, _ = jax.lax.scan(keys_block, start, (k, v, tokens.keys, needed_row))
        total = jnp.maximum(sums.total, 1e-30)  # 0 where no block was needed
        # Of a query that sees no key: 0, so that the weights of its masked scores are 0 in the backward pass.
        log_sum = jnp.where(sums.highest > MASKED, sums.highest + jnp.log(total), 0.0)
        return None, ((sums.values / total[..., None]).astype(q.dtype), log_sum)

    _, (out, log_sum) = jax.lax.scan(queries_block, None, (q, tokens.queries, _needed(causal, tokens)))
    return out, (q, k, v, tokens, out, log_sum)


def _add(sums: Sums, q: Array, k: Array, v: Array, seen: Array | None) -> Sums:
    """The sums with the keys of one more block."""
    scores = _scores(q, k, seen)
    highest = jnp.maximum(sums.highest, scores.max(axis=-1))
    shrink = jnp.exp(sums.highest - highest)
    weights = jnp.exp(scores - highest[..., None])
    values = _product("bmgpr,bmrh->bmgph", weights.astype(v.dtype), v)
    return Sums(highest, sums.total * shrink + weights.sum(axis=-1), sums.values * shrink[..., None] + values)


@_in_its_precision
def _backward(causal: bool, saved: Any, d_out: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, tokens, out, log_sum = saved
    q, tokens = _together(q, tokens)
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def queries_block(gradients: tuple[Array, Array], block: Any) -> tuple[tuple[Array, Array], Array]:
        rows, queries, needed_row = block

        def keys_block(carry: tuple[Array, Array, Array], block: Any) -> tuple[tuple[Array, Array, Array], None]:
            dq, dk, dv = carry
            number, k_block, v_block, keys, needed = block
            seen = _seen(causal, queries, keys, tokens.lengths)

            def nothing() -> tuple[Array, Array, Array]:
                return jnp.zeros_like(dq), jnp.zeros(k_block.shape, dk.dtype), jnp.zeros(v_block.shape, dv.dtype)

            more = jax.lax.cond(needed, lambda: _gradients(rows, k_block, v_block, seen), nothing)
            return (dq + more[0], _add_to_block(dk, number, more[1]), _add_to_block(dv, number, more[2])), None

        start = jnp.zeros(rows.q.shape, jnp.float32), *gradients
        blocks = jnp.arange(k.shape[0]), k, v, tokens.keys, needed_row
        (dq, dk, dv), _ = jax.lax.scan(keys_block, start, blocks)
        return (dk, dv), dq.astype(q.dtype)

    start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    blocks = Queries(q, d_out, log_sum, inner), tokens.queries, _needed(causal, tokens)
    (dk, dv), dq = jax.lax.scan(queries_block, start, blocks)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _together(q: Array, tokens: Tokens) -> tuple[Array, Tokens]:
    """The same, for JAX to take both for equally unknown.

    Where it splits a scan over layers into what is the same in all of them and what is not, as flax does, it would
    otherwise move the masks of all blocks out, as large as all scores.
    """
    together: tuple[Array, Tokens] = jax.lax.optimization_barrier((q, tokens))
    return together


def _gradients(rows: Queries, k: Array, v: Array, seen: Array | None) -> tuple[Array, Array, Array]:
    """What one block of scores adds to the gradients of its queries, keys and values."""
    q, d_out, log_sum, inner = rows
    weights = jnp.exp(_scores(q, k, seen) - log_sum[..., None])
    d_weights = _product("bmgph,bmrh->bmgpr", d_out, v)
    d_scores = (weights * (d_weights - inner[..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)
    return (
        _product("bmgpr,bmrh->bmgph", d_scores, k),
        _product("bmgpr,bmgph->bmrh", d_scores, q),
        _product("bmgpr,bmgph->bmrh", weights.astype(d_out.dtype), d_out),
    )


def _scores(q: Array, k: Array, seen: Array | None) -> Float[Array, "b m g p r"]:
    scores = _product("bmgph,bmrh->bmgpr", q, k) * q.shape[-1] ** -0.5
    return scores if seen is None else jnp.where(seen[:, None, None], scores, MASKED)


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _add_to_block(blocks: Array, number: Array, more: Array) -> Array:
    block = jax.lax.dynamic_index_in_dim(blocks, number, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(blocks, block + more, number, 0)


def _seen(causal: bool, queries: Places, keys: Places, lengths: Array | None) -> Bool[Array, "#b p r"] | None:
    """Whether a query sees a key, of one block of each; None if all see all."""
    seen = None
    if lengths is not None:
        seen = (keys.at < lengths[:, None])[:, None, :]
    if causal:
        before = (keys.at <= queries.at[:, None])[None]
        seen = before if seen is None else seen & before
    if queries.segments is not None and keys.segments is not None:
        same = queries.segments[:, :, None] == keys.segments[:, None, :]
        seen = same if seen is None else seen & same
    return seen


def _needed(causal: bool, tokens: Tokens) -> Bool[Array, "i j"]:
    """Whether any query of a block may see any key of another."""
    queries, keys = tokens.queries, tokens.keys
    needed = jnp.ones((len(queries.at), len(keys.at)), bool)
    if tokens.lengths is not None:
        needed &= keys.at[:, 0] < tokens.lengths.max()
    if causal:
        needed &= keys.at[:, 0] <= queries.at.max(axis=1)[:, None]
    if queries.segments is not None and keys.segments is not None:
        low, high = (f(queries.segments, axis=-1)[:, None] for f in (jnp.min, jnp.max))
        needed &= ((low <= keys.segments.max(axis=-1)) & (high >= keys.segments.min(axis=-1))).any(axis=-1)
    return needed
