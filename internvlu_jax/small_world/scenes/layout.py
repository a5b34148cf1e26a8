"""Places for objects: apart from each other, from a word, and from the picture's edge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from internvlu_jax.small_world.scenes.render import Box

GAP = 3.5 / 64
"""Free space between the boxes of two objects."""

MARGIN = 2 / 64
"""Free space between a box and the picture's edge."""

Half = tuple[float, float]
"""Half the width and height of a box."""
Place = tuple[float, float]


class NoPlaceError(ValueError):
    """Nothing fits."""


def box_at(place: Place, half: Half) -> Box:
    return place[0] - half[0], place[1] - half[1], place[0] + half[0], place[1] + half[1]


def apart(a: Box, b: Box) -> bool:
    """Whether the boxes leave the gap between them."""
    return a[0] >= b[2] + GAP or b[0] >= a[2] + GAP or a[1] >= b[3] + GAP or b[1] >= a[3] + GAP


def fits(place: Place, half: Half, taken: Sequence[Box]) -> bool:
    """Whether a box may be there."""
    box = box_at(place, half)
    inside = min(box[0], box[1]) >= MARGIN and max(box[2], box[3]) <= 1 - MARGIN
    return inside and all(apart(box, other) for other in taken)


def free_place(half: Half, taken: Sequence[Box], grid: int, rng: np.random.Generator, tries: int = 40) -> Place:
    """A place for one more box, uniform over those that there are: multiples of 1 / grid.

    Raises:
        NoPlaceError: none was found.
    """
    lows, highs = _ends(half, grid)
    if any(low > high for low, high in zip(lows, highs, strict=True)):
        raise NoPlaceError(f"a box of half width and height {half} does not fit into the picture")
    xs = rng.integers(lows[0], highs[0] + 1, tries)
    ys = rng.integers(lows[1], highs[1] + 1, tries)
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        if fits((x / grid, y / grid), half, taken):
            return x / grid, y / grid
    raise NoPlaceError(f"there is no place for a box of half width and height {half} among {len(taken)}")


def free_places(
    halves: Sequence[Half], taken: Sequence[Box], grid: int, rng: np.random.Generator, tries: int = 12
) -> list[Place]:
    """Places for all of them.

    Raises:
        NoPlaceError: none were found.
    """
    for _ in range(tries):
        boxes, places = list(taken), []
        try:
            for half in halves:
                places.append(free_place(half, boxes, grid, rng))
                boxes.append(box_at(places[-1], half))
        except NoPlaceError:
            continue
        return places
    raise NoPlaceError(f"{len(halves)} boxes do not fit among {len(taken)}")


def edge_place(place: Place, half: Half, grid: int, side: str) -> Place:
    """The place moved straight to an edge, or into a corner: left, right, top, bottom, or two of them."""
    x, y = place
    lows, highs = ([end / grid for end in ends] for ends in _ends(half, grid))
    x = lows[0] if "left" in side else highs[0] if "right" in side else x
    y = lows[1] if "top" in side else highs[1] if "bottom" in side else y
    return x, y


def _ends(half: Half, grid: int) -> tuple[list[int], list[int]]:
    """The first and the last place along each axis, in steps of the grid."""
    lows = [math.ceil((h + MARGIN) * grid - 1e-9) for h in half]
    highs = [math.floor((1 - MARGIN - h) * grid + 1e-9) for h in half]
    return lows, highs
