"""Scenes, and what can go wrong with their pictures."""

import itertools
import time
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from internvlu_jax.small_world import World, WorldSource
from internvlu_jax.small_world.scenes.scene import Item, Scene
from internvlu_jax.small_world.scoring.reader import read
from internvlu_jax.small_world.scoring.reading import Reading

_TASKS = {"general/picture": 3.0, "general/edit": 1.0, "text/picture": 2.0, "text/edit": 1.0, "reasoning/direct": 1.0}


def scenes(world: World, count: int, seed: int, split: str = "seen") -> Iterator[Scene]:
    """Objects, words, and both together."""
    source = WorldSource(world, _TASKS, seed=seed, split=split)
    return (source.example(n).image for n in range(count))


def mismatch(scene: Scene, reading: Reading, reach: float = 0.02) -> str:
    """How the reading is not the scene; empty if it is. reach: in sides of the picture."""
    words = [(scene.word.text, scene.word.colour)] if scene.word else []
    if reading.malformed:
        return f"{scene}: malformed at {reading.malformed}"
    if [(word.text, word.colour) for word in reading.words] != words:
        return f"{scene}: words {reading.words}"
    if reading.background != scene.background:
        return f"{scene}: background {reading.background}"
    left = list(reading.items)
    for item in scene.items:
        same = [
            found
            for found in left
            if (found.kind, found.colour, found.size) == (item.kind, item.colour, item.size)
            and max(abs(found.x - item.x), abs(found.y - item.y)) <= reach
        ]
        if len(same) != 1:
            return f"{scene}: {item} is not among {left}"
        left.remove(same[0])
    return f"{scene}: also {left}" if left else ""


def misread(
    world: World, count: int, seed: int, split: str = "seen", side: int = 64, damage: tuple[float, float] = (0.0, 0.0)
) -> list[str]:
    """How the reading of each of so many pictures is not its scene, of those that are read wrongly.

    damage: blur and noise, see `corrupted`.
    """
    rng = np.random.default_rng(0)
    drawn = scenes(world, count, seed, split)
    texts = [mismatch(scene, read(corrupted(scene.draw(side), rng, *damage), world.kinds)) for scene in drawn]
    return [text for text in texts if text]


def readings(pictures: Sequence[np.ndarray], kinds: tuple[str, ...]) -> list[Reading]:
    return [read(picture, kinds) for picture in pictures]


def reading_rate(pictures: Sequence[np.ndarray], kinds: tuple[str, ...]) -> float:
    """Pictures a second, of processor time, once some have been read."""
    readings(pictures[:50], kinds)
    started = time.process_time()
    readings(pictures, kinds)
    return len(pictures) / (time.process_time() - started)


@cache
def _blurring(side: int, sigma: float) -> np.ndarray:
    """The matrix of a Gaussian blur that repeats the pixels of the edge."""
    taps = range(-4 * int(np.ceil(sigma)), 4 * int(np.ceil(sigma)) + 1)
    weights = np.exp([-(t**2) / (2 * sigma**2) for t in taps])
    matrix = np.zeros((side, side))
    for (t, weight), row in itertools.product(zip(taps, weights / weights.sum(), strict=True), range(side)):
        matrix[row, min(max(row + t, 0), side - 1)] += weight
    return matrix


def corrupted(picture: np.ndarray, rng: np.random.Generator, sigma: float = 0.0, noise: float = 0.0) -> np.ndarray:
    """sigma: of the blur, in pixels of a picture of 64; noise: in levels."""
    values = picture.astype(float)
    if sigma:
        matrix = _blurring(len(picture), sigma * len(picture) / 64)
        values = np.einsum("ya,abc,xb->yxc", matrix, values, matrix, optimize=True)
    if noise:
        values = values + rng.normal(0, noise, values.shape)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def alone(kind: str, size: str = "large", colour: str = "red", x: float = 0.5, y: float = 0.5) -> np.ndarray:
    """One object, as numbers to calculate with."""
    return Scene((Item(kind, colour, size, x, y),)).draw(64).astype(float)


def polygon(corners: int, radius: float, turn: float = 0.0, inner: float = 1.0) -> np.ndarray:
    """A regular polygon, or with `inner` a star, in the middle of a picture."""
    middle, fine = 32, 4
    angles = turn + 2 * np.pi * np.arange(corners) / corners
    radii = radius * np.where(np.arange(corners) % 2, inner, 1.0)
    points = [(middle + r * np.sin(a), middle - r * np.cos(a)) for r, a in zip(radii, angles, strict=True)]
    axis = (np.arange(64 * fine) + 0.5) / fine
    x, y = np.meshgrid(axis, axis)
    odd = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        crossed = (ay > y) != (by > y)
        odd ^= crossed & (x < (bx - ax) * (y - ay) / (by - ay + 1e-12) + ax)
    share = odd.reshape(64, fine, 64, fine).mean((1, 3))[:, :, None]
    return 255 - share * (255 - np.array((215, 25, 40)))
