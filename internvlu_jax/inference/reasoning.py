"""Text after a prompt, and what a picture is drawn from that is to follow prompt and text."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from internvlu_jax.decode.blocks import Written, write_in_blocks
from internvlu_jax.decode.generate import Generated, check_written, generate
from internvlu_jax.decode.model import LanguageModel, Prompt, extend, prefill
from internvlu_jax.decode.stop_strings import stop_table
from internvlu_jax.inference import programs
from internvlu_jax.inference.drawing import Branch
from internvlu_jax.inference.options import Options
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.models.qwen3 import KVCache
from internvlu_jax.parallel.placement import Placement
from internvlu_jax.processing.layout import layout
from internvlu_jax.processing.positions import Grid
from internvlu_jax.processing.rows import PromptBatch, Row, bucket, pack, pad_right
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.utils.seeds import numbered_keys


@dataclass(frozen=True)
class Reasoned:
    """What was written after one prompt, as token ids, and the branch of guidance that prompt and text make."""

    tokens: np.ndarray
    branch: Branch


class _Text(NamedTuple):
    """A batch of prompts, what reading them gave, what writing gave, and each row's tokens of that."""

    batch: PromptBatch
    prompt: Prompt
    generated: Generated
    tokens: list[np.ndarray]


def write(
    on: Placement,
    model: InternVLU,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    visual: np.ndarray | jax.Array | None,
    options: Options,
) -> list[np.ndarray]:
    """Writes after each prompt; token ids without the prompt, with the stop token if one was written."""
    return _write(on, LanguageModel(model), params, tokenizer, rows, visual, options).tokens


def reason(
    on: Placement,
    model: InternVLU,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    visual: np.ndarray | jax.Array | None,
    options: Options,
    sources: Sequence[Sequence[Grid]],
    grid: Grid,
) -> list[Reasoned]:
    """Writes after each prompt, and encodes prompt and text for the head.

    sources, grid: rows and columns of the latents of each row's source pictures, and of those to be drawn.
    """
    text = _write(on, LanguageModel(model, reasoning=True), params, tokenizer, rows, visual, options)
    branches = _branches(on, model, params, tokenizer, rows, text, sources, grid)
    return [Reasoned(tokens, branch) for tokens, branch in zip(text.tokens, branches, strict=True)]


def stream(
    on: Placement,
    model: InternVLU,
    params: Params,
    tokenizer: Tokenizer,
    row: Row,
    visual: np.ndarray | jax.Array | None,
    options: Options,
) -> Generator[np.ndarray, None, np.ndarray]:
    """`write` for one prompt. Yields the token ids of each block, gives all of them."""
    text = yield from _stream(on, LanguageModel(model), params, tokenizer, row, visual, options)
    return text.tokens[0]


def stream_reasoning(
    on: Placement,
    model: InternVLU,
    params: Params,
    tokenizer: Tokenizer,
    row: Row,
    visual: np.ndarray | jax.Array | None,
    options: Options,
    sources: Sequence[Grid],
    grid: Grid,
) -> Generator[np.ndarray, None, Reasoned]:
    """`reason` for one prompt. Yields the token ids of each block."""
    text = yield from _stream(on, LanguageModel(model, reasoning=True), params, tokenizer, row, visual, options)
    (branch,) = _branches(on, model, params, tokenizer, [row], text, [sources], grid)
    return Reasoned(text.tokens[0], branch)


def settings(on: Placement, tokenizer: Tokenizer, options: Options, rows: int) -> dict[str, Any]:
    """What `decode` is told of how to write, but for beams."""
    return {
        "stop_ids": tokenizer.stop_ids,
        "pad_id": tokenizer.pad,
        "max_new_tokens": options.max_new_tokens,
        "buffer": bucket(options.max_new_tokens),
        "keys": on.put(numbered_keys(options.text_seed(), rows)) if options.do_sample else None,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "repetition_penalty": options.repetition_penalty,
        "stop_table": stop_table(tokenizer, tuple(options.stop_strings)) if options.stop_strings else None,
        "run": on.run,
    }


def embedded(
    on: Placement,
    model: InternVLU,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    visual: np.ndarray | jax.Array | None,
) -> tuple[PromptBatch, jax.Array, jax.Array]:
    """Rows as one batch; on the devices its embeddings [b, s, d], pictures in their places, and its lengths [b]."""
    batch = pack(rows, tokenizer)
    shown = visual if batch.visual_index is not None else None
    ids, places, lengths = on.put((batch.ids, batch.visual_index, batch.lengths))
    return batch, on.run(programs.embed, model, params, ids, shown, places), lengths


def _read(
    on: Placement,
    language_model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    visual: np.ndarray | jax.Array | None,
    room: int,
) -> tuple[PromptBatch, Prompt]:
    """Reads prompts; the cache has room for so many tokens after them."""
    batch, x, lengths = embedded(on, language_model.model, params, tokenizer, rows, visual)
    return batch, on.run(prefill, language_model, params, x, lengths, capacity=batch.ids.shape[1] + room)


