"""Connected blobs of a picture: what stands out from the background, piece by piece."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from internvlu_jax.small_world.scenes.render import Box

Mask = Bool[np.ndarray, "y x"]
Plane = Float[np.ndarray, "y x"]


@dataclass(frozen=True, eq=False)
class Blob:
    """One blob cut out of the picture. shares: how much of each pixel it covers; row, column: of the first.
    even: whether it has one colour."""

    colour: str | None
    shares: Plane
    row: int
    column: int
    box: Box
    even: bool


def labels(mask: Mask) -> tuple[Int[np.ndarray, "y x"], int]:
    """Numbers 1, 2, ... of the blobs whose pixels touch at sides or corners, 0 elsewhere; and how many there are.

    The blob of each row's runs is joined with the blobs of the runs above that they touch.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    edges = np.diff(padded, axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    blob_of = list(range(len(rows)))
    members = [[n] for n in blob_of]
    runs = list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))
    first = np.searchsorted(rows, np.arange(height + 1)).tolist()
    for n, (row, start, stop) in enumerate(runs):
        for m in range(first[row - 1], first[row]) if row else ():
            kept, joined = blob_of[m], blob_of[n]
            if runs[m][1] <= stop and start <= runs[m][2] and kept != joined:
                members[kept] += members[joined]
                for k in members[joined]:
                    blob_of[k] = kept
    names: dict[int, int] = {}
    numbers = np.zeros((height, width), np.int32)
    for n, (row, start, stop) in enumerate(runs):
        numbers[row, start:stop] = names.setdefault(blob_of[n], len(names) + 1)
    return numbers, len(names)


def eroded(mask: Mask) -> Mask:
    """The pixels all of whose eight neighbours are in the mask as well."""
    padded = np.pad(mask, 1)
    across = padded[:, :-2] & padded[:, 1:-1] & padded[:, 2:]
    return across[:-2] & across[1:-1] & across[2:]


def dilated(mask: Mask) -> Mask:
    """The mask and its neighbours."""
    padded = np.pad(mask, 1)
    across = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return across[:-2] | across[1:-1] | across[2:]


def smoothed(plane: Plane, sigma: float) -> Plane:
    """A Gaussian blur of so many pixels, the plane taken as 0 outside."""
    reach = math.ceil(3 * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    down, across = (_banded(size, tuple(weights / np.sum(weights))) for size in plane.shape)
    return down @ plane @ across


@lru_cache(256)
def _banded(size: int, weights: tuple[float, ...]) -> Plane:
    """The matrix that convolves so many values."""
    reach = len(weights) // 2
    distance = np.arange(size)[:, None] - np.arange(size)
    return np.where(np.abs(distance) <= reach, np.array(weights)[np.clip(distance + reach, 0, 2 * reach)], 0.0)
