"""Words read by comparing every letter with those that the world draws."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float

from internvlu_jax.small_world.scenes.letters import COLUMNS, GLYPHS, LETTERS, ROWS
from internvlu_jax.small_world.scenes.render import Box
from internvlu_jax.small_world.scenes.scene import CELL
from internvlu_jax.small_world.scoring.blobs import Blob, Plane, smoothed
from internvlu_jax.small_world.scoring.reading import ReadWord

LETTER = 0.8
"""Least agreement of a letter: one minus the mean difference of its cells."""

_LEAD = 0.01
_SHIFTS = (-0.5, 0.0, 0.5)  # pixels, where a blurred word may begin
_BLURS = (0.4, 0.75, 1.1)  # pixels, where a letter's cells are two wide and three tall
_TALL = (0.75, 1.25)  # a word's height in those of a letter


def read_words(blobs: Sequence[Blob], side: int) -> tuple[list[ReadWord], list[Box]]:
    """Words among blobs that are no shapes, and the boxes of those blobs that belong to none."""
    words, malformed = [], []
    for line in _lines(blobs):
        word = _word(line, side)
        if word is None:
            malformed += [blob.box for blob in line]
        else:
            words.append(word)
    return words, malformed


def _lines(blobs: Sequence[Blob]) -> list[list[Blob]]:
    """Blobs of one colour side by side."""
    lines: list[list[Blob]] = []
    for blob in sorted(blobs, key=lambda blob: blob.box[0]):
        for line in lines:
            if line[0].colour == blob.colour and any(_beside(other.box, blob.box) for other in line):
                line.append(blob)
                break
        else:
            lines.append([blob])
    return lines


def _beside(a: Box, b: Box) -> bool:
    """Whether their rows overlap, and what is between them is not more than a letter's width."""
    return a[1] < b[3] and b[1] < a[3] and b[0] - a[2] < COLUMNS * CELL[0]


def _word(line: Sequence[Blob], side: int) -> ReadWord | None:
    if line[0].colour is None:
        return None
    shares = np.zeros((side, side))
    for blob in line:
        height, width = blob.shares.shape
        view = shares[blob.row : blob.row + height, blob.column : blob.column + width]
        np.maximum(view, blob.shares, out=view)
    rows, columns = np.flatnonzero(shares.max(1) > 0.5), np.flatnonzero(shares.max(0) > 0.5)
    if not len(rows) or not len(columns):
        return None
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    cell = (CELL[0] * side, CELL[1] * side)
    count = round(((right - left) / cell[0] + 1) / (COLUMNS + 1))
    tall = (bottom - top) / (ROWS * cell[1])
    if not 1 <= count <= 5 or not _TALL[0] <= tall <= _TALL[1]:
        return None
    middle = (left + right) / 2, (top + bottom) / 2
    text, fit = _best(shares, middle, count, cell)
    if fit < LETTER:
        return None
    box = (left / side, top / side, right / side, bottom / side)
    return ReadWord(text, line[0].colour, middle[0] / side, middle[1] / side, box)


def _best(shares: Plane, middle: tuple[float, float], count: int, cell: tuple[float, float]) -> tuple[str, float]:
    """The word's letters at the shift where they fit best, and the mean of their agreements."""
    best = ("?" * count, 0.0)
    wide = (COLUMNS + 1) * count - 1
    for dx in _SHIFTS:
        for dy in _SHIFTS:
            left, top = middle[0] + dx - wide * cell[0] / 2, middle[1] + dy - ROWS * cell[1] / 2
            cells = _cell_means(shares, left, top, wide, cell)
            letters, fits = zip(
                *(_letter(cells[:, n * (COLUMNS + 1) :][:, :COLUMNS]) for n in range(count)), strict=True
            )
            fit = float(np.mean(fits))
            if fit > best[1]:
                best = ("".join(letters), fit)
    return best


@cache
def _templates() -> np.ndarray:
    """The mean cells of every letter, blurred more or less: [blur, letter, row, column]."""
    templates = []
    for sigma in _BLURS:
        for name in LETTERS:
            pixels = np.pad(np.kron(GLYPHS[name], np.ones((3, 2))), 6)
            cells = smoothed(pixels, sigma)[6:-6, 6:-6].reshape(ROWS, 3, COLUMNS, 2).mean((1, 3))
            templates.append(cells)
    return np.stack(templates).reshape(len(_BLURS), len(LETTERS), ROWS, COLUMNS)


def _letter(cells: Plane) -> tuple[str, float]:
    agreement = np.max(1 - np.abs(_templates() - cells).mean((2, 3)), axis=0)
    order = np.argsort(agreement)
    best, second = float(agreement[order[-1]]), float(agreement[order[-2]])
    return (LETTERS[order[-1]] if best >= LETTER and best - second >= _LEAD else "?"), best


def _cell_means(
    shares: Plane, left: float, top: float, wide: int, cell: tuple[float, float]
) -> Float[np.ndarray, "7 wide"]:
    """The mean share of every cell, from the integral of the plane."""
    integral = np.pad(np.cumsum(np.cumsum(shares, 0), 1), ((1, 0), (1, 0)))
    rows = np.clip(top + np.arange(ROWS + 1) * cell[1], 0, shares.shape[0])
    columns = np.clip(left + np.arange(wide + 1) * cell[0], 0, shares.shape[1])
    at = _interpolated(_interpolated(integral, rows).T, columns).T
    return np.diff(np.diff(at, axis=0), axis=1) / (cell[0] * cell[1])


def _interpolated(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Linearly between the rows."""
    low = np.minimum(at.astype(int), len(values) - 2)
    share = (at - low)[:, None]
    return values[low] * (1 - share) + values[low + 1] * share
