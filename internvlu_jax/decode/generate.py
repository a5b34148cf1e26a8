"""Writing text after a prompt, in one jitted loop that ends when every row has.

The embedding of a token just written is `TextModel.embed`'s business (see the trap about special tokens there).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from internvlu_jax.decode.beam import search
from internvlu_jax.decode.model import Params, Prompt, Read, TextModel, read_on
from internvlu_jax.decode.sampling import NO_NUMBER, choose, penalised
from internvlu_jax.decode.settings import Rules, TextSettings
from internvlu_jax.models.qwen3 import KVCache

Run = Callable[..., Any]
"""Calls a program: (program, model, *arrays, **static)."""


def plainly(program: Callable[..., Any], model: Any, *arrays: Any, **static: Any) -> Any:
    """A `Run` for arrays on one device."""
    return program(model, *arrays, **static)


class Generated(NamedTuple):
    """What was written. T is `TextSettings.buffer`.

    tokens: int32 [b, T], without the prompt; `pad_id` from `lengths` on. `sampling.NO_NUMBER` ends a row that could
        not be written on, see `check_written`.
    lengths: int32 [b], tokens of each row, the stop token included if the row ended with one.
    captured: [b, T, e], the hidden states of a written token, computed when it was fed back; None without capture.
        Entry j of a row is valid for j < lengths - 1. The last token of a row is never fed: append it with `extend`
        if its states are wanted. Other entries mean nothing.
    cache: keys and values of prompt and text, valid in the first `prompt length + lengths - 1` slots of each row;
        after beam search without capture those of the prompt alone.
    steps: int32, how often the model ran.
    """

    tokens: Int[Array, "b T"]
    lengths: Int[Array, "b"]
    captured: Float[Array, "b T e"] | None
    cache: KVCache
    steps: Int[Array, ""]


def generate(model: TextModel, params: Params, prompt: Prompt, settings: TextSettings, run: Run = plainly) -> Generated:
    """Writes after each row of a prompt as `settings` say.

    A new batch size or cache capacity compiles anew; a new prompt does not. `prompt.cache` is given up: it cannot be
    used again.

    Args:
        run: calls the program where `params`, `prompt` and keys lie.

    Raises:
        ValueError: see `TextSettings.check`.
    """
    settings.check(prompt)
    rules, limit = settings.rules(prompt), np.int32(settings.max_new_tokens)
    if settings.num_beams > 1:
        given = (prompt.lengths, prompt.logits, rules.stops, rules.pad_id, limit, rules.penalty)
        wide = {"buffer": settings.buffer, "num_beams": settings.num_beams}
        return run(_search, model, params, prompt.cache, *given, **wide)
    return run(_write, model, params, prompt.cache, prompt.logits, rules, limit, **settings.static)


def check_written(tokens: np.ndarray) -> None:
    """Raises ValueError if some of the tokens of a row were chosen among scores that are not finite."""
    if (tokens == NO_NUMBER).any():
        raise ValueError(
            "the scores of the next token are not finite: they overflowed, or the checkpoint's weights are damaged. "
            "Take dtype='float32', or another checkpoint"
        )


class State(NamedTuple):
    """written: tokens chosen for rows still open, from 1. current: the last of each row, not yet fed. place: states in
    the table of strings that end a text. tokens, lengths, captured, cache: as in `Generated`."""

    written: Int[Array, ""]
    current: Int[Array, "b"]
    tokens: Int[Array, "b T"]
    lengths: Int[Array, "b"]
    ended: Bool[Array, "b"]
    place: Int[Array, "b"]
    captured: Float[Array, "b T e"] | None
    cache: KVCache

    def generated(self) -> Generated:
        return Generated(self.tokens, self.lengths, self.captured, self.cache, self.written - 1)


def started(
    model: TextModel,
    params: Params,
    cache: KVCache,
    logits: Float[Array, "b v"],
    rules: Rules,
    *,
    buffer: int,
    top_k: int | None,
) -> State:
    """The first token of each row. buffer, top_k: as in `TextSettings`."""
    rows = logits.shape[0]
    first = choose(logits, rules.keys, 0, rules.temperature, rules.top_p, top_k)
    place, stopped = _look(rules, jnp.zeros(rows, jnp.int32), first)
    one = jnp.int32(1)
    captured = jax.eval_shape(partial(_feed, model), params, cache, first, one, rules)[0].captured
    return State(
        written=one,
        current=first,
        tokens=jnp.full((rows, buffer), rules.pad_id, jnp.int32).at[:, 0].set(first),
        lengths=jnp.ones(rows, jnp.int32),
        ended=stopped,
        place=place,
        captured=_room(captured, buffer),
        cache=cache,
    )


def advanced(
    model: TextModel, params: Params, state: State, rules: Rules, until: Int[Array, ""], *, top_k: int | None
) -> State:
    """One token of each row a step, until so many are written or all rows have ended.

    The cache is part of the carry of the loop, which updates it in place.
    """

    def unfinished(state: State) -> Array:
        return (state.written < until) & ~state.ended.all()

    def step(state: State) -> State:
        read, logits = _feed(model, params, state.cache, state.current, state.written, rules)
        logits = penalised(logits, state.tokens, state.written, rules.penalty)
        chosen = choose(logits, rules.keys, state.written, rules.temperature, rules.top_p, top_k)
        chosen = jnp.where(state.ended, rules.pad_id, chosen)
        place, stopped = _look(rules, state.place, chosen)
        return State(
            written=state.written + 1,
            current=chosen,
            tokens=state.tokens.at[:, state.written].set(chosen),
            lengths=state.lengths + ~state.ended,
            ended=state.ended | stopped,
            place=place,
            captured=_put(state.captured, read.captured, state.written - 1),
            cache=read.cache,
        )

    return jax.lax.while_loop(unfinished, step, state)


def _feed(
    model: TextModel, params: Params, cache: KVCache, current: Array, count: Array, rules: Rules
) -> tuple[Read, Array]:
    x = model.embed(params, current[:, None])
    read = read_on(model, params, cache, x, rules.prompt_lengths + count - 1)
    return read, model.logits(params, read.last)[:, 0]


def _look(rules: Rules, place: Array, chosen: Array) -> tuple[Array, Array]:
    """Where the strings stand after a token, and whether it ends the row."""
    stopped = jnp.isin(chosen, rules.stops) | (chosen == NO_NUMBER)
    table = rules.stop_table
    if table is None:
        return place, stopped
    after = table.at[place, chosen].get(mode="fill", fill_value=-1).astype(jnp.int32)
    place = jnp.where(after < 0, place, after)  # a token without a column is none of the tokenizer's
    return place, stopped | (place == table.shape[0] - 1)


@partial(jax.jit, static_argnames=("model", "buffer", "top_k"), donate_argnames=("cache",))
def _write(
    model: TextModel,
    params: Params,
    cache: KVCache,
    logits: Float[Array, "b v"],
    rules: Rules,
    limit: Int[Array, ""],
    *,
    buffer: int,
    top_k: int | None = None,
) -> Generated:
    """The whole text in one program."""
    state = started(model, params, cache, logits, rules, buffer=buffer, top_k=top_k)
    return advanced(model, params, state, rules, limit, top_k=top_k).generated()


def _room(one: jax.ShapeDtypeStruct | None, buffer: int) -> Array | None:
    return None if one is None else jnp.zeros((one.shape[0], buffer, one.shape[2]), one.dtype)


def _put(captured: Array | None, one: Array | None, place: Array) -> Array | None:
    return None if captured is None or one is None else jax.lax.dynamic_update_slice(captured, one, (0, place, 0))


@partial(jax.jit, static_argnames=("model", "buffer", "num_beams"), donate_argnames=("cache",))
def _search(
    model: TextModel,
    params: Params,
    cache: KVCache,
    prompt_lengths: Int[Array, "b"],
    logits: Float[Array, "b v"],
    stops: Int[Array, "n"],
    pad_id: Int[Array, ""],
    limit: Int[Array, ""],
    penalty: Float[Array, ""] | None = None,
    *,
    buffer: int,
    num_beams: int,
) -> Generated:
    """Beam search; then the chosen texts are read once more, all tokens together, where their states are wanted.

    That costs one pass more, and spares the search from keeping cache and states of every finished beam.
    """
    beams = search(model, params, cache, prompt_lengths, logits, stops, pad_id, limit, buffer, num_beams, penalty)
    if not model.capture:
        return Generated(beams.tokens, beams.lengths, None, cache, beams.steps)
    read = read_on(model, params, cache, model.embed(params, beams.tokens), prompt_lengths)
    return Generated(beams.tokens, beams.lengths, read.captured, read.cache, beams.steps + 1)
