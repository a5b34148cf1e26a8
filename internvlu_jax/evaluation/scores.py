"""Shares and means with their 95% intervals, and how they are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, UInt8

_Z = 1.959964  # of a 95% interval
MOST_PSNR = 60.0
"""What a PSNR counts at most, in dB, so that one perfect copy does not decide a mean."""


@dataclass(frozen=True)
class Score:
    """A share or a mean, the ends of its 95% interval, and of how many."""

    value: float
    low: float
    high: float
    count: int

    def json(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, n {self.count})"


def share(right: Sequence[bool]) -> Score:
    """The share that is right, with Wilson's interval.

    Raises:
        ValueError: there are none.
    """
    count = _checked(len(right))
    return _wilson(sum(right) / count, count, count)


def mean(values: Sequence[float]) -> Score:
    """The mean, with the interval of a normal distribution.

    Raises:
        ValueError: there are none.
    """
    count, value = _checked(len(values)), float(np.mean(values))
    half = _Z * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Score(value, value - half, value + half, count)


def gain(after: Sequence[bool], before: Sequence[bool]) -> Score:
    """By how much the share grows, for the same prompts in the same order (paired).

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    return mean([float(a) - float(b) for a, b in zip(after, before, strict=True)])


def by_category(verdicts: Iterable[tuple[str, bool]]) -> dict[str, Score]:
    """The share that is right in each category, in their order of appearance."""
    found: dict[str, list[bool]] = {}
    for category, right in verdicts:
        found.setdefault(category, []).append(right)
    return {category: share(rights) for category, rights in found.items()}


def overall(categories: Mapping[str, Score]) -> Score:
    """The mean of the categories, each counted alike however many prompts it has (as in GenEval)."""
    _checked(len(categories))
    value = sum(score.value for score in categories.values()) / len(categories)
    variance = (
        sum(score.value * (1 - score.value) / score.count for score in categories.values()) / len(categories) ** 2
    )
    count = sum(score.count for score in categories.values())
    draws = value * (1 - value) / variance if variance else count  # of one kind, that would have this variance
    return _wilson(value, draws, count)


def psnr(a: UInt8[np.ndarray, "y x 3"], b: UInt8[np.ndarray, "y x 3"], where: Bool[np.ndarray, "y x"]) -> float:
    """Peak signal-to-noise ratio of the pixels that are named, in dB, at most `MOST_PSNR`.

    Raises:
        ValueError: no pixel is named.
    """
    _checked(int(np.sum(where)))
    error = float(np.mean((a[where].astype(float) - b[where].astype(float)) ** 2))
    return min(10 * math.log10(255**2 / error), MOST_PSNR) if error else MOST_PSNR


def _wilson(value: float, draws: float, count: int) -> Score:
    middle = (value + _Z**2 / (2 * draws)) / (1 + _Z**2 / draws)
    half = _Z / (1 + _Z**2 / draws) * math.sqrt(value * (1 - value) / draws + _Z**2 / (4 * draws**2))
    return Score(value, max(middle - half, 0.0), min(middle + half, 1.0), count)


def _checked(count: int) -> int:
    if not count:
        raise ValueError("there is nothing to score; expected at least one")
    return count
