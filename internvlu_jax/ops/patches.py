"""Pictures to tokens and back, and the position table for another grid. Pictures keep their channels last."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

# Of the cubic kernel; the released code resamples its position table with this one.
_CUBIC_A = -0.75


def patchify(x: Float[Array, "b y x c"], patch: int) -> Float[Array, "b s d"]:
    """Cuts a picture into patch x patch squares, row by row; the entries of a token are ordered (c p q).

    Raises ValueError if a side is not a multiple of `patch`.
    """
    if x.shape[1] % patch or x.shape[2] % patch:
        raise ValueError(f"picture of {x.shape[1]}x{x.shape[2]} does not divide into {patch}x{patch} patches")
    return rearrange(x, "b (y p) (x q) c -> b (y x) (c p q)", p=patch, q=patch)


def unpatchify(tokens: Float[Array, "b s d"], grid: tuple[int, int], patch: int) -> Float[Array, "b y x c"]:
    """The inverse of `patchify`; `grid` is (rows, columns) in patches."""
    rows, columns = grid
    return rearrange(tokens, "b (y x) (c p q) -> b (y p) (x q) c", y=rows, x=columns, p=patch, q=patch)


def pixel_shuffle(x: Float[Array, "b y x c"], factor: int) -> Float[Array, "b p q d"]:
    """Gathers factor x factor neighbours into one token of c * factor^2 channels ("v2" of the released code).

    For factor 2, channel i of the neighbour at row parity r and column parity s becomes channel (2 r + s) c + i.
    """
    return rearrange(x, "b (y p) (x q) c -> b y x (p q c)", p=factor, q=factor)


def interpolate_positions(table: Float[Array, "s d"], grid: tuple[int, int]) -> Float[Array, "t d"]:
    """Resamples the position table of a square grid to `grid` (rows, columns) by bicubic interpolation, in float32.

    Corners are not aligned, and beyond the border the outermost entry repeats. The table comes back as it is if the
    grid is its own. Raises ValueError if the table is not that of a square grid.
    """
    side = round(table.shape[0] ** 0.5)
    if side * side != table.shape[0]:
        raise ValueError(f"position table of {table.shape[0]} entries is not that of a square grid")
    if grid == (side, side):
        return table
    square = rearrange(table.astype(jnp.float32), "(y x) d -> y x d", y=side)
    rows, columns = (_cubic_weights(side, size) for size in grid)
    resampled = jnp.einsum("Yy,Xx,yxd->YXd", rows, columns, square)
    return rearrange(resampled, "y x d -> (y x) d").astype(table.dtype)


def _cubic_weights(size: int, new_size: int) -> np.ndarray:
    """Row i holds the weights of the old entries in new entry i: float32 [new_size, size]."""
    centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((new_size, size))
    for offset in range(4):
        source = first + offset
        np.add.at(weights, (np.arange(new_size), np.clip(source, 0, size - 1)), _cubic(centres - source))
    return weights.astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981, equation 15 with a free parameter)."""
    x, a = np.abs(distance), _CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
