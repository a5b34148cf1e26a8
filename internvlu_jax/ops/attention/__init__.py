"""Scaled dot-product attention with grouped key/value heads: one door, and behind it the ways to compute it.

    "xla"      all scores at once (`plain`): the reference, and the fastest where they are few
    "chunked"  blocks of queries and keys, without an array of all scores (`chunked`): anywhere
    "cudnn"    cuDNN's flash kernel: CUDA, half precision
    "splash"   Pallas' flash kernel (`splash`): TPU

`choice` says which one "auto" takes. Derivatives in forward mode (`jax.jvp`) go through "xla" alone.

Axes: b batch, s queries, t keys, n query heads, m key/value heads, h head width.
"""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from internvlu_jax.ops.attention.choice import resolve_implementation
from internvlu_jax.ops.attention.chunked import chunked_attention
from internvlu_jax.ops.attention.cudnn import cudnn_attention
from internvlu_jax.ops.attention.plain import plain_attention
from internvlu_jax.ops.attention.splash import splash_attention

__all__ = ["attention", "resolve_implementation"]


def attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b t m h"],
    v: Float[Array, "b t m h"],
    *,
    causal: bool = False,
    key_lengths: Int[Array, "b"] | None = None,
    segment_ids: Int[Array, "b t"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "b s n h"]:
    """softmax(q k^T / sqrt(h)) v, with the softmax in float32.

    Query head j reads key/value head `j // (n / m)`. What restricts the keys combines by "and": `causal` lets query i
    see keys 0..i, `key_lengths` lets row b see its first `key_lengths[b]` keys, `segment_ids`, of tokens that are
    queries and keys both, lets a token see those of its own number. A query that sees no key gets finite numbers that
    mean nothing.

    Raises ValueError if n is not a multiple of m, if `segment_ids` is given for queries that are not the keys' tokens,
    or if `implementation` cannot run (`resolve_implementation`).
    """
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads are not a multiple of {kv_heads} key/value heads")
    if segment_ids is not None and queries != keys:
        raise ValueError(f"segment_ids with {queries} queries and {keys} keys: expected one token for each of both")
    chosen = resolve_implementation(
        implementation, q.dtype, head_dim, has_segments=segment_ids is not None, keys=keys,
        scores=batch * heads * queries * keys,
    )  # fmt: skip
    match chosen:
        case "cudnn":
            return cudnn_attention(q, k, v, causal, key_lengths)
        case "splash":
            return splash_attention(q, k, v, causal, key_lengths, segment_ids)
        case "chunked":
            return chunked_attention(q, k, v, causal, key_lengths, segment_ids)
    return plain_attention(q, k, v, causal, key_lengths, segment_ids)
