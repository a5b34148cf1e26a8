"""From a record to what a batch needs of it, pictures left unread: token rows as inference would make them.

A prompt is rendered, tokenised and conditioned on exactly as `processing.processor` does it. What the model is to write
after it is tokenised on its own, as it will be when it writes (one token differs there: see `_as_written`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.data import buckets
from internvlu_jax.data.buckets import Size
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.records import BrokenRecord, PictureFile, Record
from internvlu_jax.processing import chat
from internvlu_jax.processing.images import tile_count
from internvlu_jax.processing.layout import Layout, layout, takes_latents
from internvlu_jax.processing.tokenizer import Tokenizer

BranchName = Literal["cond", "text_dropped", "uncond"]
"""Branches of guidance (`flow.guidance`); an example trains one of them."""


class DataError(ValueError):
    """The data cannot be used: too much is broken, it is not what the configuration is for, or its reader has died."""


@dataclass(frozen=True)
class Kind:
    """All that decides the shapes of a batch; rows of one kind go together.

    target: size of the pictures to draw, None for packed understanding samples. sources: sizes of the source pictures
    whose latents the head sees. text_length: to which contexts are padded. tiles: of each row. stored: whether latents
    and contexts were computed beforehand.
    """

    target: Size | None = None
    sources: tuple[Size, ...] = ()
    text_length: int = 0
    tiles: int = 0
    stored: bool = False


PACKED = Kind()


@dataclass(frozen=True)
class Draft:
    """One example without its pixels.

    where: names its record in messages. read: gives the record again; a draft may wait for long, and the record with
    the bytes of its pictures does not wait with it.
    ids: tokens of the row. written: which of them the model is to write. seen: how many of the record's source
    pictures, the first, are shown. tiles: of all these, in the order of their visual tokens.
    context: places in the row of the tokens that condition the head. layout: of the picture to be drawn.
    """

    where: str
    read: Callable[[], Record]
    kind: Kind
    branch: BranchName
    ids: np.ndarray
    written: np.ndarray
    seen: int
    tiles: int
    context: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    layout: Layout | None = None


class ExampleBuilder:
    """Makes drafts for one model and one data configuration.

    Raises:
        ValueError: a bucket does not fit the model.
    """

    def __init__(self, cfg: InternVLUConfig, tokenizer: Tokenizer, data: DataConfig) -> None:
        self._cfg, self._tokenizer, self._data = cfg, tokenizer, data
        self._multiple = cfg.generation_decoder.pixel_multiple
        for side in data.sides:
            buckets.buckets(side, data.max_aspect, self._multiple)

    def choose_branch(self, record: Record, rng: np.random.Generator) -> BranchName:
        """Which branch of guidance the example trains, by the shares of the configuration."""
        data, u = self._data, rng.random()
        if record.task == "understanding":
            return "cond"
        all_dropped = data.drop_all_t2i if record.task == "t2i" else data.drop_all_edit
        text_dropped = 0.0 if record.task == "t2i" else data.drop_text_edit
        if u < all_dropped:
            return "uncond"
        return "text_dropped" if u < all_dropped + text_dropped else "cond"

    def draft(self, record: Record, branch: BranchName = "cond", read: Callable[[], Record] | None = None) -> Draft:
        """The example with its prompt whole or dropped. `read` gives the record again; by default it is kept.

        Raises:
            BrokenRecord: the record cannot be used.
            DataError: the configuration is not for such records.
        """
        self._check_targets(record)
        read = read or (lambda: record)
        try:
            if record.task == "understanding":
                return self._conversation(record, read)
            return self._drawing(record, branch, read)
        except BrokenRecord:
            raise
        except ValueError as error:
            raise BrokenRecord(record.where, str(error)) from error

    def _check_targets(self, record: Record) -> None:
        if record.task == "understanding" and not self._data.text_targets:
            raise DataError(
                f"{record.where}: a conversation has nothing but answers to learn, and data.text_targets is False; set "
                "it, or leave this source out"
            )
        if record.stored and record.reasoning is not None and self._data.text_targets:
            raise DataError(
                f"{record.where}: reasoning cannot be learned from a context that was computed beforehand; set "
                "data.text_targets to False, or train on the records with pictures"
            )

    # Pictures to draw

    def _drawing(self, record: Record, branch: BranchName, read: Callable[[], Record]) -> Draft:
        sources = () if branch == "uncond" else record.sources
        message = {
            "cond": lambda: chat.user_message(record.prompt, len(sources)),
            "text_dropped": lambda: chat.text_dropped_message(len(sources)),
            "uncond": lambda: chat.UNCOND,
        }[branch]()
        system = chat.system_text("image", bool(record.sources))
        reasoning = record.reasoning if branch == "cond" else None
        counts = self._tile_counts(sources)
        expanded = chat.expand_images(message, [n * self._cfg.vlm.tokens_per_tile for n in counts])
        ids = self._tokenizer.encode(chat.render(system, expanded, final_img=reasoning is None))
        prompt = len(ids)
        if reasoning is not None:
            ids += self._as_written(reasoning)
        row = np.array(ids, np.int32)
        written = np.arange(len(row)) >= prompt
        places = np.arange(len(row), dtype=np.int32)
        if reasoning is not None and self._data.text_targets:
            places = np.delete(places, -2)  # the line break, see `_as_written`
        target, source_sizes = self._sizes(record, sources)
        grids = [self._grid(size) for size in source_sizes]
        seen = layout(self._cfg, self._tokenizer, row[places], grids, self._grid(target), written=len(places) - prompt)
        stored, tiles = bool(record.stored), 0 if record.stored else sum(counts)
        kind = Kind(target, source_sizes, self._text_length(len(row) - int(seen.span[0])), tiles, stored)
        return Draft(record.where, read, kind, branch, row, written, len(sources), tiles, places[seen.span], seen)

    def _as_written(self, reasoning: str) -> list[int]:
        """Ids of the reasoning, a line break where text is learned, and the start of the picture.

        The released sampler draws without the last token before the one that stops it (`inference.writing`). The
        line break is there to be learned and lost; it is a token of its own, for a tokenizer may join a full stop and a
        line break. Where it is there it is no part of the context, but the start of the picture, a part, has read it.
        """
        text = chat.check_written_text(reasoning, "reasoning").removesuffix("\n")
        end = self._tokenizer.encode("\n") if self._data.text_targets else []
        return [*self._tokenizer.encode(text), *end, self._tokenizer.img_start]

    def _sizes(self, record: Record, sources: Sequence[PictureFile]) -> tuple[Size, tuple[Size, ...]]:
        """Sizes at which the target is drawn and the sources are given: the target's where they are equal."""
        assert record.image is not None  # both tasks that draw have one
        size = record.image.size()
        target = self._bucket(size)
        if not takes_latents(self._cfg):
            return target, ()
        sizes = [source.size() for source in sources]
        return target, tuple(target if own == size else self._bucket(own) for own in sizes)

    def _grid(self, size: Size) -> tuple[int, int]:
        """Rows and columns of the latents of a picture."""
        factor = self._cfg.vae.downsample_factor
        return size[0] // factor, size[1] // factor

    def _bucket(self, size: Size) -> Size:
        return buckets.choose(size, self._data.sides, self._data.max_aspect, self._multiple)

    def _text_length(self, length: int) -> int:
        for padded in self._data.text_lengths:
            if length <= padded:
                return padded
        raise ValueError(
            f"its prompt has {length} tokens from the user's turn on; data.text_lengths ends at "
            f"{self._data.text_lengths[-1]}"
        )

    def _tile_counts(self, pictures: Sequence[PictureFile]) -> list[int]:
        kwargs = self._cfg.processor.image_processor_kwargs
        return [tile_count(*picture.size(), kwargs, self._data.max_tiles) for picture in pictures]

    # Conversations

    def _conversation(self, record: Record, read: Callable[[], Record]) -> Draft:
        counts = self._tile_counts(record.sources)
        messages = _messages([human for human, _ in record.turns], len(counts))
        system = chat.check_system_text(record.system or chat.UNDERSTANDING_SYSTEM)
        tokens = iter([n * self._cfg.vlm.tokens_per_tile for n in counts])
        expanded = [chat.expand_images(m, [next(tokens) for _ in range(m.count(chat.IMAGE_MARK))]) for m in messages]
        ids: list[int] = []
        written: list[bool] = []
        for part, by_model in chat.encode_turns(self._tokenizer, system, expanded, [said for _, said in record.turns]):
            ids += part
            written += [by_model] * len(part)
        tiles = sum(counts)
        if len(ids) > self._data.pack_length or tiles > self._data.pack_tiles:
            raise ValueError(
                f"a conversation of {len(ids)} tokens and {tiles} tiles; one row holds data.pack_length "
                f"{self._data.pack_length} and data.pack_tiles {self._data.pack_tiles}"
            )
        row = np.array(ids, np.int32)
        return Draft(record.where, read, PACKED, "cond", row, np.array(written), len(counts), tiles)


def _messages(texts: Sequence[str], pictures: int) -> list[str]:
    """The human's messages; pictures without a mark come first."""
    marks = [text.count(chat.IMAGE_MARK) for text in texts]
    missing = pictures - sum(marks)
    if missing < 0:
        raise ValueError(f"its turns have {sum(marks)} {chat.IMAGE_MARK} marks but there are {pictures} picture(s)")
    marks[0] += missing
    return [chat.user_message(text, count) for text, count in zip(texts, marks, strict=True)]
