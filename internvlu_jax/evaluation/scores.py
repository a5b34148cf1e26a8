"""Shares and means with their 95% intervals, and how they are kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, UInt8

_Z = 1.959964  # of a 95% interval
_DRAWS = 2000  # of a bootstrap
MOST_PSNR = 60.0
"""What a PSNR counts at most, in dB, so that one perfect copy does not decide a mean."""


@dataclass(frozen=True)
class Score:
    """A share or a mean, the ends of its 95% interval, and of how many. One value alone has no finite interval."""

    value: float
    low: float
    high: float
    count: int

    def json(self) -> dict[str, float | None]:
        """What is not finite becomes None, as JSON has no such numbers."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}

    def percent(self) -> Score:
        """A share in percent."""
        return Score(100 * self.value, 100 * self.low, 100 * self.high, self.count)


def share(right: Sequence[bool]) -> Score:
    """The share that is right, with Wilson's interval.

    Raises:
        ValueError: there are none.
    """
    count = _checked(len(right))
    return _wilson(sum(right) / count, float(count), count)


def mean(values: Sequence[float]) -> Score:
    """The mean, with the interval of a normal distribution.

    Raises:
        ValueError: there are none.
    """
    count, value = _checked(len(values)), float(np.mean(values))
    half = _Z * float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.inf
    return Score(value, value - half, value + half, count)


def gain(after: Sequence[bool], before: Sequence[bool]) -> Score:
    """By how much the share grows, for the same prompts in the same order.

    The interval is that of paired shares by Newcombe 1998 (Statistics in Medicine 17, 2635-2650, method 10), which
    stays honest where all or none are right.

    Raises:
        ValueError: there are none, or not as many of one as of the other.
    """
    a, b = share(after), share(before)
    value, related = a.value - b.value, _correlation(after, before)

    def reach(up: float, down: float) -> float:
        return math.sqrt(max(up**2 - 2 * related * up * down + down**2, 0.0))

    low, high = value - reach(a.value - a.low, b.high - b.value), value + reach(a.high - a.value, b.value - b.low)
    return Score(value, low, high, a.count)


def _correlation(after: Sequence[bool], before: Sequence[bool]) -> float:
    """Phi of the pairs, drawn towards 0 by half a case where it is positive; 0 where one side is all alike."""
    counts = Counter(zip(after, before, strict=True))
    both, won, lost, neither = (counts[pair] for pair in ((True, True), (True, False), (False, True), (False, False)))
    scale = math.sqrt((both + won) * (lost + neither) * (both + lost) * (won + neither))
    excess = float(both * neither - won * lost)
    if excess > 0:
        excess = max(excess - len(after) / 2, 0.0)
    return excess / scale if scale else 0.0


def by_category(verdicts: Iterable[tuple[str, bool]]) -> dict[str, Score]:
    """The share that is right in each category, in their order of appearance."""
    rights: dict[str, list[bool]] = {}
    for category, right in verdicts:
        rights.setdefault(category, []).append(right)
    return {category: share(values) for category, values in rights.items()}


def percentages(verdicts: Iterable[tuple[str, bool]], order: Iterable[str] | None = None) -> dict[str, Score]:
    """In percent: "overall", over all verdicts, and the categories, in an order or in that of their names.

    Raises:
        ValueError: there are no verdicts.
    """
    verdicts = list(verdicts)
    of = by_category(verdicts)
    names = sorted(of) if order is None else [name for name in order if name in of]
    whole = share([right for _, right in verdicts])
    return {"overall": whole.percent(), **{name: of[name].percent() for name in names}}


def overall(categories: Mapping[str, Score]) -> Score:
    """The mean of the categories, each counted alike however many prompts it has (as in GenEval)."""
    _checked(len(categories))
    value = sum(score.value for score in categories.values()) / len(categories)
    variance = (
        sum(score.value * (1 - score.value) / score.count for score in categories.values()) / len(categories) ** 2
    )
    count = sum(score.count for score in categories.values())
    draws = value * (1 - value) / variance if variance else float(count)  # of one kind, that would have this variance
    return _wilson(value, draws, count)


def bootstrap(groups: Mapping[str, Sequence[float]], weights: Mapping[str, float] | None = None) -> Score:
    """The weighted sum of the groups' means, with the interval between the 2.5th and 97.5th of 100 parts of 2000 draws.

    A draw takes from each group as many values as it has, with replacement; always the same draws. A group with one
    value says nothing of how it varies, and the interval is infinite.

    Args:
        groups: their values. weights: of each group; None counts all alike, as in their mean.

    Raises:
        ValueError: there are none, a group is empty, or has no weight.
    """
    _checked(len(groups))
    if weights is not None and (missing := groups.keys() - weights.keys()):
        raise ValueError(f"no weight for {', '.join(sorted(missing))}; there are some for {', '.join(weights)}")
    rng, value, drawn = np.random.default_rng(0), 0.0, np.zeros(_DRAWS)
    for name, group in groups.items():
        weight = 1 / len(groups) if weights is None else weights[name]
        values = np.asarray(group, np.float64)
        _checked(len(values))
        value += weight * float(values.mean())
        drawn += weight * values[rng.integers(0, len(values), (_DRAWS, len(values)))].mean(1)
    count = sum(map(len, groups.values()))
    if any(len(group) == 1 for group in groups.values()):
        return Score(value, -math.inf, math.inf, count)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Score(value, min(float(low), value), max(float(high), value), count)


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
    low, high = max(middle - half, 0.0), min(middle + half, 1.0)
    return Score(value, min(low, value), max(high, value), count)  # rounding puts an end inside at 0 and 1


def _checked(count: int) -> int:
    if not count:
        raise ValueError("there is nothing to score; expected at least one")
    return count
