"""What decoding asks of a language model, and reading with it: a whole prompt, or more tokens after it.

Rows are padded on the right, so a token's slot in the cache is its position. What stands in slots beyond a row's
length is overwritten before any token can see it.

Axes: b rows, s tokens, t slots of the cache, d model width, e captured width, v vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from internvlu_jax.models.internvlu import InternVLU
from internvlu_jax.models.qwen3 import KVCache, Qwen3Output

Params = Any


@runtime_checkable
class TextModel(Protocol):
    """Pure functions of (params, arrays). Hashable, because it is a static argument of jitted functions: equal models
    share one compiled program.

    capture: the hidden states that `forward` gives, as in `Qwen3.__call__`; empty for none.
    """

    @property
    def capture(self) -> tuple[int, ...]: ...

    def embed(self, params: Params, ids: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        """Embeds tokens that were just written. Which table the special tokens come from is decided here."""
        ...

    def forward(
        self,
        params: Params,
        x: Float[Array, "b s d"],
        positions: Int[Array, "b s"],
        cache: KVCache | None,
        return_kv: bool,
    ) -> Qwen3Output:
        """As `Qwen3.__call__`."""
        ...

    def logits(self, params: Params, last: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        """Scores of the next token, float32."""
        ...


@dataclass(frozen=True)
class LanguageModel:
    """The language model of an `InternVLU` as a `TextModel`; `params` are those of the whole model.

    reasoning: whether `forward` also gives the hidden states that condition the head.
    """

    model: InternVLU
    reasoning: bool = False

    @property
    def capture(self) -> tuple[int, ...]:
        return self.model.cfg.generation_decoder.vlm_select_layer if self.reasoning else ()

    def embed(self, params: Params, ids: Int[Array, "b s"]) -> Float[Array, "b s d"]:
        return self.model.embed_written(params, ids)

    def forward(
        self,
        params: Params,
        x: Float[Array, "b s d"],
        positions: Int[Array, "b s"],
        cache: KVCache | None,
        return_kv: bool,
    ) -> Qwen3Output:
        return self.model.read(params, x, positions, cache=cache, return_kv=return_kv, capture=self.reasoning)

    def logits(self, params: Params, last: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
        return self.model.logits(params, last)


class Prompt(NamedTuple):
    """A prompt that was read.

    cache: with room for what will be written. lengths: real tokens of each row.
    logits: [b v] float32, scores of the token after each row's last. captured: [b s e], or None without capture;
    entries beyond a row's length mean nothing.
    """

    cache: KVCache
    lengths: Int[Array, "b"]
    logits: Float[Array, "b v"]
    captured: Float[Array, "b s e"] | None


@partial(jax.jit, static_argnames=("model", "capacity"))
def prefill(
    model: TextModel, params: Params, x: Float[Array, "b s d"], lengths: Int[Array, "b"], *, capacity: int
) -> Prompt:
    """Reads the embedded prompts `x`, each row's first `lengths` tokens.

    The output layer runs on one token a row. `capacity` is the number of slots in the cache: prompt and whatever is
    to follow it.

    Raises:
        ValueError: the prompt alone does not fit.
    """
    length = x.shape[1]
    if capacity < length:
        raise ValueError(f"capacity is {capacity}; expected room for at least the {length} tokens of the padded prompt")
    positions = jnp.broadcast_to(jnp.arange(length), x.shape[:2])
    out = model.forward(params, x, positions, None, True)
    assert out.kv is not None, "a language model that is asked for keys and values gives them"
    return Prompt(out.kv.grown(capacity), lengths, _after(model, params, out.last, lengths), out.captured)


@partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def read_further(
    model: TextModel,
    params: Params,
    cache: KVCache,
    x: Float[Array, "b s d"],
    starts: Int[Array, "b"],
    lengths: Int[Array, "b"],
) -> Prompt:
    """What `prefill` gives of whole rows, where the cache holds their first `starts` tokens: reads `x`, of each row the
    `lengths` tokens that follow. `cache` is given up.
    """
    read = read_on(model, params, cache, x, starts)
    return Prompt(read.cache, starts + lengths, _after(model, params, read.last, lengths), read.captured)


@partial(jax.jit, static_argnames=("model", "capacity"))
def grown(model: TextModel, params: Params, cache: KVCache, *, capacity: int) -> KVCache:
    """The cache with more slots at its end, `capacity` in all; model and parameters say where it lies."""
    return cache.grown(capacity)


def _after(
    model: TextModel, params: Params, states: Float[Array, "b s d"], lengths: Int[Array, "b"]
) -> Float[Array, "b v"]:
    """Scores of the token after the first `lengths` of each row."""
    last = jnp.take_along_axis(states, lengths[:, None, None] - 1, axis=1)
    return model.logits(params, last)[:, 0]


@partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def extend(
    model: TextModel, params: Params, cache: KVCache, x: Float[Array, "b s d"], starts: Int[Array, "b"]
) -> tuple[Float[Array, "b s e"] | None, KVCache]:
    """Reads embedded tokens `x` at positions `starts`, `starts + 1`, ... of each row.

    Rows may be padded on the right. Slots from `starts` on are written anew, so a row can also be read again from a
    place inside it. `cache` is given up; it needs `starts + s` slots.

    Returns: captured states of `x`, and the cache.
    """
    read = read_on(model, params, cache, x, starts)
    return read.captured, read.cache


class Read(NamedTuple):
    """Tokens read with a cache: their states after the final norm, captured states if any, and the new cache."""

    last: Float[Array, "b s d"]
    captured: Float[Array, "b s e"] | None
    cache: KVCache


def read_on(
    model: TextModel, params: Params, cache: KVCache, x: Float[Array, "b s d"], starts: Int[Array, "b"]
) -> Read:
    """`extend` inside another jitted function."""
    out = model.forward(params, x, starts[:, None] + jnp.arange(x.shape[1]), cache, False)
    assert out.kv is not None, "a language model that is given a cache returns it"
    return Read(out.last, out.captured, out.kv)
