"""A picture read back into what it shows, by plain image processing: no model judges another.

1. The background is the median colour along the edge of the picture.
2. What differs from it falls into blobs. The middle of a blob says its colour, and with that the share of every pixel
   that the blob covers, p = background + share (colour - background).
3. Each kind of shape is drawn with the blob's area and centroid and compared with those shares (their smaller sum over
   their larger one, both slightly blurred). The best kind has to fit well, and better than the next.
4. Blobs of one colour that are no shapes are tried as letters of a word. What is left is malformed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from internvlu_jax.data.world.render import FULL, shape_counts
from internvlu_jax.data.world.scene import BACKGROUNDS, COLOURS, SIZES, Box
from internvlu_jax.data.world.shapes import KINDS, measures
from internvlu_jax.evaluation.blobs import Mask, Plane, dilated, eroded, labels, smoothed

OUT = 45.0
"""Difference of colour, in levels, from which on a pixel is not background."""

FIT = 0.87
"""Least agreement of a blob with a shape, 0 to 1."""

LEAD = 0.02
"""By which the best shape has to be better than the next."""

_READ_AT = 64  # pixels a side; larger pictures are read smaller
_COLOUR = 75.0  # levels that a blob's colour may be away from its name
_BACKGROUND = 40.0
_SPECK = 6 / 4096  # share of the picture below which a blob is noise
_LEAST, _MOST = 0.75 * min(SIZES.values()), 1.3 * max(SIZES.values())
_LARGE = math.sqrt(min(SIZES.values()) * max(SIZES.values()))
_PAD = 3


@dataclass(frozen=True)
class Found:
    """An object; x, y is the middle of its box, and all lengths are fractions of the side. fit: see `FIT`."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    box: Box
    fit: float


@dataclass(frozen=True)
class FoundWord:
    """A word; letters that could not be read are "?"."""

    text: str
    colour: str
    x: float
    y: float
    box: Box


@dataclass(frozen=True)
class Reading:
    """What a picture shows. background: None is a colour without a name. malformed: boxes of what is no object."""

    items: tuple[Found, ...]
    background: str | None
    words: tuple[FoundWord, ...] = ()
    malformed: tuple[Box, ...] = ()


@dataclass(frozen=True, eq=False)
class Blob:
    """One blob cut out of the picture. shares: how much of each pixel it covers; row, column: of their first pixel."""

    colour: str | None
    shares: Plane
    row: int
    column: int
    box: Box
    even: bool = field(default=True)


def read(picture: UInt8[np.ndarray, "y x 3"], kinds: tuple[str, ...] = KINDS) -> Reading:
    """What the picture shows; shapes are those of `kinds`.

    Raises:
        ValueError: the picture is not square, or has under 32 pixels a side.
    """
    from internvlu_jax.evaluation.lettering import read_words

    side = picture.shape[0]
    if picture.shape[1] != side or side < 32:
        raise ValueError(f"the picture has {side} x {picture.shape[1]} pixels; expected a square of at least 32")
    pixels = _at_reading_size(picture)
    background = _background(pixels)
    items, others = [], []
    for blob in _blobs(pixels, background):
        item = _item(blob, len(pixels), kinds)
        (items if item else others).append(item or blob)  # type: ignore[arg-type]
    words, malformed = read_words([blob for blob in others if isinstance(blob, Blob)], len(pixels))
    name = _nearest(background, BACKGROUNDS, _BACKGROUND)
    return Reading(tuple(i for i in items if isinstance(i, Found)), name, tuple(words), tuple(malformed))


def _at_reading_size(picture: np.ndarray) -> Float[np.ndarray, "y x 3"]:
    side = len(picture)
    if side > _READ_AT:
        image = Image.fromarray(picture).resize((_READ_AT, _READ_AT), Image.Resampling.BOX)
        picture = np.asarray(image)
    return picture.astype(np.float32)


def _background(pixels: np.ndarray) -> Float[np.ndarray, "3"]:
    ring = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    return np.median(ring, axis=0)


def _nearest(colour: np.ndarray, names: object, limit: float) -> str | None:
    assert isinstance(names, dict)
    distances = {name: float(np.linalg.norm(colour - np.array(value))) for name, value in names.items()}
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] <= limit else None


def _blobs(pixels: np.ndarray, background: np.ndarray) -> list[Blob]:
    difference = np.linalg.norm(pixels - background, axis=2)
    numbered, count = labels(difference > OUT)
    found = []
    for number in range(1, count + 1):
        mask = numbered == number
        if np.sum(mask) >= _SPECK * mask.size:
            found.append(_blob(pixels, background, difference, mask, numbered))
    return found


