"""The statistics of `protocol.md`: paired differences over seeds, their tests, and what many tests at once allow.

    (1)  sign flip: p = share of the 2^n sign patterns s for which |sum s_i d_i| >= |sum d_i|, exact
    (2)  Holm: p_(1) <= ... <= p_(m) become max over j <= i of min((m - j + 1) p_(j), 1)
    (3)  equivalence: two one-sided paired t tests against -margin and +margin; p is the larger of the two
    (4)  bootstrap: seeds drawn again, and cases drawn again, the same for every seed and both arms, as they were

All in float64. A difference is that of one seed: the arm minus the reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from jaxtyping import Float

from internvlu_jax.evaluation.scores import Score
from internvlu_jax.evaluation.student import t_quantile, t_tail

LEVEL = 0.95
BOOTSTRAP_DRAWS = 10_000
BOOTSTRAP_SEED = 0
_MOST_PAIRS = 20  # a million sign patterns
_CHUNK = 500  # draws of the bootstrap that are in memory at once
_ROUNDING = 1e-9  # of the sum of sizes: sums that differ by less are equal

Differences = Float[np.ndarray, "n"]


def paired(arm: Mapping[int, float], reference: Mapping[int, float]) -> Differences:
    """Differences by seed, in the order of the seeds.

    Raises:
        ValueError: the arms do not have the same seeds, have none, or a value is not finite.
    """
    if alone := sorted(set(arm) ^ set(reference)):
        raise ValueError(f"seeds {', '.join(map(str, alone))} are there in one arm alone; expected the same in both")
    return _checked([arm[seed] - reference[seed] for seed in sorted(arm)], 1)


def t_interval(values: Sequence[float] | Differences, level: float = LEVEL) -> Score:
    """The mean and Student's interval; of one value it reaches everywhere, of equal values it is a point.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    checked = _checked(values, 1)
    mean, count = float(np.mean(checked)), len(checked)
    if count == 1:
        return Score(mean, -math.inf, math.inf, count)
    half = t_quantile((1 + level) / 2, count - 1) * _error(checked)
    return Score(mean, mean - half, mean + half, count)


def sign_flip(differences: Sequence[float] | Differences) -> float:
    """Equation (1): two-sided p that differences are as likely to be of either sign; 1 where all are 0.

    Raises:
        ValueError: there are none, more than 20, or one is not finite.
    """
    checked = _checked(differences, 1)
    if len(checked) > _MOST_PAIRS:
        raise ValueError(f"there are {len(checked)} differences; expected at most {_MOST_PAIRS} for the exact test")
    # The first sign is fixed: patterns come in pairs of equal size.
    signs = np.array([(1, *rest) for rest in product((1, -1), repeat=len(checked) - 1)])
    sums, least = np.abs(signs @ checked), abs(np.sum(checked)) - _ROUNDING * np.sum(np.abs(checked))
    return float(np.mean(sums >= least))


def holm(p: Sequence[float]) -> list[float]:
    """Equation (2): p values of a family, adjusted, in their order. A test is passed where its own is at most alpha.

    Raises:
        ValueError: one is not between 0 and 1.
    """
    if bad := [value for value in p if not 0 <= value <= 1]:
        raise ValueError(f"p is {bad[0]}; expected a number from 0 to 1")
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, n in enumerate(sorted(range(len(p)), key=lambda n: p[n])):
        largest = max(largest, min((len(p) - rank) * p[n], 1.0))
        adjusted[n] = largest
    return adjusted


def equivalence(differences: Sequence[float] | Differences, margin: float) -> float:
    """Equation (3): p that the mean difference is `margin` or more, in either direction.

    Equal differences give 0 within the margin, 1 outside, and a half on it: the limits of ever less noise.

    Raises:
        ValueError: the margin is not above 0, there are fewer than two differences, or one is not finite.
    """
    if not (margin > 0 and math.isfinite(margin)):
        raise ValueError(f"margin is {margin}; expected a finite number above 0")
    checked = _checked(differences, 2)
    room, error = margin - abs(float(np.mean(checked))), _error(checked)
    if error == 0:
        return 0.5 if room == 0 else float(room < 0)
    return t_tail(room / error, len(checked) - 1)


def bootstrap(
    arm: Float[np.ndarray, "n m"],
    reference: Float[np.ndarray, "n m"],
    groups: str = "",
    level: float = LEVEL,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = BOOTSTRAP_SEED,
) -> Score:
    """Equation (4): the mean difference, with the percentile interval; its count is that of the seeds.

    Args:
        arm, reference: values of m cases, which are the same for all n seeds; rows are seeds, in one order.
        groups: a letter for each case: the mean is that of the groups' means, and cases are drawn within groups.

    Raises:
        ValueError: the shapes differ, there are fewer than two seeds or no cases, or a value is not finite.
    """
    if arm.shape != reference.shape or arm.ndim != 2 or (groups and len(groups) != arm.shape[1]):
        raise ValueError(
            f"cases have shapes {arm.shape} and {reference.shape} and {len(groups)} letters of groups; expected "
            "[seed, case] twice, and a letter for each case or none"
        )
    differences = arm.astype(np.float64) - reference
    _checked(differences[:, 0] if differences.shape[1] else (), 2)
    _checked(differences.ravel(), 2)
    letters = np.array(list(groups or "a" * arm.shape[1]))
    members = [np.flatnonzero(letters == letter) for letter in sorted(set(letters))]
    rng, means = np.random.default_rng(seed), []
    for start in range(0, draws, _CHUNK):
        count = min(_CHUNK, draws - start)
        by_case = _drawn_shares(rng, count, len(differences)) @ differences
        means.append(sum(_drawn_mean(rng, by_case[:, inside]) for inside in members) / len(members))
    low, high = np.quantile(np.concatenate(means), ((1 - level) / 2, (1 + level) / 2))
    value = np.mean([np.mean(differences[:, inside]) for inside in members])
    return Score(float(value), float(low), float(high), len(differences))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing theirs; 0 where one side is all alike.

    Raises:
        ValueError: there are fewer than three pairs, not as many of one as of the other, or one is not finite.
    """
    if len(a) != len(b):
        raise ValueError(f"there are {len(a)} and {len(b)} values; expected pairs")
    x, y = (_ranks(_checked(values, 3)) for values in (a, b))
    x, y = x - np.mean(x), y - np.mean(y)
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else 0.0


def _drawn_shares(rng: np.random.Generator, count: int, of: int) -> Float[np.ndarray, "count n"]:
    """How often each of `of` comes among as many that are drawn with replacement, as shares."""
    return rng.multinomial(of, np.full(of, 1 / of), count) / of


def _drawn_mean(rng: np.random.Generator, values: Float[np.ndarray, "count m"]) -> Float[np.ndarray, "count"]:
    """The mean of each row's cases, drawn with replacement."""
    return np.sum(_drawn_shares(rng, *values.shape) * values, axis=1)


def _ranks(values: Differences) -> Differences:
    order = np.sort(values)
    below, up_to = np.searchsorted(order, values, "left"), np.searchsorted(order, values, "right")
    return (below + up_to + 1) / 2


def _error(values: Differences) -> float:
    """The standard error of the mean: exactly 0 where all values are equal."""
    if np.all(values == values[0]):
        return 0.0
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _checked(values: Sequence[float] | Differences, least: int) -> Differences:
    array = np.asarray(values, np.float64)
    if len(array) < least:
        raise ValueError(f"there are {len(array)} values; expected at least {least}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"a value is {array[~np.isfinite(array)][0]}; expected finite numbers")
    return array
