"""Shapes, words and regions as pixels, anti-aliased: the samples of each pixel that lie inside are counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, UInt8

from internvlu_jax.small_world.scenes.letters import word_cells
from internvlu_jax.small_world.scenes.shapes import extent, inside

SAMPLES = 4
"""Samples of a pixel along each axis."""

FULL = SAMPLES * SAMPLES
Counts = UInt8[np.ndarray, "h w"]
"""How many of a pixel's samples are covered, 0 to FULL."""
Picture = UInt8[np.ndarray, "y x 3"]
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def canvas(side: int, background: Colour) -> Picture:
    """An empty picture, `side` by `side` pixels.

    Raises:
        ValueError: side is under 8.
    """
    if side < 8:
        raise ValueError(f"side is {side}; expected at least 8 pixels")
    picture = np.empty((side, side, 3), np.uint8)
    picture[:] = background
    return picture


def paint_shape(
    picture: Picture, kind: str, radius: float, place: tuple[float, float], under: Colour, over: Colour
) -> None:
    """Draws a shape of a colour over a background; no pixel outside its outline changes.

    Args:
        radius, place: in sides of the picture; the place is the middle of the shape's box.
    """
    side = len(picture)
    x, y = place[0] * side, place[1] * side
    column, row = math.floor(x), math.floor(y)
    counts, reach = shape_counts(kind, radius * side, x - column, y - row)
    _paint(picture, counts, row - reach[1], column - reach[0], under, over)


def paint_word(picture: Picture, text: str, box: Box, under: Colour, over: Colour) -> None:
    """Draws a word that fills the box, which is in sides of the picture."""
    _paint(picture, *_cell_counts(word_cells(text), box, len(picture)), under, over)


def paint_cells(picture: Picture, cells: Bool[np.ndarray, "h w"], box: Box, over: Colour) -> None:
    """Draws cells that fill the box, which is in sides of the picture, over whatever is there."""
    _blend(picture, *_cell_counts(cells, box, len(picture)), over)


def paint_region(
    picture: Picture, box: Box, covers: Callable[[np.ndarray, np.ndarray], np.ndarray], over: Colour
) -> None:
    """Draws what lies in a region over whatever is there.

    Args:
        box: around the region, in sides of the picture.
        covers: from a row of x and a column of y, in sides, to whether the points are in the region.
    """
    side = len(picture)
    left, top = (max(math.floor(edge * side), 0) for edge in box[:2])
    right, bottom = (min(math.ceil(edge * side), side) for edge in box[2:])
    if left < right and top < bottom:
        x, y = (
            (np.arange(a * SAMPLES, b * SAMPLES) + 0.5) / (SAMPLES * side) for a, b in ((left, right), (top, bottom))
        )
        _blend(picture, _counts(covers(x[None, :], y[:, None])), top, left, over)


@lru_cache(1024)
def shape_counts(kind: str, radius: float, x: float, y: float) -> tuple[Counts, tuple[int, int]]:
    """Covered samples around a shape whose middle is at x, y (0 to 1) of a pixel, and the pixels left of and above it.

    Args:
        radius: in pixels.
    """
    half = extent(kind, radius)
    reach = (math.ceil(half[0]) + 1, math.ceil(half[1]) + 1)
    across, down = (
        (((np.arange((2 * n + 1) * SAMPLES) + 0.5) / SAMPLES - n) - middle) / radius
        for n, middle in zip(reach, (x, y), strict=True)
    )
    return _counts(inside(kind, *np.broadcast_arrays(across[None, :], down[:, None]))), reach


def _cell_counts(cells: Bool[np.ndarray, "a b"], box: Box, side: int) -> tuple[Counts, int, int]:
    """Covered samples of cells that fill the box, and the first row and column of pixels."""
    left, top, right, bottom = (edge * side for edge in box)
    columns, across, column = _cells_along(left, right, cells.shape[1])
    rows, down, row = _cells_along(top, bottom, cells.shape[0])
    filled = cells[np.clip(rows, 0, cells.shape[0] - 1)][:, np.clip(columns, 0, cells.shape[1] - 1)]
    return _counts(filled & down[:, None] & across), row, column


def _cells_along(low: float, high: float, cells: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Along one axis: the cell of each sample, whether it is in the word at all, and the first pixel."""
    start = math.floor(low)
    pixels = math.ceil(high) - start
    samples = start + (np.arange(pixels * SAMPLES) + 0.5) / SAMPLES
    cell = np.floor((samples - low) / ((high - low) / cells) + 1e-9).astype(int)
    return cell, (samples > low) & (samples < high), start


def _counts(covered: np.ndarray) -> Counts:
    height, width = covered.shape[0] // SAMPLES, covered.shape[1] // SAMPLES
    return covered.reshape(height, SAMPLES, width, SAMPLES).sum((1, 3), dtype=np.uint8)


def _paint(picture: Picture, counts: Counts, row: int, column: int, under: Colour, over: Colour) -> None:
    """Colours what is covered, on a plain background."""
    view, counts = _overlap(picture, counts, row, column)
    np.copyto(view, _mixtures(under, over)[counts], where=(counts > 0)[:, :, None])


def _blend(picture: Picture, counts: Counts, row: int, column: int, over: Colour) -> None:
    """Colours what is covered, whatever is below."""
    view, counts = _overlap(picture, counts, row, column)
    share = counts[:, :, None].astype(np.uint32)
    view[:] = (view * (FULL - share) + np.array(over, np.uint32) * share + FULL // 2) // FULL


def _overlap(
    picture: Picture, counts: Counts, row: int, column: int
) -> tuple[UInt8[np.ndarray, "a b 3"], UInt8[np.ndarray, "a b"]]:
    """The pixels around what is covered; whatever reaches over the picture's edge is cut off."""
    top, left = max(row, 0), max(column, 0)
    counts = counts[top - row : picture.shape[0] - row, left - column : picture.shape[1] - column]
    return picture[top : top + counts.shape[0], left : left + counts.shape[1]], counts


@lru_cache(1024)
def _mixtures(under: Colour, over: Colour) -> UInt8[np.ndarray, "n 3"]:
    """The colour of a pixel by its covered samples."""
    share = np.arange(FULL + 1)[:, None]
    return ((np.array(under) * (FULL - share) + np.array(over) * share + FULL // 2) // FULL).astype(np.uint8)
