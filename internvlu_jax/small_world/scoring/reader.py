"""A picture read back into what it shows, by plain image processing: no model judges another.

1. The background is the median colour along the edge of the picture.
2. What differs from it falls into blobs. The middle of a blob says its colour, and with that the share of every pixel
   that the blob covers, p = background + share (colour - background).
3. Each kind of shape is drawn with the blob's area and centroid, in three degrees of sharpness, and compared with those
   shares (their smaller sum over their larger one, both slightly blurred). The best kind has to fit well, and clearly
   better than the next.
4. Blobs of one colour that are no shapes are tried as letters of a word. What is left is malformed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

from internvlu_jax.small_world.scenes.layout import box_at
from internvlu_jax.small_world.scenes.render import FULL, shape_counts
from internvlu_jax.small_world.scenes.scene import BACKGROUNDS, COLOURS, SIZES
from internvlu_jax.small_world.scenes.shapes import KINDS, measures
from internvlu_jax.small_world.scoring.blobs import Blob, Mask, Plane, dilated, eroded, labels, smoothed
from internvlu_jax.small_world.scoring.lettering import read_words
from internvlu_jax.small_world.scoring.reading import Reading, ReadItem

OUT = 45.0
"""Difference of colour, in levels, from which on a pixel is not background."""

FIT = 0.92
"""Least agreement of a blob with a shape, 0 to 1. A pentagon agrees with a circle to 0.915."""

LEAD = 0.06
"""By which the best shape has to be better than the next. Halfway between two shapes it is 0."""

_READ_AT = 64  # pixels a side; larger pictures are read smaller
_LEAST_SIDE = 48  # pixels; in smaller pictures letters run together
_COLOUR = {True: 75.0, False: 50.0}  # levels that the colour of a stroke, and of a wider blob, may be off
_EVEN, _SPREAD = 0.95, 60.0  # share of the pixels in the middle of a blob that are within so many levels of its colour
_BACKGROUND = 40.0
_SPECK = 6 / 4096  # share of the picture below which a blob is noise
_LEAST, _MOST = 0.75 * min(SIZES.values()), 1.3 * max(SIZES.values())
_LARGE = math.sqrt(min(SIZES.values()) * max(SIZES.values()))
_PAD = 3
_BLUR = 0.9  # pixels, of blobs before they are compared
_TEMPLATE_BLURS = (0.9, 1.15, 1.4)  # of shapes: what comes of a sharp, a slightly blurred and a more blurred picture
_MIXED = {True: 0.65, False: 0.85}  # least share of its colour in the middle of a stroke, and of a wider blob


def read(picture: UInt8[np.ndarray, "y x 3"], kinds: tuple[str, ...] = KINDS) -> Reading:
    """What the picture shows; shapes are those of `kinds`.

    Raises:
        ValueError: the picture is not square, or has under 48 pixels a side.
    """
    side = picture.shape[0]
    if picture.shape[1] != side or side < _LEAST_SIDE:
        raise ValueError(
            f"the picture has {side} x {picture.shape[1]} pixels; expected a square of at least {_LEAST_SIDE}"
        )
    pixels = _at_reading_size(picture)
    background = _background(pixels)
    blobs = _blobs(pixels, background)
    items = [_item(blob, len(pixels), kinds) for blob in blobs]
    others = [blob for blob, item in zip(blobs, items, strict=True) if item is None]
    words, malformed = read_words(others, len(pixels))
    name = _nearest(background, BACKGROUNDS, _BACKGROUND)
    return Reading(tuple(item for item in items if item is not None), name, tuple(words), tuple(malformed))


def _at_reading_size(picture: np.ndarray) -> Float[np.ndarray, "y x 3"]:
    """The picture at its own size, or the mean colours of the pixels that a larger one has for each."""
    side = len(picture)
    if side <= _READ_AT:
        return picture.astype(float)
    means = _area_means(side)
    return np.einsum("ya,abc,xb->yxc", means, picture, means, optimize=True)


@lru_cache(16)
def _area_means(side: int) -> Plane:
    """By how much each of so many pixels counts for each at the reading size; Pillow's filter is not exact here."""
    edges = np.arange(_READ_AT + 1)[:, None] * side / _READ_AT
    covered = np.clip(edges - np.arange(side), 0, 1)
    return np.diff(covered, axis=0) * _READ_AT / side


def _background(pixels: np.ndarray) -> Float[np.ndarray, "3"]:
    ring = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    return np.median(ring, axis=0)


def _colour_name(colour: np.ndarray, background: np.ndarray, stroke: bool) -> str | None:
    """The colour of objects that this may be, with some of the background mixed in."""
    distances, least = {}, _MIXED[stroke]
    for name, value in COLOURS.items():
        towards = np.array(value) - background
        share = np.clip((colour - background) @ towards / max(float(towards @ towards), 1.0), least, 1)
        distances[name] = float(np.linalg.norm(colour - background - share * towards))
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] <= _COLOUR[stroke] else None


