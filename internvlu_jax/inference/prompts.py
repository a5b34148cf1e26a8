"""Token rows of several lengths as one batch, and the part of a row that conditions the head (host side, numpy)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from internvlu_jax.processing.batch import bucket, pad_right
from internvlu_jax.processing.tokenizer import Tokenizer

Runs = list[tuple[bool, int]]
"""Lengths of a row's stretches from left to right: (is one tile's visual tokens, length)."""


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
    length = bucket(max(len(row.ids) for row in rows))
    ids, lengths = pad_right([row.ids for row in rows], length, tokenizer.pad)
    is_visual = ids == tokenizer.img_context
    if not is_visual.any():
        return PromptBatch(ids, lengths, None)
    first = np.array([row.first_visual for row in rows])[:, None]
    index = np.where(is_visual, np.cumsum(is_visual, axis=1) - 1 + first, -1)
    return PromptBatch(ids, lengths, index.astype(np.int32))


def context_start(prompt: np.ndarray, tokenizer: Tokenizer) -> int:
    """Where the context of the head begins: the second `<|im_start|>`, which opens the user's turn."""
    return int(np.flatnonzero(prompt == tokenizer.im_start)[1])


def context_runs(is_visual: np.ndarray, tokens_per_tile: int) -> Runs:
    """The stretches of a context, one for every tile, for MSRoPE.

    Parity: visual tokens of a tile that the context's length cuts through are numbered like text.
    """
    runs: Runs = []
    for start, stop, visual in _stretches(is_visual):
        whole = (stop - start) // tokens_per_tile if visual else 0
        runs += [(True, tokens_per_tile)] * whole
        rest = stop - start - whole * tokens_per_tile
        if rest and runs and not runs[-1][0]:
            runs[-1] = (False, runs[-1][1] + rest)
        elif rest:
            runs.append((False, rest))
    return runs


def _stretches(flags: np.ndarray) -> list[tuple[int, int, bool]]:
    """(start, stop, value) of every stretch of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(flags)) + 1), len(flags)]
    return [(int(a), int(b), bool(flags[a])) for a, b in itertools.pairwise(edges) if b > a]
