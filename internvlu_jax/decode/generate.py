"""Writing text after a prompt, in one jitted loop that ends when every row has.

The embedding of a token just written is `TextModel.embed`'s business (see the trap about special tokens there).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from internvlu_jax.decode.beam import search
from internvlu_jax.decode.model import Params, Prompt, Read, TextModel, read_on
from internvlu_jax.decode.sampling import NO_NUMBER, SMALLEST, choose, penalised
from internvlu_jax.models.qwen3 import KVCache

Run = Callable[..., Any]
"""Calls a program: (program, model, *arrays, **static)."""


def plainly(program: Callable[..., Any], model: Any, *arrays: Any, **static: Any) -> Any:
    """A `Run` for arrays on one device."""
    return program(model, *arrays, **static)


class Generated(NamedTuple):
    """What was written. T is `buffer`.

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


def generate(
    model: TextModel,
    params: Params,
    prompt: Prompt,
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    buffer: int,
    keys: Key[Array, "b"] | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    repetition_penalty: float = 1.0,
    num_beams: int = 1,
    stop_table: np.ndarray | None = None,
    run: Run = plainly,
) -> Generated:
    """Writes at most `max_new_tokens` tokens to each row, ending it with the first of `stop_ids`.

    Greedy; with `keys` (see `utils.seeds.numbered_keys`) sampling with temperature, top-k and top-p
    (`sampling.choose`); with `num_beams` > 1 beam search. `repetition_penalty` goes with all of them
    (`sampling.penalised`); 1 is none.

    A new `buffer`, batch size, cache capacity or top-k compiles anew; a new `max_new_tokens`, temperature, top-p (below
    1), penalty (but 1), stop ids or prompt does not. `prompt.cache` is given up: it cannot be used again.

    Args:
        buffer: the largest `max_new_tokens` of the compiled program. The cache needs prompt length + buffer slots;
            it must have at least `buffer` and one.
        stop_table: int [states, tokens] of strings that end a text, too (`stop_strings.stop_table`); not with beams.
        run: calls the program where `params`, `prompt` and `keys` lie.

    Raises:
        ValueError: an option has no meaning, or options do not go together.
    """
    check(prompt, stop_ids, max_new_tokens, buffer, keys, temperature, top_p, top_k, repetition_penalty, num_beams)
    if num_beams > 1 and stop_table is not None:
        raise ValueError(f"num_beams is {num_beams} and a stop_table is given; beams end with stop_ids alone")
    rules = rules_of(prompt, stop_ids, pad_id, keys, temperature, top_p, repetition_penalty, stop_table)
    limit = np.int32(max_new_tokens)
    if num_beams > 1:
        given = (prompt.lengths, prompt.logits, rules.stops, rules.pad_id, limit, rules.penalty)
        return run(_search, model, params, prompt.cache, *given, buffer=buffer, num_beams=num_beams)
    top_k = None if keys is None else top_k
    return run(_write, model, params, prompt.cache, prompt.logits, rules, limit, buffer=buffer, top_k=top_k)


def check(
    prompt: Prompt,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    buffer: int,
    keys: Key[Array, "b"] | None,
    temperature: float,
    top_p: float,
    top_k: int | None,
    repetition_penalty: float,
    num_beams: int,
) -> None:
    """Raises the ValueErrors of `generate`."""
    capacity = prompt.cache.slots
    if not 1 <= max_new_tokens <= buffer:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; expected 1 to {buffer}, the size of the buffer")
    if capacity <= buffer:
        raise ValueError(f"the cache has {capacity} slots; expected room for a prompt and {buffer} new tokens")
    if not stop_ids:
        raise ValueError("stop_ids is empty; expected at least one token that ends a text")
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}; expected at least 1")
    if num_beams > 1 and keys is not None:
        raise ValueError(f"num_beams is {num_beams} and keys are given; beam search draws nothing. Use one of the two")
    if not temperature >= SMALLEST:
        raise ValueError(f"temperature is {temperature}; expected a number from {SMALLEST} on")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected a number over 0 and at most 1")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected at least 1, or None")
    if not repetition_penalty >= SMALLEST:
        raise ValueError(
            f"repetition_penalty is {repetition_penalty}; expected a number from {SMALLEST} on (1 is none)"
        )


def check_written(tokens: np.ndarray) -> None:
    """Raises ValueError if some of the tokens of a row were chosen among scores that are not finite."""
    if (tokens == NO_NUMBER).any():
        raise ValueError(
            "the scores of the next token are not finite: they overflowed, or the checkpoint's weights are damaged. "
            "Take dtype='float32', or another checkpoint"
        )


class Rules(NamedTuple):
    """What stays the same while a text is written, arrays of the host or the device; None is none of it.

    prompt_lengths: int32 [b]. stops: int32 [n], ids that end a text. pad_id: int32, written after the end. keys: [b],
    of random choices. temperature, top_p, penalty: float32, as in `sampling`. stop_table: see `stop_strings`.
    """

    prompt_lengths: Any
    stops: Any
    pad_id: Any
    keys: Any
    temperature: Any
    top_p: Any
    penalty: Any
    stop_table: Any


def rules_of(
    prompt: Prompt,
    stop_ids: Sequence[int],
    pad_id: int,
    keys: Key[Array, "b"] | None,
    temperature: float,
    top_p: float,
    repetition_penalty: float,
    stop_table: np.ndarray | None,
) -> Rules:
    """Arguments of `generate` that hold as `check` says; numbers are of the host."""
    return Rules(
        prompt_lengths=prompt.lengths,
        stops=np.asarray(stop_ids, np.int32),
        pad_id=np.int32(pad_id),
        keys=keys,
        temperature=np.float32(temperature),
        top_p=None if top_p == 1 else np.float32(top_p),
        penalty=None if repetition_penalty == 1 else np.float32(repetition_penalty),
        stop_table=stop_table,
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
    """The first token of each row; arguments as in `generate`."""
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
