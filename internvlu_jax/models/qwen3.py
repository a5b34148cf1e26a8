"""Qwen3, the language model that reads prompts, conditions the head, and writes text.

Axes: b rows, s new tokens, t slots of the cache, d model width, n query heads, m key/value heads, h head width,
l layers, v vocabulary. Hidden states are counted as in the released code: 0 is the embeddings, i the residual stream
after block i, and the last one, -1, that stream after the final norm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from internvlu_jax.config import Compute, Qwen3Config
from internvlu_jax.models.layers import (
    OutputsFirst,
    RMSNorm,
    Unrolled,
    by_vocabulary,
    linear,
    merge_heads,
    outputs_first,
    rows_first,
    stacked,
    unstack,
    whole_group,
)
from internvlu_jax.ops.attention import attention
from internvlu_jax.ops.attention.cached import cached_attention
from internvlu_jax.ops.rope import Table, apply_half, rotary_table
from internvlu_jax.utils.tree import from_paths, merge, paths


class KVCache(NamedTuple):
    """Keys (after norm and rotary), [l, b, m, h, t], and values, [l, b, m, t, h], of every layer (why: `ops.attention.
    cached`); with `Compute.layers` "unrolled" tuples with those of each layer, because a layer that is cut out of a
    stack is copied before it is used."""

    k: Any
    v: Any

    @property
    def slots(self) -> int:
        """Tokens that it has room for."""
        return jax.tree.leaves(self.v)[0].shape[-2]

    def grown(self, slots: int) -> KVCache:
        """With empty slots behind those that there are, so many in all."""
        none, more = (0, 0), (0, slots - self.slots)

        def padded(leaf: Array, *last: tuple[int, int]) -> Array:
            return jnp.pad(leaf, (*[none] * (leaf.ndim - 2), *last))

        return KVCache(
            jax.tree.map(lambda k: padded(k, none, more), self.k), jax.tree.map(lambda v: padded(v, more, none), self.v)
        )


class Qwen3Output(NamedTuple):
    """last: after the final norm. captured: the asked hidden states side by side, in the order asked, or None."""

    last: Float[Array, "b s d"]
    captured: Float[Array, "b s e"] | None
    kv: KVCache | None


class LayerCarry(NamedTuple):
    """What runs through the layers: the residual stream, and captured hidden states [k b s d]."""

    x: Float[Array, "b s d"]
    captured: Float[Array, "k b s d"] | None


@jax.tree_util.register_static
@dataclass(frozen=True)
class Outputs:
    """What a call asks for besides the last state; known when it is traced."""

    capture: tuple[int, ...] = ()
    return_kv: bool = False


class Shared(NamedTuple):
    """What every layer gets: positions, their rotary table, the segments of packed rows, and what is asked for."""

    positions: Int[Array, "b s"]
    rope: Table
    segments: Int[Array, "b s"] | None
    outputs: Outputs


def _maps(x: Float[Array, "b s d"], features: dict[str, tuple[int, ...]], compute: Compute) -> list[Array]:
    """Linear maps of the module that calls it, by name, on one input. In a list of layers they are one (`as_list`)."""
    if compute.layers == "scan":
        return [linear(shape, compute, bias=False, name=name)(x) for name, shape in features.items()]
    widths = [prod(shape) for shape in features.values()]
    joined = OutputsFirst(sum(widths), compute, name="_".join(features))(x)
    parts = jnp.split(joined, list(itertools.accumulate(widths))[:-1], axis=-1)
    return [part.reshape(*x.shape[:-1], *shape) for part, shape in zip(parts, features.values(), strict=True)]


# By module, the maps that one map of a list is made of, and the number of axes that they sum over.
_LISTED = {"attn": ((("q", "k", "v"), 1), (("out",), 2)), "mlp": ((("gate", "up"), 1), (("down",), 1))}


def as_list(stack: dict[str, Any]) -> dict[str, Any]:
    """Stacked parameters of layers as a list of them takes them ("unrolled"): {"0": layer 0, ...}.

    Kernels lead with their outputs, and those of one input stand behind one another as q_k_v and gate_up. `stack` is
    emptied map by map, so that those of one input are held twice, and nothing else.
    """
    count = jax.tree.leaves(stack)[0].shape[0]
    found: dict[str, Any] = {str(layer): {} for layer in range(count)}
    for module, maps in _LISTED.items():
        for names, inputs in maps:
            taken = tuple(stack[module].pop(name) for name in names)
            for number, layer in found.items():
                layer.setdefault(module, {})["_".join(names)] = _listed(taken, jnp.int32(number), inputs)
    return merge(found, unstack(stack))


@partial(jax.jit, static_argnames="inputs")
def _listed(maps: tuple[dict[str, Array], ...], layer: Array, inputs: int) -> dict[str, Array]:
    """Of stacked maps those of a layer, as one. A program, so that nothing but the result is left in memory."""
    own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), maps)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(outputs_first(one, inputs) for one in own))


def as_stack(layers: dict[str, Any], cfg: Qwen3Config) -> dict[str, Any]:
    """What `as_list` was given, for whoever reads leaf by leaf: each leaf is a function that makes it on the host.

    The bytes are those of the stack; of a kernel the shape is [layers, inputs, outputs].
    """
    heads, kv_heads = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim
    widths = {"q": heads, "k": kv_heads, "v": kv_heads, "gate": cfg.intermediate_size, "up": cfg.intermediate_size}
    joined = {f"{module}/{'_'.join(names)}": names for module, maps in _LISTED.items() for names, _ in maps}
    each = [paths(layers[str(number)]) for number in range(len(layers))]
    found: dict[str, Any] = {}
    for path in each[0]:
        own, begin = [leaves[path] for leaves in each], 0
        owner, _, leaf = path.rpartition("/")
        if owner not in joined:
            found[path] = partial(_stacked, own, slice(None))
        for name in joined.get(owner, ()):
            part = slice(begin, begin + widths.get(name, cfg.hidden_size))
            found[f"{owner.split('/')[0]}/{name}/{leaf}"] = partial(_stacked, own, part)
            begin = part.stop
    return from_paths(found)


def _stacked(layers: list[Any], outputs: slice) -> np.ndarray:
    return np.stack([np.asarray(leaf)[outputs].T for leaf in layers])


class SelfAttention(nn.Module):
    """Causal attention with grouped heads; queries and keys are normalised per head before rotary."""

    cfg: Qwen3Config
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b s d"], shared: Shared, cache: KVCache | None
    ) -> tuple[Float[Array, "b s d"], KVCache]:
        """Output, and the fresh keys and values as a cache of so many slots. `cache` is that of the layer."""
        cfg, compute = self.cfg, self.compute
        n, m, h = cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim
        q, k, v = _maps(x, {"q": (n, h), "k": (m, h), "v": (m, h)}, compute)
        q = apply_half(RMSNorm(cfg.rms_norm_eps, name="q_norm")(q), shared.rope)
        k = apply_half(RMSNorm(cfg.rms_norm_eps, name="k_norm")(k), shared.rope)
        if cache is None:
            out = attention(q, k, v, causal=True, segment_ids=shared.segments, implementation=compute.attention)
        else:
            out = cached_attention(q, k, v, cache.k, cache.v, shared.positions[:, 0])
        if compute.layers == "scan":
            merged = merge_heads(cfg.hidden_size, compute, bias=False, name="out")(out)
        else:
            merged = OutputsFirst(cfg.hidden_size, compute, name="out")(rearrange(out, "b s n h -> b s (n h)"))
        return merged, KVCache(rearrange(k, "b s m h -> b m h s"), rearrange(v, "b s m h -> b m s h"))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    cfg: Qwen3Config
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        cfg, compute = self.cfg, self.compute
        gate, up = _maps(x, {"gate": (cfg.intermediate_size,), "up": (cfg.intermediate_size,)}, compute)
        (down,) = _maps(nn.silu(gate) * up, {"down": (cfg.hidden_size,)}, compute)
        return down


class Block(nn.Module):
    """One layer: notes the stream that enters it if asked, then attention and MLP, each on a norm and added back."""

    cfg: Qwen3Config
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, stream: LayerCarry, layer: Int[Array, ""], cache: KVCache | None, shared: Shared
    ) -> tuple[LayerCarry, KVCache | None]:
        x, captured = stream
        if captured is not None:
            entered = jnp.asarray(shared.outputs.capture)[:, None, None, None] == layer
            captured = jnp.where(entered, x, captured)
        norm = RMSNorm(self.cfg.rms_norm_eps, name="input_norm")
        out, kv = SelfAttention(self.cfg, self.compute, name="attn")(norm(x), shared, cache)
        x = x + out
        norm = RMSNorm(self.cfg.rms_norm_eps, name="post_norm")
        x = rows_first(x + MLP(self.cfg, self.compute, name="mlp")(norm(x)))
        return LayerCarry(x, captured), kv if shared.outputs.return_kv else None


class Qwen3(nn.Module):
    """The language model on embeddings, so that visual tokens can stand among those of the text."""

    cfg: Qwen3Config
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg = self.cfg
        self.embedder = nn.Embed(cfg.vocab_size, cfg.hidden_size, name="embed")
        count, axes = cfg.num_hidden_layers, (0, 0, nn.broadcast)
        if self.compute.layers == "unrolled":
            self.layers: Any = Unrolled(partial(Block, cfg, self.compute), count, axes)
        else:
            self.layers = stacked(Block, count, self.compute, axes)(cfg, self.compute)
        self.norm = RMSNorm(cfg.rms_norm_eps)
        if not cfg.tie_word_embeddings:
            dtype = jnp.dtype(self.compute.dtype)
            product = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
            self.lm_head = nn.Dense(cfg.vocab_size, use_bias=False, dtype=dtype, dot_general=product)

    def embed(self, ids: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """Rows of the token table, in the compute dtype."""
        return self.embedder(ids).astype(self.compute.dtype)

    def logits(self, last: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        """Scores of the next token, float32, from `Qwen3Output.last`.

        On a mesh every device scores its share of the vocabulary for the rows of its whole group: the states of a few
        rows are far smaller than the output layer.
        """
        last = whole_group(last.astype(self.compute.dtype))
        if self.cfg.tie_word_embeddings:
            table = self.embedder.embedding.astype(last.dtype)
            scores = jnp.einsum("bsd,vd->bsv", last, table, preferred_element_type=jnp.float32)
        else:
            scores = self.lm_head(last)
        return by_vocabulary(scores)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        positions: Int[Array, "b s"],
        *,
        segments: Int[Array, "b s"] | None = None,
        cache: KVCache | None = None,
        return_kv: bool = False,
        capture: tuple[int, ...] = (),
    ) -> Qwen3Output:
        """Runs the layers over embeddings x at `positions`.

        Without a cache the tokens attend to one another in causal order, and only within equal `segments`: for rows
        padded on the left, or several sequences packed into one row. `return_kv` then gives the keys and values
        as `kv`, a cache without room for more.

        With a cache the positions of a row are consecutive. The new keys and values go to the slots that they name, and
        every token sees the slots up to its own; the updated cache comes back as `kv`. So rows are padded on the right:
        what padding leaves beyond the length of a row is overwritten before anything sees it. Positions beyond the
        cache write nothing.

        `capture` lists hidden states to return, counted as the module says, negative numbers from the end.

        Raises ValueError if both segments and cache are given, or if `capture` names a state that does not exist.
        """
        if segments is not None and cache is not None:
            raise ValueError("segments and cache together: with a cache, positions alone say what is seen")
        cfg = self.cfg
        x = rows_first(x.astype(self.compute.dtype))
        states = _states(capture, cfg.num_hidden_layers)
        inner = tuple(state for state in states if state < cfg.num_hidden_layers)
        captured = jnp.zeros((len(inner), *x.shape), x.dtype) if inner else None
        rope = rotary_table(positions, cfg.head_dim, cfg.rope_theta)
        shared = Shared(positions, rope, segments, Outputs(inner, return_kv or cache is not None))
        stream, fresh = self.layers(LayerCarry(x, captured), jnp.arange(cfg.num_hidden_layers), cache, shared)
        last = self.norm(stream.x)
        kv = fresh if cache is None else _written(cache, fresh, _after(positions, last))
        return Qwen3Output(last, _side_by_side(states, inner, stream.captured, last), kv)


def _written(cache: KVCache, fresh: KVCache, positions: Int[Array, "b s"]) -> KVCache:
    """The cache with the new keys and values of all layers at the slots of their positions, in place."""
    rows = jnp.arange(positions.shape[0])[:, None]

    def keys(old: Array, new: Array) -> Array:
        return old.at[rows, :, :, positions].set(rearrange(new, "b m h s -> b s m h").astype(old.dtype))

    def values(old: Array, new: Array) -> Array:
        return old.at[rows, :, positions].set(rearrange(new, "b m s h -> b s m h").astype(old.dtype))

    def of_layers(write: Callable[[Array, Array], Array], old: Any, new: Any) -> Any:
        return jax.tree.map(lambda o, n: (jax.vmap(write) if o.ndim == 5 else write)(o, n), old, new)

    return KVCache(of_layers(keys, cache.k, fresh.k), of_layers(values, cache.v, fresh.v))


def _after(positions: Int[Array, "b s"], last: Float[Array, "b s d"]) -> Int[Array, "b s"]:
    """The positions, made to depend on the last state, and so on all that was read of the cache.

    XLA orders what reads an array and what writes into it by their data alone (a barrier is gone before it looks), and
    copies the array where that leaves the order open. The two shifts leave nothing of the number's bits.
    """
    bits = jax.lax.bitcast_convert_type(last[:, :1, 0].astype(jnp.float32), jnp.uint32)
    return positions + ((bits >> 31) >> 1).astype(positions.dtype)


def _states(capture: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """The asked hidden states, counted from 0."""
    bad = [state for state in capture if not -layers - 1 <= state <= layers]
    if bad:
        raise ValueError(
            f"hidden states {bad} do not exist; with {layers} layers they go from {-layers - 1} to {layers}"
        )
    return tuple(state % (layers + 1) for state in capture)


def _side_by_side(
    states: tuple[int, ...], inner: tuple[int, ...], captured: Array | None, last: Float[Array, "b s d"]
) -> Float[Array, "b s e"] | None:
    """Joins captured states and the last one in the order asked."""
    if not states:
        return None
    parts = [last if captured is None or state not in inner else captured[inner.index(state)] for state in states]
    return jnp.concatenate(parts, axis=-1)
