"""Text after a prompt, and what a picture is drawn from that is to follow prompt and text."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from internvlu_jax.decode.blocks import write_in_blocks
from internvlu_jax.decode.generate import Generated, check_written, generate
from internvlu_jax.decode.model import LanguageModel, Prompt, extend, prefill
from internvlu_jax.decode.settings import TextSettings
from internvlu_jax.decode.stop_strings import stop_table
from internvlu_jax.inference import programs
from internvlu_jax.inference.drawing import Branch
from internvlu_jax.inference.encoding import WithEncoding
from internvlu_jax.inference.options import Options
from internvlu_jax.models.internvlu import Params
from internvlu_jax.models.qwen3 import KVCache
from internvlu_jax.processing.layout import layout
from internvlu_jax.processing.positions import Grid
from internvlu_jax.processing.rows import PromptBatch, Row, bucket, pack, pad_right
from internvlu_jax.utils.seeds import numbered_keys


class Text(NamedTuple):
    """A batch of prompts, what reading them gave, what writing gave, and each row's tokens of that: without the prompt,
    with the stop token if one was written."""

    batch: PromptBatch
    prompt: Prompt
    generated: Generated
    tokens: list[np.ndarray]


class WithWriting(WithEncoding):
    """The part of the pipeline that writes."""

    def _write(self, rows: Sequence[Row], visual: np.ndarray | jax.Array | None, options: Options) -> Text:
        """Writes after each prompt."""
        settings = self._settings(options, len(rows))
        batch, prompt = self._read(rows, visual, options)
        generated = generate(self._language_model(options), self.params, prompt, settings, self.on.run)
        written, counts = map(np.asarray, self.on.get((generated.tokens, generated.lengths), len(rows)))
        check_written(written)
        return Text(batch, prompt, generated, [row[:count] for row, count in zip(written, counts, strict=True)])

    def _stream(
        self, row: Row, visual: np.ndarray | jax.Array | None, options: Options
    ) -> Generator[np.ndarray, None, Text]:
        """`_write` for one prompt. Yields the token ids of each block."""
        batch, prompt = self._read([row], visual, options)
        generated, tokens = yield from self._blocks(prompt, options)
        return Text(batch, prompt, generated, [tokens])

    def _blocks(self, prompt: Prompt, options: Options) -> Generator[np.ndarray, None, tuple[Generated, np.ndarray]]:
        """Writes after one prompt that was read: yields what each block adds to its token ids, gives the result and
        all of them."""
        get = partial(self.on.get, rows=1)
        settings, model = self._settings(options, 1), self._language_model(options)
        blocks, tokens = write_in_blocks(model, self.params, prompt, settings, self.on.run, get), np.zeros(0, np.int32)
        while True:
            try:
                so_far = next(blocks)
            except StopIteration as end:
                return end.value, tokens
            before, tokens = len(tokens), so_far.tokens[0, : so_far.lengths[0]]
            check_written(tokens[before:])
            yield tokens[before:]

    def _language_model(self, options: Options) -> LanguageModel:
        return LanguageModel(self.model, reasoning=options.mode == "text_image")

    def _settings(self, options: Options, rows: int) -> TextSettings:
        tokenizer = self.processor.tokenizer
        return TextSettings(
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad,
            max_new_tokens=options.max_new_tokens,
            buffer=bucket(options.max_new_tokens),
            keys=self.on.put(numbered_keys(options.text_seed(), rows)) if options.do_sample else None,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            repetition_penalty=options.repetition_penalty,
            num_beams=options.num_beams,
            stop_table=stop_table(tokenizer, tuple(options.stop_strings)) if options.stop_strings else None,
        )

    def _embedded(
        self, rows: Sequence[Row], visual: np.ndarray | jax.Array | None
    ) -> tuple[PromptBatch, jax.Array, jax.Array]:
        """Rows as one batch; on the devices its embeddings [b, s, d], pictures in their places, and its lengths [b]."""
        batch = pack(rows, self.processor.tokenizer)
        shown = visual if batch.visual_index is not None else None
        ids, places, lengths = self.on.put((batch.ids, batch.visual_index, batch.lengths))
        return batch, self.on.run(programs.embed, self.model, self.params, ids, shown, places), lengths

    def _read(
        self, rows: Sequence[Row], visual: np.ndarray | jax.Array | None, options: Options
    ) -> tuple[PromptBatch, Prompt]:
        """Reads prompts; the cache has room for the text after them."""
        batch, x, lengths = self._embedded(rows, visual)
        capacity = batch.ids.shape[1] + bucket(options.max_new_tokens)
        model = self._language_model(options)
        return batch, self.on.run(prefill, model, self.params, x, lengths, capacity=capacity)

    def _reason(
        self,
        rows: Sequence[Row],
        visual: np.ndarray | jax.Array | None,
        options: Options,
        sources: Sequence[Sequence[Grid]],
        grid: Grid,
    ) -> tuple[list[np.ndarray], list[Branch]]:
        """Writes after each prompt: the tokens, and the branches of guidance that prompts and texts make.

        sources, grid: rows and columns of the latents of each row's source pictures, and of those to be drawn.
        """
        text = self._write(rows, visual, options)
        return text.tokens, self._branches_after(rows, text, sources, grid)

    def _branches_after(
        self, rows: Sequence[Row], text: Text, sources: Sequence[Sequence[Grid]], grid: Grid
    ) -> list[Branch]:
        """Contexts of prompt, kept text and `<img>`, from the states that writing left behind.

        Only what follows is read again: the final `<img>`, and the text from its first special token on: special
        tokens were written with the language model's own embeddings but condition the head with those of their table.
        """
        tokenizer = self.processor.tokenizer
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
            layouts.append(layout(self.config, tokenizer, ids, own, grid, written=len(k) + 1))
            spans.append(places[layouts[-1].span])
        index, _ = pad_right(spans, bucket(max(map(len, spans))), 0)
        starts = text.batch.lengths + np.array(resume, np.int32)
        made, _ = self.on.run(
            _contexts, LanguageModel(self.model, reasoning=True), self.params, cache, before, during,
            *self.on.put((ending_ids, starts, index)),
        )  # fmt: skip
        context = np.asarray(self.on.get(made, len(rows)))
        return [Branch(c[: len(span)], own) for c, span, own in zip(context, spans, layouts, strict=True)]


def kept_text(tokens: np.ndarray) -> np.ndarray:
    """The part of the written ids that the picture is drawn from.

    Parity: the released code drops the last two ids, whether or not the last is a stop token: one word before a stop,
    two at the length limit. Where it would crash, on a text that stops at once, nothing is kept.
    """
    return tokens[: max(len(tokens) - 2, 0)]


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
