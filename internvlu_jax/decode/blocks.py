"""Writing text block by block, for whoever shows it as it is written: the loop of `generate`, with a stop now and then.

A block is one call of one compiled program, whatever its length, and the next one is under way while what the last one
wrote is looked at. So the device does not wait, and the text is that of `generate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from internvlu_jax.decode.generate import Generated, Run, State, advanced, plainly, started
from internvlu_jax.decode.model import Params, Prompt, TextModel
from internvlu_jax.decode.settings import Rules, TextSettings
from internvlu_jax.models.qwen3 import KVCache

# Tokens of the blocks after the first token; the last number holds for all that follow. The first words come soon, and
# later a call's cost, below that of one token, is shared by many.
_BLOCKS = (3, 4, 8, 16)


class Written(NamedTuple):
    """What stands so far, on the host: tokens [b, T] and lengths [b] as in `Generated`."""

    tokens: np.ndarray
    lengths: np.ndarray


def write_in_blocks(
    model: TextModel,
    params: Params,
    prompt: Prompt,
    settings: TextSettings,
    run: Run = plainly,
    get: Callable[[Any], Any] = jax.device_get,
) -> Generator[Written, None, Generated]:
    """Yields what is written after each block. Arguments, result and errors are those of `generate` with one beam.

    Args:
        get: brings a tree of arrays that lead with rows to the host.
    """
    settings.check(prompt)
    limit, top_k = settings.max_new_tokens, settings.static["top_k"]
    given = prompt.cache, prompt.logits, settings.rules(prompt)
    state, rules = run(_begin, model, params, *given, **settings.static)
    blocks, until = itertools.chain(_BLOCKS, itertools.repeat(_BLOCKS[-1])), 1
    while until < limit:
        until = min(until + next(blocks), limit)
        before = state
        rest = state._replace(captured=None, cache=None)
        state = run(_go_on, model, params, state.cache, state.captured, rest, rules, np.int32(until), top_k=top_k)
        tokens, lengths, ended = map(np.asarray, get((before.tokens, before.lengths, before.ended)))
        yield Written(tokens, lengths)
        if ended.all():
            return state.generated()
    yield Written(*map(np.asarray, get((state.tokens, state.lengths))))
    return state.generated()


@partial(jax.jit, static_argnames=("model", "buffer", "top_k"), donate_argnames=("cache",))
def _begin(
    model: TextModel,
    params: Params,
    cache: KVCache,
    logits: Float[Array, "b v"],
    rules: Rules,
    *,
    buffer: int,
    top_k: int | None,
) -> tuple[State, Rules]:
    """The state after the first token, and the rules on the device: a table of strings is large."""
    return started(model, params, cache, logits, rules, buffer=buffer, top_k=top_k), rules


@partial(jax.jit, static_argnames=("model", "top_k"), donate_argnames=("cache", "captured"))
def _go_on(
    model: TextModel,
    params: Params,
    cache: KVCache,
    captured: Float[Array, "b T e"] | None,
    rest: State,
    rules: Rules,
    until: Int[Array, ""],
    *,
    top_k: int | None,
) -> State:
    state = rest._replace(captured=captured, cache=cache)
    return advanced(model, params, state, rules, until, top_k=top_k)
