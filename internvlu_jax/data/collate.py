"""Drafts to the arrays of a batch. Only here are pictures read, and only those of the rows that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.data import buckets
from internvlu_jax.data.batch import Batch, ImageBatch, TextBatch
from internvlu_jax.data.buckets import Size
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import Draft, Kind
from internvlu_jax.data.records import BrokenRecord, Record
from internvlu_jax.processing import chat
from internvlu_jax.processing.images import vision_tiles
from internvlu_jax.processing.layout import Layout
from internvlu_jax.processing.rows import pad_right, visual_index
from internvlu_jax.processing.tokenizer import Tokenizer

_ROUND = 8  # token rows are padded to a multiple of it


@dataclass(frozen=True)
class Loaded:
    """What a draft leaves unread, as its kind has it: pixels, or what was computed from them.

    tiles: for the vision encoder. pictures: to draw, and then the sources. context: the hidden states of the prompt.
    """

    tiles: np.ndarray | None = None
    pictures: tuple[np.ndarray, ...] = ()
    context: np.ndarray | None = None


Row = Sequence[tuple[Draft, Loaded | None]]
"""The samples of a row, several where they are packed; those that cannot be read without what they lack."""


class Collator:
    """Makes batches for one model and one data configuration.

    pool: reads pictures side by side. report: is told of every sample whose pictures cannot be read; it stays blank and
    does not count.
    """

    def __init__(
        self,
        cfg: InternVLUConfig,
        tokenizer: Tokenizer,
        data: DataConfig,
        pool: Executor,
        report: Callable[[BrokenRecord], None],
    ) -> None:
        self._cfg, self._tokenizer, self._data = cfg, tokenizer, data
        self._pool, self._report = pool, report
        turn = [tokenizer.encode(chat.render(s, "", False)) for s in (chat.GENERATION_SYSTEM, chat.EDITING_SYSTEM)]
        second = [np.flatnonzero(np.array(ids) == tokenizer.im_start)[1] for ids in turn]
        self._system = int(np.max(second))

    def batch(self, kind: Kind, rows: Sequence[Sequence[Draft]], index: np.ndarray) -> Batch:
        """One batch.

        Args:
            kind: of all rows.
            rows: the drafts of each row, several where they are packed.
            index: numbers of the rows within their step.
        """
        results = iter(list(self._pool.map(self._load, (draft for row in rows for draft in row))))
        loaded = [[(draft, self._usable(next(results))) for draft in row] for row in rows]
        index = np.asarray(index, np.int32)
        if kind.target is None:
            return Batch(index, self._packed(kind, loaded))
        singles = [row[0] for row in loaded]
        return Batch(index, None if kind.stored else self._prompts(kind, singles), self._pictures(kind, singles))

    def _usable(self, result: Loaded | BrokenRecord) -> Loaded | None:
        if isinstance(result, Loaded):
            return result
        self._report(result)
        return None

    # Token rows

    def _prompts(self, kind: Kind, row: Row) -> TextBatch:
        length = -(-(kind.text_length + self._system) // _ROUND) * _ROUND
        rows = [[sample] for sample in row]
        positions = np.tile(np.arange(length, dtype=np.int32), (len(rows), 1))
        targets = self._targets(rows, length) if self._data.text_targets else (None, None)
        ids = self._ids(rows, length)
        return TextBatch(ids, positions, None, *self._tiles(kind, ids, rows), *targets)

    def _packed(self, kind: Kind, rows: Sequence[Row]) -> TextBatch:
        length = self._data.pack_length
        positions, segments = np.zeros((2, len(rows), length), np.int32)
        for r, row in enumerate(rows):
            start = 0
            for number, (draft, _) in enumerate(row, 1):
                stop = start + len(draft.ids)
                positions[r, start:stop] = np.arange(stop - start)
                segments[r, start:stop] = number
                start = stop
        ids = self._ids(rows, length)
        return TextBatch(ids, positions, segments, *self._tiles(kind, ids, rows), *self._targets(rows, length))

    def _ids(self, rows: Sequence[Row], length: int) -> np.ndarray:
        none = np.zeros(0, np.int32)
        joined = [np.concatenate([none, *(draft.ids for draft, _ in row)]) for row in rows]
        return pad_right(joined, length, self._tokenizer.pad)[0]

    def _targets(self, rows: Sequence[Row], length: int) -> tuple[np.ndarray, np.ndarray]:
        """The next token of each position within its sample, and weight 1 where the model is to write it."""
        targets, weights = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.float32)
        for r, row in enumerate(rows):
            start = 0
            for draft, loaded in row:
                stop = start + len(draft.ids) - 1
                targets[r, start:stop] = draft.ids[1:]
                weights[r, start:stop] = draft.written[1:] if loaded is not None else 0
                start = stop + 1
        return targets, weights

    def _tiles(self, kind: Kind, ids: np.ndarray, rows: Sequence[Row]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(tiles, visual_index): the n-th visual place of a row shows the n-th visual token of its tiles."""
        if not kind.tiles:
            return None, None
        size = self._cfg.processor.image_processor_kwargs.size
        tiles = np.zeros((len(ids), kind.tiles, size.height, size.width, 3), np.uint8)
        for r, row in enumerate(rows):
            start = 0
            for draft, loaded in row:
                if loaded is not None and loaded.tiles is not None:
                    tiles[r, start : start + draft.tiles] = loaded.tiles
                start += draft.tiles
        index = visual_index(ids, self._tokenizer.img_context)
        return tiles, np.full_like(ids, -1) if index is None else index

    # Pictures

    def _pictures(self, kind: Kind, row: Row) -> ImageBatch:
        assert kind.target is not None
        target, *sources = (
            np.stack([self._blank(size, kind) if loaded is None else loaded.pictures[n] for _, loaded in row])
            for n, size in enumerate((kind.target, *kind.sources))
        )
        index, lengths = pad_right([draft.context for draft, _ in row], kind.text_length, 0)
        return ImageBatch(
            target=target,
            context_lengths=lengths,
            positions=np.stack([_layout(draft).positions(kind.text_length) for draft, _ in row]),
            weight=np.array([loaded is not None for _, loaded in row], np.float32),
            sources=tuple(sources),
            context_index=None if kind.stored else index,
            context=self._contexts(kind, row) if kind.stored else None,
        )

    def _contexts(self, kind: Kind, row: Row) -> np.ndarray:
        out = np.zeros((len(row), kind.text_length, self._cfg.generation_decoder.input_hidden_size), np.float32)
        for padded, (_, loaded) in zip(out, row, strict=True):
            if loaded is not None and loaded.context is not None:
                padded[: len(loaded.context)] = loaded.context
        return out

    def _blank(self, size: Size, kind: Kind) -> np.ndarray:
        return np.zeros(self._latents(size), np.float32) if kind.stored else np.zeros((*size, 3), np.uint8)

    def _latents(self, size: Size) -> tuple[int, int, int]:
        factor = self._cfg.vae.downsample_factor
        return size[0] // factor, size[1] // factor, self._cfg.vae.z_dim

    # What is read

    def _load(self, draft: Draft) -> Loaded | BrokenRecord:
        """What the draft leaves unread, or why it cannot be read."""
        try:
            record = draft.read()
            return self._stored(draft, record) if draft.kind.stored else self._pixels(draft, record)
        except BrokenRecord as error:
            return error
        except ValueError as error:
            return BrokenRecord(draft.where, str(error))

    def _pixels(self, draft: Draft, record: Record) -> Loaded:
        kind, kwargs = draft.kind, self._cfg.processor.image_processor_kwargs
        seen = [picture.pixels() for picture in record.sources[: draft.seen]]
        tiles = [tile for picture in seen for tile in vision_tiles(picture, kwargs, self._data.max_tiles)]
        if len(tiles) != draft.tiles:
            raise ValueError(
                f"its pictures make {len(tiles)} tiles, but {draft.tiles} by the sizes that the record has for them; "
                "correct its sizes, or leave them out"
            )
        pictures = []
        if kind.target is not None and record.image is not None:
            pictures = [buckets.fit(record.image.pixels(), kind.target)]
            pictures += [buckets.fit(picture, size) for picture, size in zip(seen, kind.sources, strict=False)]
        return Loaded(np.stack(tiles) if tiles else None, tuple(pictures))

    def _stored(self, draft: Draft, record: Record) -> Loaded:
        kind = draft.kind
        assert kind.target is not None
        context = _context_name(draft, record), (len(draft.context), self._cfg.generation_decoder.input_hidden_size)
        pictures = {"target": kind.target, **{f"source/{n}": size for n, size in enumerate(kind.sources)}}
        shapes = dict([context]) | {name: self._latents(size) for name, size in pictures.items()}
        for name, shape in shapes.items():
            stored = np.shape(record.stored[name]) if name in record.stored else "nothing"
            if stored != shape:
                raise ValueError(
                    f"{name} should be {shape} in this configuration, and {stored} is stored; compute it again with "
                    "the same model and the same data.sides, max_aspect and max_tiles, and head_sources"
                )
        latents = tuple(np.asarray(record.stored[name], np.float32) for name in pictures)
        return Loaded(None, latents, record.stored[context[0]])


def _layout(draft: Draft) -> Layout:
    assert draft.layout is not None  # as all drafts of pictures to draw have one
    return draft.layout


# The branches' names in shards that were written before they had one name everywhere.
_FORMER_NAMES = {"cond": "full", "uncond": "all_dropped"}


def _context_name(draft: Draft, record: Record) -> str:
    """The name of the stored context of a draft's branch."""
    name, former = f"context/{draft.branch}", f"context/{_FORMER_NAMES.get(draft.branch)}"
    return former if name not in record.stored and former in record.stored else name
