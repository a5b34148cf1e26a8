"""Attention by Pallas' TPU kernel, "splash attention" of `jax.experimental`, forward and backward.

The kernel knows segments and causal order. Lengths become segments: keys beyond a row's length, and what fills the last
block up, have a number that no query has. It scales no scores, so queries are scaled before it, in their own dtype.

The compiler cannot share a kernel out over a mesh, so there each device runs it on its own rows and heads.

Axes as in the package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from internvlu_jax.ops.attention.blocks import splash_block
from internvlu_jax.ops.axes import HEADS, ROWS

_NOBODY = -1


def splash_attention(
    q: Float[Array, "b s n h"],
    k: Float[Array, "b t m h"],
    v: Float[Array, "b t m h"],
    causal: bool,
    key_lengths: Int[Array, "b"] | None,
    segment_ids: Int[Array, "b t"] | None,
    interpret: bool = False,
) -> Float[Array, "b s n h"]:
    """`attention`, by the kernel; `interpret` runs it on any device, slowly. Segments are numbers from 0."""
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    of_queries = jnp.zeros((batch, queries), jnp.int32) if segment_ids is None else segment_ids
    of_keys = jnp.zeros((batch, keys), jnp.int32) if segment_ids is None else segment_ids
    if key_lengths is not None:
        of_keys = jnp.where(jnp.arange(keys) < key_lengths[:, None], of_keys, _NOBODY)
    run = partial(_on_one_device, causal, interpret)
    if not jax.sharding.get_abstract_mesh().empty:
        rows, heads = _mesh_axes(ROWS, batch), _mesh_axes(HEADS, k.shape[2])
        by_token, by_row = PartitionSpec(rows, None, heads), PartitionSpec(rows)
        specs = (by_token, by_token, by_token, by_row, by_row)
        run = jax.shard_map(run, in_specs=specs, out_specs=by_token, check_vma=False)
    return run(q, k, v, of_queries, of_keys)


def _mesh_axes(name: str, size: int) -> tuple[str, ...] | None:
    """The axes of the mesh that a logical one is bound to, if they cut `size` evenly."""
    bound = dict(nn.get_logical_axis_rules()).get(name)
    if bound is None:
        return None
    axes = (bound,) if isinstance(bound, str) else tuple(bound)
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1
    for axis in axes:
        devices *= mesh.shape[axis]
    return axes if size % devices == 0 else None


def _on_one_device(
    causal: bool, interpret: bool, q: Array, k: Array, v: Array, of_queries: Array, of_keys: Array
) -> Array:
    queries, head_dim = q.shape[1], q.shape[3]
    q_block, k_block = splash_block(queries), splash_block(k.shape[1])
    q, k, v = _fill(q * head_dim**-0.5, q_block), _fill(k, k_block), _fill(v, k_block)
    kernel = _kernel(q.shape[2], (q.shape[1], k.shape[1]), (q_block, k_block), causal, interpret)
    segments = pallas.SegmentIds(_fill(of_queries, q_block), _fill(of_keys, k_block, _NOBODY))
    out = jax.vmap(kernel)(*(jnp.moveaxis(x, 2, 1) for x in (q, k, v)), segments)
    return jnp.moveaxis(out, 1, 2)[:, :queries]


def _kernel(
    heads: int, tokens: tuple[int, int], blocks: tuple[int, int], causal: bool, interpret: bool
) -> Callable[..., Array]:
    """Of queries and keys in heads-first order, for one row."""
    of_one_head = pallas.CausalMask(tokens) if causal else pallas.FullMask(tokens)
    q_block, k_block = blocks
    sizes = pallas.BlockSizes(
        block_q=q_block, block_kv=k_block, block_q_dkv=q_block, block_kv_dkv=k_block, block_q_dq=q_block,
        block_kv_dq=k_block,
    )  # fmt: skip
    mask = pallas.MultiHeadMask([of_one_head] * heads)
    kernel: Callable[..., Array] = pallas.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
    return kernel


def _fill(x: Array, block: int, value: int = 0) -> Array:
    """[b, s, ...] with s filled up to whole blocks."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2), constant_values=value)