def _nearest(colour: np.ndarray, names: Mapping[str, tuple[int, int, int]], limit: float) -> str | None:
    distances = {name: float(np.linalg.norm(colour - np.array(value))) for name, value in names.items()}
    best = min(distances, key=distances.__getitem__)
    return best if distances[best] <= limit else None


def _blobs(pixels: np.ndarray, background: np.ndarray) -> list[Blob]:
    difference = np.linalg.norm(pixels - background, axis=2)
    numbered, count = labels(difference > OUT)
    blobs = []
    for number in range(1, count + 1):
        mask = numbered == number
        if np.sum(mask) >= _SPECK * mask.size:
            blobs.append(_blob(pixels, background, difference, mask, numbered))
    return blobs


def _blob(pixels: np.ndarray, background: np.ndarray, difference: Plane, mask: Mask, numbered: np.ndarray) -> Blob:
    side = len(pixels)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, right, bottom = (int(edge) for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    box = (left / side, top / side, right / side, bottom / side)
    top, left = max(top - _PAD, 0), max(left - _PAD, 0)
    cut = np.s_[top : bottom + _PAD, left : right + _PAD]
    # the fringe of a dark blob differs from the background as much as the middle of a light one
    inner = eroded(mask[cut] & (difference[cut] >= 0.6 * np.quantile(difference[mask], 0.9)))
    stroke = bool(np.sum(inner) < 0.1 * np.sum(mask))
    if stroke:  # of a letter, which has no middle
        inner = mask[cut] & (difference[cut] >= np.quantile(difference[mask], 0.8))
    middle = pixels[cut][inner]
    core = np.median(middle, axis=0)
    even = bool(np.mean(np.linalg.norm(middle - core, axis=1) < _SPREAD) >= _EVEN)
    towards = core - background
    shares = np.clip((pixels[cut] - background) @ towards / float(towards @ towards), -0.25, 1)
    others = (numbered[cut] > 0) & ~mask[cut]
    shares = np.where(dilated(others), 0.0, shares)
    # further out than one pixel from the blob there is nothing of it, only noise
    shares = np.where(dilated(dilated(mask[cut])), shares, 0.0)
    return Blob(_colour_name(core, background, stroke), shares, top, left, box, even)


def _item(blob: Blob, side: int, kinds: tuple[str, ...]) -> ReadItem | None:
    """The blob as an object, if it is one."""
    if blob.colour is None or not blob.even:
        return None
    shares = blob.shares
    area = float(np.sum(shares))
    y = float(np.sum(shares.sum(1) * (np.arange(shares.shape[0]) + 0.5))) / area
    x = float(np.sum(shares.sum(0) * (np.arange(shares.shape[1]) + 0.5))) / area
    blurred = np.maximum(smoothed(np.pad(shares, 2), _BLUR), 0)
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
    size = "large" if radius > _LARGE else "small"
    box = box_at(middle, (half[0] * radius, half[1] * radius))
    return ReadItem(kind, blob.colour, size, *middle, radius, box, fit)


def _agreement(blurred: Plane, kind: str, radius: float, x: float, y: float) -> float:
    """Smaller over larger sum of two planes: the blob, and the shape with its centroid at x, y.

    Of the shape's degrees of sharpness the best counts.
    """
    centroid = measures(kind)[1]
    radius = round(radius * 8) / 8
    x, y = (round((v - c * radius) * 4) / 4 for v, c in zip((x, y), centroid, strict=True))
    shapes, reach = _templates(kind, radius, x % 1, y % 1)
    drawn = np.zeros((len(shapes), *blurred.shape))
    top, left = math.floor(y) - reach[1], math.floor(x) - reach[0]
    rows, columns = (_overlap(*ends) for ends in zip((top, left), shapes.shape[1:], blurred.shape, strict=True))
    inside = shapes[:, rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
    drawn[:, rows[0] : rows[1], columns[0] : columns[1]] = inside
    missed = np.sum(shapes, (1, 2)) - np.sum(drawn, (1, 2))  # of the shape, outside the cut
    smaller = np.sum(np.minimum(blurred, drawn), (1, 2))
    return float(np.max(smaller / (np.sum(np.maximum(blurred, drawn), (1, 2)) + missed)))


def _overlap(start: int, length: int, size: int) -> tuple[int, int]:
    return max(start, 0), max(min(start + length, size), max(start, 0))


@lru_cache(16384)
def _templates(kind: str, radius: float, x: float, y: float) -> tuple[Float[np.ndarray, "n y x"], tuple[int, int]]:
    """The shape with its middle at x, y of a pixel, blurred more or less, and the pixels left of and above that one."""
    counts, reach = shape_counts(kind, radius, x, y)
    padded = np.pad(counts / FULL, 3)
    return np.stack([smoothed(padded, sigma) for sigma in _TEMPLATE_BLURS]), (reach[0] + 3, reach[1] + 3)
