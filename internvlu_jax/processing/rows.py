"""Token rows of different lengths as one batch of a length from a short list, so that few shapes are ever compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from internvlu_jax.processing.tokenizer import Tokenizer

_SMALLEST_STEP = 32


def bucket(length: int) -> int:
    """The length that `length` tokens are padded to.

    Multiples of 32 up to 1024, of 64 up to 2048, and so on: above 512 at most 1/16 more tokens than there are, with
    at most 16 lengths in each doubling above 1024.
    """
    step = max(_SMALLEST_STEP, (1 << max(length - 1, 0).bit_length()) // 32)
    return max(-(-length // step), 1) * step


def pad_right(rows: Sequence[np.ndarray], length: int, pad_id: int) -> tuple[Int32[np.ndarray, "b s"], np.ndarray]:
    """Rows of token ids, each filled up at its end to `length`, and their true lengths (int32 [b]).

    Raises:
        ValueError: a row is longer than `length`.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    if lengths.size and np.max(lengths) > length:
        raise ValueError(f"a row of {np.max(lengths)} tokens does not fit {length}")
    ids = np.full((len(rows), length), pad_id, np.int32)
    for out, row in zip(ids, rows, strict=True):
        out[: len(row)] = row
    return ids, lengths


@dataclass(frozen=True)
class Row:
    """One prompt as tokens. `first_visual` is where its pictures begin among the visual tokens of the whole call."""

    ids: np.ndarray
    first_visual: int = 0


@dataclass(frozen=True)
class PromptBatch:
    """Rows padded on the right to a bucket.

    ids: int32 [b, s]; lengths: int32 [b], real tokens of each row;
    visual_index: int32 [b, s], which visual token a position shows, -1 where it shows none; None without pictures.
    """

    ids: np.ndarray
    lengths: np.ndarray
    visual_index: np.ndarray | None


def pack(rows: Sequence[Row], tokenizer: Tokenizer) -> PromptBatch:
    """Pads rows to the bucket of the longest."""
    ids, lengths = pad_right([row.ids for row in rows], bucket(max(len(row.ids) for row in rows)), tokenizer.pad)
    first = np.array([row.first_visual for row in rows])
    return PromptBatch(ids, lengths, visual_index(ids, tokenizer.img_context, first))


def visual_index(
    ids: Int32[np.ndarray, "b s"], img_context: int, first: np.ndarray | None = None
) -> Int32[np.ndarray, "b s"] | None:
    """Which visual token each position shows, -1 where it shows none; None if no position shows one.

    The n-th visual place of a row shows token n, counted from `first` [b] where the rows share one list of tokens.
    """
    is_visual = ids == img_context
    if not is_visual.any():
        return None
    start = 0 if first is None else first[:, None]
    return np.where(is_visual, np.cumsum(is_visual, axis=1) - 1 + start, -1).astype(np.int32)
