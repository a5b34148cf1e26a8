"""Shares, means, gains and their intervals, against other ways to get them."""

import math

import numpy as np
import pytest

from internvlu_jax.evaluation.scores import MOST_PSNR, by_category, gain, mean, overall, psnr, share


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
