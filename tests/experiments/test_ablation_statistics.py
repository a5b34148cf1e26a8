"""The statistics of the ablations: hand-worked cases, closed forms, and made-up studies whose truth is known."""

import itertools
import math

import numpy as np
import pytest

from experiments.ablations import analysis, statistics
from experiments.ablations.design import JOINT, REPRESENTATIONS
from tests.helpers.ablations import made_sample

STUDIES = 150
SCORES = REPRESENTATIONS.families[0]


def least_hits(count, probability):
    """A binomial count is smaller in less than one of a thousand cases, by the sum of its terms."""
    k = np.arange(count + 1)
    choose = [math.lgamma(count + 1) - math.lgamma(n + 1) - math.lgamma(count - n + 1) for n in k]
    masses = np.exp(choose + k * math.log(probability) + (count - k) * math.log1p(-probability))
    return int(np.searchsorted(np.cumsum(masses), 1e-3))


def most_hits(count, probability):
    return count - least_hits(count, 1 - probability)


def test_sign_flips_by_hand():
    assert statistics.sign_flip([1.0, 2.0, 3.0]) == 2 / 8
    assert statistics.sign_flip([-1.0, 2.0, 3.0]) == 4 / 8  # |sum| >= 4: 4 and 6, either sign
    assert statistics.sign_flip([0.1, 0.2, -0.3]) == 1.0  # a sum of 0, but for rounding
    assert statistics.sign_flip([0.0, 0.0]) == 1.0
    assert statistics.sign_flip([5.0]) == 1.0
    assert statistics.sign_flip([0.3, 0.1, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8]) == 2 / 256


def test_sign_flips_are_what_all_patterns_say():
    rng = np.random.default_rng(0)
    for count in (2, 5, 8):
        values = rng.normal(0.4, 1, count)
        sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True)))
                for signs in itertools.product((1, -1), repeat=count)]  # fmt: skip
        assert statistics.sign_flip(values) == np.mean([s >= abs(sum(values)) - 1e-12 for s in sums])


