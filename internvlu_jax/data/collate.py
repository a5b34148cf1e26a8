"""Drafts to the arrays of a batch. Only here are pictures read, and only those of the rows that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.data import buckets
from internvlu_jax.data.batch import Batch, Picture, Text
from internvlu_jax.data.config import DataConfig
from internvlu_jax.data.examples import Draft
from internvlu_jax.data.records import BrokenRecord
from internvlu_jax.ops.msrope import msrope_positions
from internvlu_jax.processing import chat
from internvlu_jax.processing.batch import pad_right
from internvlu_jax.processing.images import cut_tiles
from internvlu_jax.processing.tokenizer import Tokenizer

_ROUND = 8  # token rows are padded to a multiple of it


@dataclass(frozen=True)
class Loaded:
    """Pixels of one row: its tiles, the picture to draw and the sources, as the kind of the row has them."""

    tiles: np.ndarray
    target: np.ndarray | None
    sources: tuple[np.ndarray, ...]


class Collator:
    """Makes batches for one model and one data configuration.

    pool: reads pictures side by side. report: is told of every row whose pictures cannot be read.
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

    def batch(self, rows: Sequence[Sequence[Draft]], index: np.ndarray, has_tiles: bool) -> Batch:
        """One batch.

        Args:
            rows: the drafts of each row, several where they are packed; all of one kind.
            index: numbers of the rows within their step.
            has_tiles: whether packed rows of the whole batch, on any host, have pictures.
        """
        loaded = list(self._pool.map(self._load, rows))
        kind = rows[0][0].kind if rows and rows[0] else None
        index = np.asarray(index, np.int32)
        if kind is None or kind.target is None:
            tiles = self._data.pack_tiles if has_tiles else 0
            return Batch(index, self._packed(rows, loaded, tiles))
        drafts = [row[0] for row in rows]
        text = None if kind.stored else self._prompts(drafts, loaded)
        return Batch(index, text, self._pictures(drafts, loaded))

    # Token rows

    def _prompts(self, drafts: Sequence[Draft], loaded: Sequence[Loaded | None]) -> Text:
        kind = drafts[0].kind
        length = -(-(kind.text_length + self._system) // _ROUND) * _ROUND
        ids, _ = pad_right([d.ids for d in drafts], length, self._tokenizer.pad)
        positions = np.tile(np.arange(length, dtype=np.int32), (len(drafts), 1))
        targets, weights = self._targets([[d] for d in drafts], loaded, length)
        if not self._data.text_targets:
            return Text(ids, positions, None, *self._tiles(ids, loaded, kind.tiles))
        return Text(ids, positions, None, *self._tiles(ids, loaded, kind.tiles), targets, weights)

    def _packed(self, rows: Sequence[Sequence[Draft]], loaded: Sequence[Loaded | None], tiles: int) -> Text:
        length = self._data.pack_length
        joined = [np.concatenate([d.ids for d in row]) if row else np.zeros(0, np.int32) for row in rows]
        ids, _ = pad_right(joined, length, self._tokenizer.pad)
        positions, segments = np.zeros((2, len(rows), length), np.int32)
        for r, row in enumerate(rows):
            sizes = [len(d.ids) for d in row]
            used = sum(sizes)
            positions[r, :used] = np.concatenate([np.zeros(0, int), *(np.arange(size) for size in sizes)])
            segments[r, :used] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        targets, weights = self._targets(rows, loaded, length)
        return Text(ids, positions, segments, *self._tiles(ids, loaded, tiles), targets, weights)

    def _targets(
        self, rows: Sequence[Sequence[Draft]], loaded: Sequence[Loaded | None], length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The next token of each position within its sample, and weight 1 where the model is to write it."""
        targets, weights = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), np.float32)
        for r, row in enumerate(rows):
            start = 0
            for draft in row:
                stop = start + len(draft.ids) - 1
                targets[r, start:stop] = draft.ids[1:]
                weights[r, start:stop] = draft.written[1:] if loaded[r] is not None else 0
                start = stop + 1
        return targets, weights

    def _tiles(
        self, ids: np.ndarray, loaded: Sequence[Loaded | None], count: int
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(tiles, visual_index): the n-th visual place of a row shows the n-th visual token of its tiles."""
        if not count:
            return None, None
        size = self._cfg.processor.image_processor_kwargs.size
        tiles = np.zeros((len(ids), count, size.height, size.width, 3), np.uint8)
        for out, row in zip(tiles, loaded, strict=True):
            if row is not None:
                out[: len(row.tiles)] = row.tiles
        visual = ids == self._tokenizer.img_context
        index = np.where(visual, np.cumsum(visual, axis=1) - 1, -1)
        return tiles, index.astype(np.int32)

    # Pictures

    def _pictures(self, drafts: Sequence[Draft], loaded: Sequence[Loaded | None]) -> Picture:
        kind = drafts[0].kind
        assert kind.target is not None
        starts = np.array([d.start for d in drafts], np.int32)
        return Picture(
            target=_stack((row and row.target for row in loaded), self._blank(kind.target, kind.stored)),
            context_lengths=np.array([d.length for d in drafts], np.int32),
            positions=np.stack([self._positions(d) for d in drafts]),
            weight=np.array([row is not None for row in loaded], np.float32),
            sources=tuple(
                _stack((row and row.sources[n] for row in loaded), self._blank(size, kind.stored))
                for n, size in enumerate(kind.sources)
            ),
            context_index=None if kind.stored else starts[:, None] + np.arange(kind.text_length, dtype=np.int32),
            context=self._stored_contexts(drafts) if kind.stored else None,
        )

    def _blank(self, size: buckets.Size, stored: bool) -> np.ndarray:
        if not stored:
            return np.zeros((*size, 3), np.uint8)
        factor = self._cfg.vae.downsample_factor
        return np.zeros((size[0] // factor, size[1] // factor, self._cfg.vae.z_dim), np.float32)

    def _positions(self, draft: Draft) -> np.ndarray:
        dit, multiple = self._cfg.generation_decoder.decoder_config, self._cfg.generation_decoder.pixel_multiple
        kind, side = draft.kind, self._cfg.vlm.tokens_per_side
        assert kind.target is not None
        grids = [(size[0] // multiple, size[1] // multiple) for size in (kind.target, *kind.sources)]
        return msrope_positions(
            grids[0],
            draft.runs,
            condition_grids=grids[1:],
            visual_grids=[(side, side)] * sum(visual for visual, _ in draft.runs),
            latent_scale=dit.video_position_scale_factor,
            visual_scale=dit.vlm_cond_position_scale_factor,
            context_length=kind.text_length,
        )

    def _stored_contexts(self, drafts: Sequence[Draft]) -> np.ndarray:
        length = drafts[0].kind.text_length
        contexts = [d.record.stored[f"context/{d.drop}"][: d.length] for d in drafts]
        return np.stack([np.pad(c, ((0, length - len(c)), (0, 0))) for c in contexts])

    def _stored_latents(self, draft: Draft) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        kind, stored = draft.kind, draft.record.stored
        assert kind.target is not None
        names = ["target", *(f"source/{n}" for n in range(len(kind.sources)))]
        for name, size in zip(names, (kind.target, *kind.sources), strict=True):
            wanted, found = self._blank(size, True).shape, np.shape(stored[name]) if name in stored else None
            if wanted != found:
                raise ValueError(
                    f"{name} was stored with shape {found}, and this configuration needs {wanted}; store it again with "
                    "the same data.sides, data.max_aspect and data.condition_latents"
                )
        return stored["target"], tuple(stored[name] for name in names[1:])

    # Pixels

    def _load(self, row: Sequence[Draft]) -> Loaded | None:
        """The row's pixels; None, reported, if one of its pictures cannot be read."""
        try:
            return self._read(row)
        except BrokenRecord as error:
            self._report(error)
        return None

    def _read(self, row: Sequence[Draft]) -> Loaded:
        kwargs, size = self._cfg.processor.image_processor_kwargs, self._cfg.processor.image_processor_kwargs.size
        tiles = [np.zeros((0, size.height, size.width, 3), np.uint8)]
        target: np.ndarray | None = None
        sources: tuple[np.ndarray, ...] = ()
        for draft in row:
            try:
                if draft.kind.stored:
                    target, sources = self._stored_latents(draft)
                    continue
                pixels = [picture.pixels() for picture in draft.seen]
                tiles += [cut_tiles(p, kwargs, self._data.max_tiles) for p in pixels]
                if draft.kind.target is not None and draft.record.image is not None:
                    target = buckets.fit(draft.record.image.pixels(), draft.kind.target)
                    sources = tuple(buckets.fit(p, s) for p, s in zip(pixels, draft.kind.sources, strict=False))
            except (ValueError, KeyError) as error:
                raise BrokenRecord(draft.record.where, str(error)) from error
        return Loaded(np.concatenate(tiles), target, sources)


def _stack(arrays: Iterable[Any], blank: np.ndarray) -> np.ndarray:
    return np.stack([blank if array is None else array for array in arrays])
