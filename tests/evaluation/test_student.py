"""Student's t distribution against tables, closed forms and integration of its density."""

import math

import numpy as np
import pytest

from internvlu_jax.evaluation.student import t_quantile, t_tail


# Abramowitz and Stegun, table 26.10, and its usual extensions
@pytest.mark.parametrize(
    "probability, freedom, expected",
    [
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 7, 2.365), (0.975, 30, 2.042),
        (0.95, 7, 1.895), (0.995, 7, 3.499), (0.9995, 7, 5.408), (0.9, 1, 3.078), (0.975, 120, 1.980),
    ],
)  # fmt: skip
def test_quantiles_of_the_tables(probability, freedom, expected):
    assert t_quantile(probability, freedom) == pytest.approx(expected, abs=5e-4)
    assert t_quantile(1 - probability, freedom) == pytest.approx(-expected, abs=5e-4)


@pytest.mark.parametrize("t", [-1e9, -3.0, -1e-9, 0.0, 1e-12, 0.3, 1.0, 2.5, 40.0, 1e6])
def test_closed_forms(t):
    """Of one and two degrees of freedom, relative to the tail's own size."""
    assert t_tail(t, 1) == pytest.approx(math.atan2(1, t) / math.pi, rel=1e-13)
    root = math.sqrt(2 + t * t)
    assert t_tail(t, 2) == pytest.approx(1 / (root * (root + t)) if t > 0 else (1 - t / root) / 2, rel=1e-13)


@pytest.mark.parametrize("freedom", [3, 7, 31, 400])
@pytest.mark.parametrize("t", [0.2, 1.4, 3.0, 6.0])
def test_tails_are_integrals_of_the_density(freedom, t):
    u = np.linspace(0, 1, 400_001)[1:]  # x = t / u, from t to infinity
    x = t / u
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    density = np.exp(log_scale - (freedom + 1) / 2 * np.log1p(x * x / freedom)) * x / u
    assert t_tail(t, freedom) == pytest.approx(np.trapezoid(density, u), rel=1e-7)
    assert t_tail(-t, freedom) == pytest.approx(1 - t_tail(t, freedom), rel=1e-15)


@pytest.mark.parametrize("freedom", [1, 2.5, 7, 1000])
@pytest.mark.parametrize("probability", [1e-12, 0.01, 0.3, 0.5, 0.8, 0.99999])
def test_quantiles_invert_tails(probability, freedom):
    assert t_tail(-t_quantile(probability, freedom), freedom) == pytest.approx(probability, rel=1e-11)


def test_many_degrees_of_freedom_are_a_normal_distribution():
    assert t_quantile(0.975, 1e6) == pytest.approx(1.959964, abs=3e-6)


def test_ends_and_what_is_refused():
    assert (t_tail(math.inf, 3), t_tail(-math.inf, 3), t_quantile(0.5, 3)) == (0.0, 1.0, 0.0)
    for call, said in [
        (lambda: t_tail(math.nan, 3), "not a number"),
        (lambda: t_tail(1.0, 0), "degrees of freedom are 0"),
        (lambda: t_quantile(0.9, math.nan), "degrees of freedom are nan"),
        (lambda: t_quantile(1.0, 3), "probability is 1.0"),
    ]:
        with pytest.raises(ValueError, match=said):
            call()
