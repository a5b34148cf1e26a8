"""Text after a prompt, and the context of a picture that is drawn from prompt and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from internvlu_jax.decode.generate import Generated, generate
from internvlu_jax.decode.model import Prompt, extend, prefill
from internvlu_jax.decode.sampling import row_keys
from internvlu_jax.inference.drawing import Context
from internvlu_jax.inference.options import Options
from internvlu_jax.inference.programs import Inference
from internvlu_jax.inference.prompts import PromptBatch, Row, context_runs, context_start, pack
from internvlu_jax.processing.batch import bucket, pad_right
from internvlu_jax.processing.tokenizer import Tokenizer


@dataclass(frozen=True)
class Written:
    """What was written after one prompt: token ids, and in reasoning mode the context of the picture to draw."""

    tokens: np.ndarray
    context: Context | None = None


def write(
    inference: Inference,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    visual: jax.Array | None,
    options: Options,
) -> list[Written]:
    """Writes after each prompt; in mode "text_image" also encodes prompt and text for the head."""
    reasoning = options.mode == "text_image"
    model = inference.language_model(capture=reasoning)
    batch = pack(rows, tokenizer)
    x = inference.embed_prompt(
        params["vlm"],
        batch.ids,
        np.array(tokenizer.special_table_ids),
        visual if batch.visual_index is not None else None,
        batch.visual_index,
    )
    buffer = bucket(options.max_new_tokens)
    prompt = prefill(model, params["vlm"], x, batch.lengths, capacity=batch.ids.shape[1] + buffer)
    found = generate(
        model,
        params["vlm"],
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
    lengths = np.asarray(found.lengths)
    tokens = [row[:length] for row, length in zip(np.asarray(found.tokens), lengths, strict=True)]
    if not reasoning:
        return [Written(t) for t in tokens]
    contexts = _reasoned(inference, params, tokenizer, rows, batch, prompt, found, tokens)
    return [Written(t, c) for t, c in zip(tokens, contexts, strict=True)]


def kept_text(tokens: np.ndarray) -> np.ndarray:
    """The part of the written ids that the picture is drawn from.

    Parity: the released code drops the last two ids, whether or not the last is a stop token: one word before a stop,
    two at the length limit. Where it would crash, on a text that stops at once, nothing is kept.
    """
    return tokens[: max(len(tokens) - 2, 0)]


def _reasoned(
    inference: Inference,
    params: dict[str, Any],
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    batch: PromptBatch,
    prompt: Prompt,
    found: Generated,
    tokens: Sequence[np.ndarray],
) -> list[Context]:
    """Contexts of prompt, kept text and `<img>`, from the states that writing left behind.

    Only what follows is read again: the final `<img>`, and the text from its first special token on, because special
    tokens were written with the language model's own embeddings but condition the head with those of their table.
    """
    kept = [kept_text(t) for t in tokens]
    special = np.array(tokenizer.special_table_ids)
    resume = [int(np.argmax(np.append(np.isin(k, special), True))) for k in kept]
    endings = [np.append(k[r:], tokenizer.img_start).astype(np.int32) for k, r in zip(kept, resume, strict=True)]
    longest = max(map(len, endings))
    ending_ids, _ = pad_right(endings, 1 if longest == 1 else bucket(longest), tokenizer.pad)
    x = inference.embed_prompt(params["vlm"], ending_ids, special)
    model = inference.language_model(capture=True)
    before, during = prompt.captured, found.captured
    assert before is not None and during is not None and found.cache is not None  # the model captures
    again, _ = extend(model, params["vlm"], found.cache, x, batch.lengths + np.array(resume, np.int32))
    states = jnp.concatenate([before, during, again], axis=1)

    spans, runs = [], []
    limit = inference.cfg.generation_decoder.context_length
    text_at, ending_at = batch.ids.shape[1], batch.ids.shape[1] + during.shape[1]
    for row, r, ending in zip(rows, resume, endings, strict=True):
        start = context_start(row.ids, tokenizer)
        places = [(start, len(row.ids)), (text_at, text_at + r), (ending_at, ending_at + len(ending))]
        span = np.concatenate([np.arange(a, b) for a, b in places])
        span = span[: limit(len(span))]
        is_visual = np.append(row.ids[start:] == tokenizer.img_context, np.zeros(r + len(ending), bool))
        spans.append(span)
        runs.append(context_runs(is_visual[: len(span)], inference.cfg.vlm.tokens_per_tile))
    index, _ = pad_right(spans, bucket(max(map(len, spans))), 0)
    context = np.asarray(inference.context(params["head"], states, index))
    return [Context(c[: len(span)], r) for c, span, r in zip(context, spans, runs, strict=True)]
