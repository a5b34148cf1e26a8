"""Aspect-ratio buckets: the few sizes at which pictures are drawn in training, so that every batch has one shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Size = tuple[int, int]
"""Height and width in pixels."""

_STEP = 4 / 3  # between the ratios of neighbouring buckets, at most


@lru_cache
def buckets(side: int, max_aspect: float, multiple: int) -> tuple[Size, ...]:
    """Sizes in multiples of `multiple` with an area of at most side^2 and ratios of at most `max_aspect` either way.

    The ratios are about evenly spread in their logarithm, as far as the multiples allow.

    Raises:
        ValueError: `side` is below `multiple`, or the narrowest bucket would be.
    """
    count = math.ceil(math.log(max_aspect) / math.log(_STEP) - 1e-9)
    ratios = [max_aspect ** (k / count) for k in range(-count, count + 1)] if count else [1.0]
    sizes = dict.fromkeys(_bucket(side, ratio, max_aspect, multiple) for ratio in ratios)
    if min(min(size) for size in sizes) < multiple:
        raise ValueError(
            f"data.sides has {side}: with aspect ratios up to {max_aspect:g} a picture would be narrower than the "
            f"{multiple} pixels of one token; ask for a larger side or a smaller data.max_aspect"
        )
    return tuple(sizes)


def _bucket(side: int, ratio: float, max_aspect: float, multiple: int) -> Size:
    height, width = (_floor(side * math.sqrt(r), multiple) for r in (ratio, 1 / ratio))
    # rounding down the shorter side may have made it too short for the longer
    return min(height, _floor(width * max_aspect, multiple)), min(width, _floor(height * max_aspect, multiple))


def _floor(value: float, multiple: int) -> int:
    return math.floor(value / multiple + 1e-6) * multiple


def choose(size: Size, sides: Sequence[int], max_aspect: float, multiple: int) -> Size:
    """The bucket of a picture: of the largest side whose square has no more pixels than what `max_aspect` leaves of it,
    else of the smallest; then the nearest ratio."""
    height, width = size
    kept = min(height, width * max_aspect) * min(width, height * max_aspect)
    fitting = [side for side in sides if side * side <= kept]
    options = buckets(max(fitting, default=min(sides)), max_aspect, multiple)
    return min(options, key=lambda o: abs(math.log(o[0] / o[1]) - math.log(height / width)))


def fit(picture: UInt8[np.ndarray, "y x 3"], size: Size) -> UInt8[np.ndarray, "p q 3"]:
    """The picture resized (bicubic) to cover `size`, and what hangs over cut off evenly on both sides."""
    height, width = picture.shape[:2]
    scale = min(height / size[0], width / size[1])
    kept_height, kept_width = size[0] * scale, size[1] * scale
    top, left = (height - kept_height) / 2, (width - kept_width) / 2
    # rounding may put an edge a hair outside the picture, which Pillow refuses
    box = (max(left, 0), max(top, 0), min(left + kept_width, width), min(top + kept_height, height))
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box))
