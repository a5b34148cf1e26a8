"""Antialiased bicubic resizing of 8-bit pictures, bit for bit the fixed-point one that the model was trained with.

One axis at a time, horizontal first, each pass rounded and clipped to 8 bits. Output i of n from m inputs is a weighted
sum of the inputs around its centre, with s = m / n the scale, k the cubic kernel (a = -1/2) and w = max(s, 1):

    (1)  centre c_i = s (i + 1/2),   window  int(c_i - 2w + 1/2) <= j < int(c_i + 2w + 1/2), cut to the picture
    (2)  weight_ij  = k((j - c_i + 1/2) / w) / sum over the window,   in float64
    (3)  integer weight = round half away from zero(weight 2^p),  p the largest for which they fit 16 bits
    (4)  out_i = clip((sum_j integer weight * in_j + 2^(p-1)) >> p)

All sums stay far below 2^53, so float64 matrix products compute (4) exactly. The weight matrix is banded; it is applied
in blocks of neighbouring outputs, which read only the inputs they need.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from einops import rearrange
from jaxtyping import Float64, UInt8

_KERNEL_RADIUS = 2
# Outputs that share one matrix product: more wastes multiplications by zero, fewer wastes calls.
_BLOCK = 16
# The released fixed-point arithmetic accumulates in 32 bits and stops here; only a scale over 256 gets so far.
_MAX_PRECISION = 22


class Block(NamedTuple):
    """Neighbouring outputs of one axis: the inputs they read and their integer weights [out, in] (held as float64)."""

    inputs: slice
    weights: np.ndarray


def cubic_kernel(x: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel with a = -1/2 (Keys 1981, equation 15), zero outside |x| < 2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def axis_weights(size: int, out: int) -> tuple[Float64[np.ndarray, "n taps"], np.ndarray, np.ndarray]:
    """Normalised weights of equations (1) and (2): (weights, first input, number of inputs) of each output."""
    scale = size / out
    width = max(scale, 1.0)
    centre = scale * (np.arange(out) + 0.5)
    first = np.maximum((centre - _KERNEL_RADIUS * width + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + _KERNEL_RADIUS * width + 0.5).astype(np.int64), size)
    count = last - first
    tap = np.arange(count.max())
    weights = cubic_kernel((tap + first[:, None] - centre[:, None] + 0.5) / width)
    weights = np.where(tap < count[:, None], weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True), first, count


def precision(largest: float) -> int:
    """p of equation (3): the first from 0 up at which one bit more would overflow 16-bit weights."""
    for bits in range(_MAX_PRECISION):
        if int(0.5 + largest * 2 ** (bits + 1)) >= 2**15:
            return bits
    return _MAX_PRECISION


@lru_cache(maxsize=32)
def resize_plan(size: int, out: int) -> tuple[tuple[Block, ...], int]:
    """The matrix products that resize one axis from `size` to `out`, and p of equation (3)."""
    weights, first, count = axis_weights(size, out)
    p = precision(weights.max())
    scaled = weights * 2.0**p
    integers = np.trunc(scaled + np.copysign(0.5, scaled))
    blocks = []
    for start in range(0, out, _BLOCK):
        rows = slice(start, min(start + _BLOCK, out))
        low, high = first[start], (first + count)[rows].max()
        band = np.zeros((rows.stop - start, high - low))
        for i in range(start, rows.stop):
            offset = first[i] - low
            band[i - start, offset : offset + count[i]] = integers[i, : count[i]]
        blocks.append(Block(slice(low, high), band))
    return tuple(blocks), p


def _round(total: np.ndarray, p: int) -> np.ndarray:
    """Equation (4) from the sums on: rounding shift, then the 8-bit range."""
    return np.clip(np.floor((total + 0.5 * 2.0**p) / 2.0**p), 0, 255).astype(np.uint8)


def _resize_columns(planes: np.ndarray, out: int) -> np.ndarray:
    """[c y x] -> [c y out]."""
    channels, rows, size = planes.shape
    if size == out:
        return planes
    blocks, p = resize_plan(size, out)
    flat = planes.reshape(channels * rows, size)
    parts = [_round(flat[:, b.inputs].astype(np.float64) @ b.weights.T, p) for b in blocks]
    return np.concatenate(parts, axis=1).reshape(channels, rows, out)


def _resize_rows(planes: np.ndarray, out: int) -> np.ndarray:
    """[c y x] -> [c out x]."""
    size = planes.shape[1]
    if size == out:
        return planes
    blocks, p = resize_plan(size, out)
    parts = [_round(b.weights @ planes[:, b.inputs].astype(np.float64), p) for b in blocks]
    return np.concatenate(parts, axis=1)


def resize_bicubic(picture: UInt8[np.ndarray, "y x c"], height: int, width: int) -> UInt8[np.ndarray, "p q c"]:
    """Resizes 8-bit values to `height` x `width` pixels, antialiased where the picture shrinks (equations 1 to 4)."""
    planes = np.ascontiguousarray(rearrange(picture, "y x c -> c y x"))
    planes = _resize_rows(_resize_columns(planes, width), height)
    return np.ascontiguousarray(rearrange(planes, "c y x -> y x c"))
