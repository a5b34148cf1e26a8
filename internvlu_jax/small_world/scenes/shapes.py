"""The kinds of objects as outlines, in units of an object's radius around the middle of its box."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from jaxtyping import Bool, Float

Points = Float[np.ndarray, "*p"]
_Inside = Callable[[np.ndarray, np.ndarray], np.ndarray]
_DENSE = 400  # points a side from which areas and centroids are measured


def _polygon(points: Sequence[tuple[float, float]]) -> _Inside:
    """The polygon, moved so that its box is centred."""
    middle = [(max(p[i] for p in points) + min(p[i] for p in points)) / 2 for i in (0, 1)]
    corners = [(x - middle[0], y - middle[1]) for x, y in points]
    return lambda x, y: in_polygon(corners, x, y)


def in_polygon(corners: Sequence[tuple[float, float]], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points lie inside, by the even-odd rule; x and y are broadcast."""
    odd = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)
    for (ax, ay), (bx, by) in itertools.pairwise([*corners, corners[0]]):
        if ay != by:
            odd ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return odd


def _spokes(count: int, radii: Sequence[float]) -> list[tuple[float, float]]:
    """Points at equal angles from straight up, their distances from the middle in turn."""
    angles = [2 * math.pi * n / count for n in range(count)]
    return [(radii[n % len(radii)] * math.sin(a), -radii[n % len(radii)] * math.cos(a)) for n, a in enumerate(angles)]


_T = 0.34  # half the width of a cross's arms
_CROSS = [
    (-_T, -1.0),
    (_T, -1.0),
    (_T, -_T),
    (1.0, -_T),
    (1.0, _T),
    (_T, _T),
    (_T, 1.0),
    (-_T, 1.0),
    (-_T, _T),
    (-1.0, _T),
    (-1.0, -_T),
    (-_T, -_T),
]

_KINDS: dict[str, _Inside] = {
    "circle": lambda x, y: x * x + y * y <= 1,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.9,
    "triangle": _polygon(_spokes(3, [1.2])),
    "star": _polygon(_spokes(10, [1.2, 0.52])),
    "diamond": lambda x, y: np.abs(x) / 0.8 + np.abs(y) / 1.2 <= 1,
    "cross": _polygon(_CROSS),
    "heart": lambda x, y: _heart(x * 1.2, 0.1 - y * 1.2),
    "ring": lambda x, y: (x * x + y * y <= 1.1) & (x * x + y * y >= 0.3),
}

KINDS = tuple(_KINDS)
"""All kinds of objects, in the order in which worlds take them up."""


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x * x + y * y - 1) ** 3 - x * x * y**3 <= 0


def inside(kind: str, x: Points, y: Points) -> Bool[np.ndarray, "*p"]:
    """Which points belong to the shape.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in _KINDS:
        raise ValueError(f"the kind is {kind!r}; expected one of {', '.join(KINDS)}")
    return _KINDS[kind](x, y)


@cache
def measures(kind: str) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Area, centroid (x, y) and half the box (x, y) of a shape of radius 1."""
    axis = (np.arange(_DENSE) + 0.5) / _DENSE * 3 - 1.5
    x, y = np.broadcast_arrays(axis[None, :], axis[:, None])
    covered = inside(kind, x, y)
    cell = (3 / _DENSE) ** 2
    half = tuple(float(np.max(np.abs(c[covered]))) + 1.5 / _DENSE for c in (x, y))
    return float(np.sum(covered)) * cell, (float(np.mean(x[covered])), float(np.mean(y[covered]))), (half[0], half[1])


def extent(kind: str, radius: float) -> tuple[float, float]:
    """Half the width and height of the box around the shape."""
    half = measures(kind)[2]
    return half[0] * radius, half[1] * radius