def _blob(pixels: np.ndarray, background: np.ndarray, difference: Plane, mask: Mask, numbered: np.ndarray) -> Blob:
    side = len(pixels)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (columns[0] / side, rows[0] / side, (columns[-1] + 1) / side, (rows[-1] + 1) / side)
    top, left = max(rows[0] - _PAD, 0), max(columns[0] - _PAD, 0)
    cut = np.s_[top : rows[-1] + 1 + _PAD, left : columns[-1] + 1 + _PAD]
    inner = eroded(mask[cut])
    if np.sum(inner) < 4:  # strokes of letters have no middle
        inner = mask[cut] & (difference[cut] >= np.quantile(difference[mask], 0.6))
    middle = pixels[cut][inner]
    core = np.median(middle, axis=0)
    even = bool(np.mean(np.linalg.norm(middle - core, axis=1) < _COLOUR) >= 0.85)
    towards = core - background
    shares = np.clip((pixels[cut] - background) @ towards / float(towards @ towards), 0, 1)
    others = (numbered[cut] > 0) & ~mask[cut]
    shares = np.where(dilated(others), 0.0, shares)
    # further out than one pixel from the blob there is nothing of it, only noise
    shares = np.where(dilated(dilated(mask[cut])), shares, 0.0)
    return Blob(_nearest(core, COLOURS, _COLOUR), shares, int(top), int(left), box, even)


def _item(blob: Blob, side: int, kinds: tuple[str, ...]) -> Found | None:
    """The blob as an object, if it is one."""
    if blob.colour is None or not blob.even:
        return None
    shares = blob.shares
    area = float(np.sum(shares))
    y = float(np.sum(shares.sum(1) * (np.arange(shares.shape[0]) + 0.5))) / area
    x = float(np.sum(shares.sum(0) * (np.arange(shares.shape[1]) + 0.5))) / area
    blurred = smoothed(np.pad(shares, 2))
    fits: list[tuple[float, str, float]] = []
    for kind in kinds:
        radius = math.sqrt(area / measures(kind)[0])
        if _LEAST * side <= radius <= _MOST * side:
            fits.append((_agreement(blurred, kind, radius, x + 2, y + 2), kind, radius))
    fits.sort(reverse=True)
    if not fits or fits[0][0] < FIT or (len(fits) > 1 and fits[0][0] - fits[1][0] < LEAD):
        return None
    fit, kind, radius = fits[0]
    _, centroid, half = measures(kind)
    middle = (blob.column + x - centroid[0] * radius) / side, (blob.row + y - centroid[1] * radius) / side
    radius /= side
    box = (middle[0] - half[0] * radius, middle[1] - half[1] * radius)
    box += (middle[0] + half[0] * radius, middle[1] + half[1] * radius)  # type: ignore[assignment]
    size = "large" if radius > _LARGE else "small"
    return Found(kind, blob.colour, size, middle[0], middle[1], radius, box, fit)  # type: ignore[arg-type]


def _agreement(blurred: Plane, kind: str, radius: float, x: float, y: float) -> float:
    """Smaller over larger sum of two planes: the blob, and the shape with its centroid at x, y."""
    centroid = measures(kind)[1]
    radius = round(radius * 8) / 8
    x, y = (round((v - c * radius) * 4) / 4 for v, c in zip((x, y), centroid, strict=True))
    shape, reach = _template(kind, radius, x % 1, y % 1)
    drawn = np.zeros_like(blurred)
    top, left = math.floor(y) - reach[1], math.floor(x) - reach[0]
    rows, columns = _overlap(top, shape.shape[0], len(drawn)), _overlap(left, shape.shape[1], drawn.shape[1])
    drawn[rows[0] : rows[1], columns[0] : columns[1]] = shape[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
    missed = float(np.sum(shape)) - float(np.sum(drawn))  # of the shape, outside the cut
    smaller = float(np.sum(np.minimum(blurred, drawn)))
    return smaller / (float(np.sum(np.maximum(blurred, drawn))) + missed)


def _overlap(start: int, length: int, size: int) -> tuple[int, int]:
    return max(start, 0), max(min(start + length, size), max(start, 0))


@lru_cache(16384)
def _template(kind: str, radius: float, x: float, y: float) -> tuple[Plane, tuple[int, int]]:
    """The blurred shape with its middle at x, y of a pixel, and the pixels left of and above that one."""
    counts, reach = shape_counts(kind, radius, x, y)
    return smoothed(np.pad(counts / FULL, 2)), (reach[0] + 2, reach[1] + 2)
