"""Shares, means, gains and their intervals, against other ways to get them."""

import math

import numpy as np
import pytest

from internvlu_jax.evaluation.scores import MOST_PSNR, bootstrap, by_category, gain, mean, overall, psnr, share


# Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3
@pytest.mark.parametrize(
    "hits, count, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_of_shares_are_the_published_ones(hits, count, low, high):
    found = share([True] * hits + [False] * (count - hits))
    assert found.value == hits / count and found.count == count
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_intervals_of_shares_solve_their_equation():
    """|p - share| = z sqrt(p (1 - p) / n) at both ends."""
    found = share([True] * 37 + [False] * 13)
    for end in (found.low, found.high):
        assert abs(end - found.value) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 50))


def test_means():
    values = [20.0, 22.0, 27.0, 31.0]
    half = 1.959964 * np.std(values, ddof=1) / 2
    found = mean(values)
    assert (found.value, found.low, found.high, found.count) == (
        25.0,
        pytest.approx(25 - half),
        pytest.approx(25 + half),
        4,
    )
    assert mean([3.0]).json() == {"value": 3.0, "low": None, "high": None, "count": 1}


def test_gains():
    after, before = [True] * 60 + [False] * 40, [True] * 30 + [False] * 60 + [True] * 10
    found = gain(after, before)  # 30 are gained, 10 are lost
    half = 1.959964 * math.sqrt((40 - 20**2 / 100) / 99 / 100)  # of a normal distribution, for comparison
    assert found.value == pytest.approx(0.2) and found.count == 100
    assert (found.low, found.high) == (pytest.approx(0.2 - half, abs=0.015), pytest.approx(0.2 + half, abs=0.015))
    turned = gain(before, after)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))
    same, ends = gain([True] * 20, [True] * 20), share([True] * 20)
    assert (same.value, same.low, same.high) == pytest.approx((0, ends.low - 1, 1 - ends.low))


@pytest.mark.parametrize("joint", [(0.5, 0.3, 0.05, 0.15), (0.02, 0.1, 0.01, 0.87), (0.3, 0.05, 0.05, 0.6)])
def test_intervals_of_gains_cover_the_truth_95_times_in_100(joint):
    rng, pairs, hits = np.random.default_rng(1), [(True, True), (True, False), (False, True), (False, False)], 0
    for drawn in rng.choice(4, (400, 200), p=joint):
        after, before = zip(*(pairs[n] for n in drawn), strict=True)
        found = gain(after, before)
        hits += found.low <= joint[1] - joint[2] <= found.high
    assert 368 <= hits <= 396


def test_overall_is_the_mean_of_categories():
    verdicts = [("a", n < 60) for n in range(100)] + [("b", n < 60) for n in range(100)]
    whole, pooled = overall(by_category(verdicts)), share([right for _, right in verdicts])
    assert (whole.value, whole.count) == (pytest.approx(0.6), 200)
    assert (whole.low, whole.high) == (pytest.approx(pooled.low), pytest.approx(pooled.high))
    uneven = overall(by_category([("a", True)] * 10 + [("b", False)] * 90))
    assert uneven.value == 0.5 and overall(by_category([("a", True)] * 10)).value == 1.0


def test_overall_covers_the_truth_95_times_in_100():
    rng, hits = np.random.default_rng(0), 0
    truths = (0.99, 0.9, 0.6, 0.8, 0.5, 0.7)
    for _ in range(1000):
        draws = [(str(n), bool(hit)) for n, p in enumerate(truths) for hit in rng.random(83) < p]
        found = overall(by_category(draws))
        hits += found.low <= np.mean(truths) <= found.high
    assert 930 <= hits <= 970


def test_psnr():
    a = np.full((8, 8, 3), 100, np.uint8)
    everywhere, half = np.ones((8, 8), bool), np.arange(64).reshape(8, 8) < 32
    b = a + 1
    assert psnr(a, b, everywhere) == pytest.approx(48.1308, abs=1e-4)
    b[:4] = a[:4]
    assert psnr(a, b, half) == MOST_PSNR and psnr(a, b, everywhere) == pytest.approx(51.1411, abs=1e-4)


@pytest.mark.parametrize("call", [lambda: share([]), lambda: mean([]), lambda: gain([], []), lambda: overall({})])
def test_nothing_to_score(call):
    with pytest.raises(ValueError, match="nothing to score"):
        call()


def test_bootstrapped_means_of_groups():
    """Against the variance that the sum of means has: that of each group over its size."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(2, 1, 400), rng.exponential(1, 900)
    groups = {"a": a.tolist(), "b": b.tolist()}
    found = bootstrap(groups, {"a": 0.5, "b": 2.0})
    assert found.value == pytest.approx(0.5 * a.mean() + 2 * b.mean()) and found.count == 1300
    half = 1.959964 * math.sqrt(0.25 * a.var() / 400 + 4 * b.var() / 900)
    assert (found.value - found.low, found.high - found.value) == pytest.approx((half, half), rel=0.08)
    assert bootstrap(groups, {"a": 0.5, "b": 2.0}) == found
    assert bootstrap(groups).value == pytest.approx((a.mean() + b.mean()) / 2)


def test_bootstraps_that_say_nothing_or_fail():
    assert bootstrap({"a": [1.0]}).json() == {"value": 1.0, "low": None, "high": None, "count": 1}
    same = bootstrap({"a": [0.1] * 3})
    assert same.low <= same.value <= same.high
    with pytest.raises(ValueError, match="no weight for b; there are some for a"):
        bootstrap({"a": [1.0], "b": [2.0]}, {"a": 1.0})
    for empty in ({}, {"a": []}):
        with pytest.raises(ValueError, match="nothing to score"):
            bootstrap(empty)


def test_scores_in_percent():
    assert share([True, False]).percent().value == 50.0
