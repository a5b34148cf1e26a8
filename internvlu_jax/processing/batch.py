"""Rows of different lengths to one array of a length from a short list, so that few shapes are ever compiled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

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