def test_holm_by_hand():
    """Holm 1979 (Scandinavian Journal of Statistics 6, 65-70): thresholds alpha / m, alpha / (m - 1), ..."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.0078125] * 4) == pytest.approx([0.03125] * 4)
    assert statistics.holm([0.5, 0.6]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_t_intervals():
    values = [1.0, 2.0, 4.0, 5.0]
    score = statistics.t_interval(values)
    half = 3.182446 * math.sqrt(10 / 3 / 4)
    assert (score.value, score.count) == (3.0, 4)
    assert (score.low, score.high) == (pytest.approx(3 - half, abs=1e-6), pytest.approx(3 + half, abs=1e-6))
    assert statistics.t_interval([0.1] * 7).low == statistics.t_interval([0.1] * 7).high
    one = statistics.t_interval([2.0])
    assert (one.value, one.low, one.high) == (2.0, -math.inf, math.inf)


def test_equivalence_is_the_interval_within_the_margin():
    """p <= 0.05 exactly where the 90% interval lies within."""
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(60):
        values = rng.normal(0.3, 0.7, 6)
        interval = statistics.t_interval(values, 0.9)
        inside = max(-interval.low, interval.high) < 1
        assert (statistics.equivalence(values, 1.0) <= 0.05) == inside
        outcomes.add(inside)
    assert outcomes == {True, False}
    assert statistics.equivalence([0.0, 0.1, -0.1], 1e6) < 1e-12
    assert [statistics.equivalence([d, d, d], 0.5) for d in (0.25, -0.25, 0.5, 0.75)] == [0.0, 0.0, 0.5, 1.0]


def test_two_level_bootstrap_against_all_draws():
    """Of three seeds and two cases there are 27 x 4 equally likely draws."""
    differences = np.array([[0.0, 1.0], [2.0, 5.0], [3.0, 9.0]])
    seeds, cases = (list(itertools.product(range(size), repeat=size)) for size in differences.shape)
    draws = [np.mean(differences[np.ix_(rows, columns)]) for rows in seeds for columns in cases]
    score = statistics.bootstrap(differences, np.zeros((3, 2)), level=0.9)
    assert (score.value, score.count) == (pytest.approx(20 / 6), 3)
    assert (score.low, score.high) == pytest.approx(tuple(np.quantile(draws, (0.05, 0.95), method="inverted_cdf")))
    assert score == statistics.bootstrap(differences, np.zeros((3, 2)), level=0.9)


def test_bootstrap_limits():
    rng = np.random.default_rng(2)
    by_seed = np.repeat(rng.normal(size=(30, 1)), 40, axis=1)
    half = 1.96 * np.std(by_seed[:, 0]) / math.sqrt(30)
    score = statistics.bootstrap(by_seed, np.zeros_like(by_seed))
    assert score.high - score.low == pytest.approx(2 * half, rel=0.05), "cases that are all alike add nothing"
    bits = np.repeat(rng.random((1, 400)) < 0.3, 5, axis=0)
    score = statistics.bootstrap(bits, np.zeros_like(bits))
    half = 1.96 * np.std(bits[0]) / math.sqrt(400)
    assert score.high - score.low == pytest.approx(2 * half, rel=0.05), "seeds that are all alike add nothing"
    grouped = statistics.bootstrap(np.array([[1.0, 1, 1, 0]] * 2), np.zeros((2, 4)), "aaab", draws=10)
    assert (grouped.value, grouped.low, grouped.high) == (0.5, 0.5, 0.5), "groups count alike, and keep their sizes"


def test_rank_correlation():
    assert statistics.rank_correlation([1, 2, 3], [10, 20, 1000]) == pytest.approx(1)
    assert statistics.rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert statistics.rank_correlation([1, 1, 2], [3, 3, 1]) == pytest.approx(-1)
    assert statistics.rank_correlation([1, 1, 1], [1, 2, 3]) == 0.0


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: statistics.paired({0: 1.0, 1: 2.0}, {0: 1.0, 2: 2.0}), "seeds 1, 2 are there in one arm alone"),
        (lambda: statistics.paired({}, {}), "there are 0 values; expected at least 1"),
        (lambda: statistics.paired({0: math.nan}, {0: 1.0}), "a value is nan"),
        (lambda: statistics.t_interval([]), "there are 0 values"),
        (lambda: statistics.sign_flip([1.0, math.inf]), "a value is inf"),
        (lambda: statistics.sign_flip([1.0] * 21), "there are 21 differences; expected at most 20"),
        (lambda: statistics.holm([0.5, math.nan]), "p is nan"),
        (lambda: statistics.equivalence([1.0], 3.0), "there are 1 values; expected at least 2"),
        (lambda: statistics.equivalence([1.0, 2.0], 0.0), "margin is 0.0"),
        (lambda: statistics.bootstrap(np.zeros((1, 5)), np.zeros((1, 5))), "there are 1 values; expected at least 2"),
        (lambda: statistics.bootstrap(np.zeros((2, 0)), np.zeros((2, 0))), "there are 0 values"),
        (lambda: statistics.bootstrap(np.zeros((2, 5)), np.zeros((2, 4))), r"shapes \(2, 5\) and \(2, 4\)"),
        (lambda: statistics.bootstrap(np.full((2, 5), np.nan), np.zeros((2, 5))), "a value is nan"),
        (lambda: statistics.rank_correlation([1, 2], [1, 2]), "there are 2 values; expected at least 3"),
    ],
)
def test_what_cannot_be_computed_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.fixture(scope="module")
def simulated():
    """Findings of studies with eight seeds: paired differences deviate by one point; shared-latent is worse by three
    points in both scores, shared-semantic is equal in both."""
    rng, made = np.random.default_rng(3), []
    for _ in range(STUDIES):
        values = {}
        for arm, shift in zip(JOINT, (0.0, -0.03, 0.0), strict=True):
            noise = rng.normal(0, 0.01 / math.sqrt(2), (2, 8))
            values[arm] = {"questions": 0.9 + shift + noise[0], "geneval_heldout": 0.6 + shift + noise[1]}
        made.append(analysis.findings(made_sample(values), SCORES))
    return made


def verdicts(studies, arm):
    return [finding.verdict for study in studies for finding in study if finding.comparison.arm == arm]


def test_an_arm_that_is_made_worse_is_found_worse(simulated):
    """Eight differences of one sign, which a test needs, come with a probability of 0.9892."""
    said = verdicts(simulated, "shared-latent")
    worse = sum(word in ("worse", "worse within the margin") for word in said)
    assert worse >= least_hits(2 * STUDIES, (0.5 * math.erfc(-3 / math.sqrt(2))) ** 8)
    assert "better" not in said


def test_equal_arms_are_found_equal_and_seldom_different(simulated):
    said = verdicts(simulated, "shared-semantic")
    claims = sum(word not in ("equal", "open") for word in said)
    assert claims <= most_hits(2 * STUDIES, 0.05)
    assert said.count("equal") >= 0.9 * len(said)


def test_the_size_of_the_tests():
    """With every arm equal: each sign flip at its level, and any rejection in a family of four after Holm, too."""
    rng, count = np.random.default_rng(4), 1000
    p = np.array([[statistics.sign_flip(row) for row in rng.normal(size=(4, 8))] for _ in range(count)])
    attained = 12 / 256  # the largest p up to 0.05
    assert least_hits(4 * count, attained) <= np.sum(p <= 0.05) <= most_hits(4 * count, attained)
    families = sum(min(statistics.holm(row)) <= 0.05 for row in p)
    assert 0 < families <= most_hits(count, 0.05)


def test_equivalence_is_claimed_when_it_should_be():
    rng, count = np.random.default_rng(5), 1000

    def claims(difference):
        return sum(statistics.equivalence(rng.normal(difference, 0.01, 8), 0.03) <= 0.05 for _ in range(count))

    assert claims(0.0) == count
    assert least_hits(count, 0.05) <= claims(0.03) <= most_hits(count, 0.05), "on the margin: at the level"
    assert claims(0.06) == 0
