"""Positions of the generation head's tokens for MSRoPE (InternVL-U, arXiv 2603.09877, and its released code).

Every token has a position (frame, row, column), made here on the host; `ops.msrope` makes rotary tables of them.

* A picture of y x x tokens has its rows and columns centred at 0: `-(y - y//2) .. y//2 - 1`, and the same for columns.
  The noisy latents are frame 0, condition pictures are frames 1, 2, ...
* A text token has one number on all three axes. Counting starts at `int(largest coordinate of the latents) + 1`.
* A block of visual tokens inside the context has the current text number as its frame and its own centred rows and
  columns; the count goes on at `int(largest coordinate of the block) + 1`.

Position interpolation with factor s stretches the centred range by 1/s, see `_centred`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Grid = tuple[int, int]
"""Rows and columns of a picture, in tokens or in latents."""

Runs = list[tuple[bool, int]]
"""Stretches of a context from left to right: (is one tile's visual tokens, length)."""


def msrope_positions(
    grid: Grid,
    context_runs: Sequence[tuple[bool, int]],
    *,
    condition_grids: Sequence[Grid] = (),
    visual_grids: Sequence[Grid] = (),
    latent_scale: float = 1.0,
    visual_scale: float = 1.0,
) -> Float[np.ndarray, "s 3"]:
    """Positions of one sample's tokens in the head's order: noisy latents, condition pictures, context.

    context_runs: (is_visual, length) of the context from left to right; the n-th visual run is a picture of
        `visual_grids[n]` tokens.
    latent_scale, visual_scale: interpolation factors of latents and of visual tokens in the context.

    Raises ValueError if the visual runs and `visual_grids` do not fit together.
    """
    pictures = [_picture(frame, size, latent_scale) for frame, size in enumerate((grid, *condition_grids))]
    image = np.concatenate(pictures)
    return np.concatenate([image, _context(_next_number(image), context_runs, visual_grids, visual_scale)])


def _centred(size: int, scale: float) -> np.ndarray:
    """Coordinates of `size` tokens around 0, float32.

    With factor s the range [-n, p - 1], n = size - size//2 and p = size//2, is mapped linearly to
    [-int(n/s), int(p/s) - 1].
    """
    below, above = size - size // 2, size // 2
    index = np.arange(size, dtype=np.float32)
    if scale == 1.0 or size == 1:
        return index - np.float32(below)
    low, high = -int(below / scale), int(above / scale) - 1
    return np.float32(low) + index * np.float32(high - low) / np.float32(size - 1)


def _picture(frame: int, grid: Grid, scale: float) -> np.ndarray:
    """Positions of a picture's tokens, row by row: float32 [y*x, 3]."""
    rows, columns = (_centred(size, scale) for size in grid)
    out = np.empty((*grid, 3), np.float32)
    out[..., 0] = frame
    out[..., 1] = rows[:, None]
    out[..., 2] = columns
    return out.reshape(-1, 3)


def _text(first: int, length: int) -> np.ndarray:
    return np.repeat(np.arange(first, first + length, dtype=np.float32)[:, None], 3, axis=1)


def _next_number(positions: np.ndarray) -> int:
    """The first text number after a block of pictures."""
    return int(positions.max()) + 1


def _context(
    number: int, runs: Sequence[tuple[bool, int]], grids: Sequence[Grid], scale: float
) -> Float[np.ndarray, "t 3"]:
    sizes = [length for is_visual, length in runs if is_visual]
    if sizes != [rows * columns for rows, columns in grids]:
        raise ValueError(f"visual runs of {sizes} tokens do not fit visual grids {list(grids)}")
    blocks = [np.zeros((0, 3), np.float32)]
    remaining = iter(grids)
    for is_visual, length in runs:
        block = _picture(number, next(remaining), scale) if is_visual else _text(number, length)
        number = _next_number(block) if is_visual else number + length
        blocks.append(block)
    return np.concatenate(blocks)
