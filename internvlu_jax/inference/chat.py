"""Conversations: what was read and written in earlier turns is in a cache, and only what is new is read.

A conversation is always the tokens of its messages, as a fresh prompt would have them: the cache serves as far as it
holds the same tokens and pictures, and no further.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from internvlu_jax.decode.model import LanguageModel, Prompt, grown, prefill, read_further
from internvlu_jax.inference.options import NEW_TOKENS, Options
from internvlu_jax.inference.stream import TextStream, Writing, pieces
from internvlu_jax.inference.writing import WithWriting
from internvlu_jax.models.qwen3 import KVCache
from internvlu_jax.processing import chat
from internvlu_jax.processing.images import as_picture, to_rgb, vision_tiles
from internvlu_jax.processing.messages import turns
from internvlu_jax.processing.rows import Row, bucket
from internvlu_jax.utils.seeds import Seed, any_seed

_SMALLEST = 512  # slots of a cache; more are powers of two, so that few programs are compiled


@dataclass(frozen=True)
class ChatOutput:
    """text: the answer, without special tokens. tokens: its ids, with the stop token if one was written.

    ended: whether it came to an end before the limit. prompt_tokens: of the whole conversation; read: how many of them
    were read in this call, the others were in the cache. seed: as in `PipelineOutput`.
    """

    text: str
    tokens: np.ndarray
    ended: bool
    prompt_tokens: int
    read: int
    seed: Seed


class ChatCache:
    """What the language model knows of a conversation. One serves one conversation at a time; another one may follow.

    Of the model that filled it: with other weights (`load_lora_weights`) it has to be cleared.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything, and frees the memory."""
        self._held: KVCache | None = None
        self._marks = np.zeros(0, np.int64)

    def take(self) -> tuple[KVCache | None, np.ndarray]:
        """The cache and the marks of its tokens; it is used up by what comes next, so nothing is left here."""
        taken = self._held, self._marks
        self.clear()
        return taken

    def keep(self, cache: KVCache, marks: np.ndarray) -> None:
        """Holds a cache whose first slots are those of tokens with these marks."""
        self._held, self._marks = cache, marks


class _Asked(NamedTuple):
    """A conversation as one row. marks: int64 [s], of each token what tells it apart: its id, or of a visual token
    what tells its tile apart, a number below 0. tiles: of all pictures, in the order of their visual tokens."""

    ids: np.ndarray
    marks: np.ndarray
    tiles: np.ndarray


class WithChat(WithWriting):
    """The part of the pipeline that converses."""

    _conversation: ChatCache

    def chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> ChatOutput:
        """The answer to the last message. Arguments and errors are those of `stream_chat`."""
        return self.stream_chat(messages, **options).result()

    def stream_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        cache: ChatCache | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int | None = 50,
        repetition_penalty: float = 1.0,
        stop_strings: str | Sequence[str] = (),
        seed: Seed | None = None,
        max_tiles: int = 1,
    ) -> TextStream[ChatOutput]:
        """Answers the last message of a conversation; the text comes in pieces as it is written.

        The answer depends on the messages alone. Where the conversation goes on from one before it, with the answers as
        they were given, the cache spares reading that again.

        Args:
            messages: {"role": "system", "user" or "assistant", "content": text}, as in `processing.messages`; content
                of the user may be a list of {"type": "text", "text": text} and {"type": "image", "image": picture}.
            cache: of this conversation; None is one that the pipeline holds, of the last conversation without.
            seed: of sampled text; None draws one. The rest as in `InternVLUPipeline.__call__`.

        Raises:
            ValueError: an argument cannot be used; before anything is computed.
        """
        options = Options(
            mode="text", max_new_tokens=NEW_TOKENS["text"] if max_new_tokens is None else max_new_tokens,
            do_sample=do_sample, temperature=temperature, top_p=top_p, top_k=top_k,
            repetition_penalty=repetition_penalty, max_tiles=max_tiles,
            stop_strings=[stop_strings] if isinstance(stop_strings, str) else stop_strings,
            seed=self.on.agreed(any_seed()) if seed is None else seed, **_NOT_OF_TEXT,
        )  # fmt: skip
        options.check(self.config, 1)
        asked = self._asked(messages, max_tiles)
        return TextStream(self._answering(asked, options, self._conversation if cache is None else cache))

    def _asked(self, messages: Sequence[dict[str, Any]], max_tiles: int) -> _Asked:
        said = turns(messages)
        cfg = self.config.processor
        tiles = [
            [vision_tiles(to_rgb(as_picture(p)), cfg.image_processor_kwargs, max_tiles) for p in own]
            for own in said.pictures
        ]
        expanded = [
            chat.expand_images(message, [len(t) * cfg.image_seq_length for t in own])
            for message, own in zip(said.asked, tiles, strict=True)
        ]
        system = chat.system_text("text", False) if said.system is None else said.system
        tokenizer = self.processor.tokenizer
        stretches = chat.encode_turns(tokenizer, system, expanded, said.answers)
        ids = np.array([i for part, _ in stretches for i in part], np.int32)
        size = cfg.image_processor_kwargs.size
        no_tiles = np.zeros((0, size.height, size.width, 3), np.uint8)
        joined = np.concatenate([no_tiles, *(t for own in tiles for t in own)])
        marks = ids.astype(np.int64)
        marks[ids == tokenizer.img_context] = np.repeat(_tile_marks(joined), self.config.vlm.tokens_per_tile)
        return _Asked(ids, marks, joined)

    def _answering(self, asked: _Asked, options: Options, memory: ChatCache) -> Writing[ChatOutput]:
        tokenizer = self.processor.tokenizer
        prompt, read = self._read_new(asked, *memory.take(), room=bucket(options.max_new_tokens))
        generated, tokens = yield from pieces(self._blocks(prompt, options), tokenizer)
        # The last token was not read, and of a prompt special tokens have other embeddings than those written here.
        special = np.isin(tokens[:-1], tokenizer.special_table_ids)
        kept = tokens[: int(np.argmax(np.append(special, True)))]
        memory.keep(generated.cache, np.concatenate([asked.marks, kept.astype(np.int64)]))
        text = tokenizer.decode(tokens.tolist())
        ended = int(tokens[-1]) in tokenizer.stop_ids or any(string in text for string in options.stop_strings)
        assert not isinstance(options.seed, tuple)
        output = ChatOutput(text, tokens, ended, len(asked.ids), read, options.seed)
        return lambda: output

    def _read_new(self, asked: _Asked, cache: KVCache | None, marks: np.ndarray, room: int) -> tuple[Prompt, int]:
        """The prompt with its cache, and how many of its tokens were read: all that the cache does not hold."""
        if cache is not None and cache.slots > 2 * _capacity(bucket(len(asked.ids)) + room):
            cache = None  # of a longer conversation: every token would look at all its slots
        common = 0 if cache is None else _common(marks, asked.marks[:-1])  # one is read at least: what follows it?
        per_tile, tokenizer = self.config.vlm.tokens_per_tile, self.processor.tokenizer
        before = int((asked.ids[:common] == tokenizer.img_context).sum())
        first_tile = before // per_tile
        visual = self._visual_tokens(asked.tiles[first_tile:])
        row = Row(asked.ids[common:], before - first_tile * per_tile)
        batch, x, lengths = self._embedded([row], visual)
        on, model, params = self.on, LanguageModel(self.model), self.params
        capacity = _capacity(common + batch.ids.shape[1] + room)
        if cache is None or not common:
            return on.run(prefill, model, params, x, lengths, capacity=capacity), len(asked.ids)
        if cache.slots < capacity:
            cache = on.run(grown, model, params, cache, capacity=capacity)
        starts = on.put(np.array([common], np.int32))
        return on.run(read_further, model, params, cache, x, starts, lengths), len(asked.ids) - common


# Of `Options` what text does not ask for.
_NOT_OF_TEXT: dict[str, Any] = {
    "height": 0, "width": 0, "num_inference_steps": 1, "flow_shift": 1.0, "all_cfg_scale": 0.0, "part_cfg_scale": 0.0,
    "num_images_per_prompt": 1, "noise": "jax", "latents": None, "num_beams": 1, "system_prompt": None,
    "callback": None, "progress": False,
}  # fmt: skip


def _tile_marks(tiles: np.ndarray) -> np.ndarray:
    """A number below 0 for each tile, int64 [k], equal for equal pixels."""
    digests = [hashlib.blake2b(tile.tobytes(), digest_size=8).digest() for tile in tiles]
    return np.array([-1 - (int.from_bytes(d, "big") >> 1) for d in digests], np.int64)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many first entries are equal."""
    length = min(len(one), len(other))
    return int(np.argmin(np.append(one[:length] == other[:length], False)))


def _capacity(needed: int) -> int:
    return max(_SMALLEST, 1 << (needed - 1).bit_length())