def _write(
    on: Placement,
    language_model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    visual: np.ndarray | jax.Array | None,
    options: Options,
) -> _Text:
    how = settings(on, tokenizer, options, len(rows))
    batch, prompt = _read(on, language_model, params, tokenizer, rows, visual, how["buffer"])
    generated = generate(language_model, params, prompt, num_beams=options.num_beams, **how)
    written, counts = map(np.asarray, on.get((generated.tokens, generated.lengths), len(rows)))
    check_written(written)
    tokens = [row[:count] for row, count in zip(written, counts, strict=True)]
    return _Text(batch, prompt, generated, tokens)


def _stream(
    on: Placement,
    language_model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    row: Row,
    visual: np.ndarray | jax.Array | None,
    options: Options,
) -> Generator[np.ndarray, None, _Text]:
    how = settings(on, tokenizer, options, 1)
    batch, prompt = _read(on, language_model, params, tokenizer, [row], visual, how["buffer"])
    blocks = write_in_blocks(language_model, params, prompt, get=partial(on.get, rows=1), **how)
    generated, tokens = yield from one_row(blocks)
    return _Text(batch, prompt, generated, [tokens])


def one_row(
    blocks: Generator[Written, None, Generated],
) -> Generator[np.ndarray, None, tuple[Generated, np.ndarray]]:
    """The first row of blocks: yields what each adds to its token ids, gives the result and all of them.

    Raises the ValueError of `check_written`.
    """
    tokens = np.zeros(0, np.int32)
    while True:
        try:
            so_far = next(blocks)
        except StopIteration as end:
            return end.value, tokens
        before, tokens = len(tokens), so_far.tokens[0, : so_far.lengths[0]]
        check_written(tokens[before:])
        yield tokens[before:]


def kept_text(tokens: np.ndarray) -> np.ndarray:
    """The part of the written ids that the picture is drawn from.

    Parity: the released code drops the last two ids, whether or not the last is a stop token: one word before a stop,
    two at the length limit. Where it would crash, on a text that stops at once, nothing is kept.
    """
    return tokens[: max(len(tokens) - 2, 0)]


def _branches(
    on: Placement,
    model: InternVLU,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    text: _Text,
    sources: Sequence[Sequence[Grid]],
    grid: Grid,
) -> list[Branch]:
    """Contexts of prompt, kept text and `<img>`, from the states that writing left behind.

    Only what follows is read again: the final `<img>`, and the text from its first special token on, because special
    tokens were written with the language model's own embeddings but condition the head with those of their table.
    """
    kept = [kept_text(tokens) for tokens in text.tokens]
    special = np.array(tokenizer.special_table_ids)
    resume = [int(np.argmax(np.append(np.isin(k, special), True))) for k in kept]
    endings = [np.append(k[r:], tokenizer.img_start).astype(np.int32) for k, r in zip(kept, resume, strict=True)]
    longest = max(map(len, endings))
    ending_ids, _ = pad_right(endings, 1 if longest == 1 else bucket(longest), tokenizer.pad)
    before, during, cache = text.prompt.captured, text.generated.captured, text.generated.cache
    assert before is not None and during is not None  # the language model captures
    text_at = text.batch.ids.shape[1]
    ending_at = text_at + text.generated.tokens.shape[-1]
    spans, layouts = [], []
    for row, r, k, ending, own in zip(rows, resume, kept, endings, sources, strict=True):
        stretches = [(0, len(row.ids)), (text_at, text_at + r), (ending_at, ending_at + len(ending))]
        places = np.concatenate([np.arange(start, stop, dtype=np.int32) for start, stop in stretches])
        ids = np.concatenate([row.ids, k, [tokenizer.img_start]])
        layouts.append(layout(model.cfg, tokenizer, ids, own, grid, written=len(k) + 1))
        spans.append(places[layouts[-1].span])
    index, _ = pad_right(spans, bucket(max(map(len, spans))), 0)
    starts = text.batch.lengths + np.array(resume, np.int32)
    made, _ = on.run(
        _contexts, LanguageModel(model, reasoning=True), params, cache, before, during,
        *on.put((ending_ids, starts, index)),
    )  # fmt: skip
    context = np.asarray(on.get(made, len(rows)))
    return [Branch(c[: len(span)], own) for c, span, own in zip(context, spans, layouts, strict=True)]


@partial(jax.jit, static_argnames=("model",), donate_argnames=("cache",))
def _contexts(
    model: LanguageModel,
    params: Params,
    cache: KVCache,
    before: Float[Array, "b s e"],
    during: Float[Array, "b T e"],
    ids: Int[Array, "b r"],
    starts: Int[Array, "b"],
    index: Int[Array, "b t"],
) -> tuple[Float[Array, "b t e"], KVCache]:
    """Reads `ids` again from `starts` on: of the states of prompt, text and these those of `index`, and the cache."""
    again, cache = extend(model, params, cache, model.model.embed(params, ids), starts)
    assert again is not None  # the language model captures
    return model.model.context(jnp.concatenate([before, during, again], axis=1), index), cache
