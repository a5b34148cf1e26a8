"""Text after a prompt, and what a picture is drawn from that is to follow prompt and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from internvlu_jax.decode.generate import Generated, generate
from internvlu_jax.decode.model import LanguageModel, Prompt, extend, prefill
from internvlu_jax.decode.sampling import row_keys
from internvlu_jax.inference import programs
from internvlu_jax.inference.drawing import Branch
from internvlu_jax.inference.options import Options
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.processing.layout import layout
from internvlu_jax.processing.positions import Grid
from internvlu_jax.processing.rows import PromptBatch, Row, bucket, pack, pad_right
from internvlu_jax.processing.tokenizer import Tokenizer


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
    model: InternVLU,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    visual: jax.Array | None,
    options: Options,
) -> list[np.ndarray]:
    """Writes after each prompt; token ids without the prompt, with the stop token if one was written."""
    return _write(LanguageModel(model), params, tokenizer, rows, visual, options).tokens


def reason(
    model: InternVLU,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    visual: jax.Array | None,
    options: Options,
    sources: Sequence[Sequence[Grid]],
    grid: Grid,
) -> list[Reasoned]:
    """Writes after each prompt, and encodes prompt and text for the head.

    sources, grid: rows and columns of the latents of each row's source pictures, and of those to be drawn.
    """
    text = _write(LanguageModel(model, reasoning=True), params, tokenizer, rows, visual, options)
    branches = _branches(model, params, tokenizer, rows, text, sources, grid)
    return [Reasoned(tokens, branch) for tokens, branch in zip(text.tokens, branches, strict=True)]


def _write(
    language_model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    visual: jax.Array | None,
    options: Options,
) -> _Text:
    batch = pack(rows, tokenizer)
    shown = visual if batch.visual_index is not None else None
    x = programs.embed(language_model.model, params, batch.ids, shown, batch.visual_index)
    buffer = bucket(options.max_new_tokens)
    prompt = prefill(language_model, params, x, batch.lengths, capacity=batch.ids.shape[1] + buffer)
    generated = generate(
        language_model,
        params,
        prompt,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad,
        max_new_tokens=options.max_new_tokens,
        buffer=buffer,
        keys=row_keys(options.seed, len(rows)) if options.do_sample else None,
        temperature=options.temperature,
        top_p=options.top_p,
        num_beams=options.num_beams,
    )
    lengths = np.asarray(generated.lengths)
    tokens = [row[:length] for row, length in zip(np.asarray(generated.tokens), lengths, strict=True)]
    return _Text(batch, prompt, generated, tokens)


def kept_text(tokens: np.ndarray) -> np.ndarray:
    """The part of the written ids that the picture is drawn from.

    Parity: the released code drops the last two ids, whether or not the last is a stop token: one word before a stop,
    two at the length limit. Where it would crash, on a text that stops at once, nothing is kept.
    """
    return tokens[: max(len(tokens) - 2, 0)]


def _branches(
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
    starts = text.batch.lengths + np.array(resume, np.int32)
    x = programs.embed(model, params, ending_ids)
    again, _ = extend(LanguageModel(model, reasoning=True), params, cache, x, starts)
    states = jnp.concatenate([before, during, again], axis=1)

    text_at, ending_at = text.batch.ids.shape[1], text.batch.ids.shape[1] + during.shape[1]
    spans, layouts = [], []
    for row, r, k, ending, own in zip(rows, resume, kept, endings, sources, strict=True):
        stretches = [(0, len(row.ids)), (text_at, text_at + r), (ending_at, ending_at + len(ending))]
        places = np.concatenate([np.arange(start, stop, dtype=np.int32) for start, stop in stretches])
        ids = np.concatenate([row.ids, k, [tokenizer.img_start]])
        layouts.append(layout(model.cfg, tokenizer, ids, own, grid, written=len(k) + 1))
        spans.append(places[layouts[-1].span])
    index, _ = pad_right(spans, bucket(max(map(len, spans))), 0)
    context = np.asarray(programs.context(model, states, index))
    return [Branch(c[: len(span)], own) for c, span, own in zip(context, spans, layouts, strict=True)]
