"""Student's t distribution: tails and quantiles, for tests and intervals of a few values.

    (1)  P(T > t) = I(x; n/2, 1/2) / 2 for t >= 0,  x = n / (n + t^2),  n degrees of freedom

I is the regularised incomplete beta function, by its continued fraction (DLMF 8.17.22), which converges fast on the
side of the mean where it is used; on the other, I(x; a, b) = 1 - I(1 - x; b, a).
"""

from __future__ import annotations

import math
from functools import lru_cache

_TINY = 1e-300  # keeps a division of the fraction from being one by 0
_TERMS = 10_000  # those that are needed grow as the root of the degrees of freedom


def t_tail(t: float, freedom: float | int) -> float:
    """P(T > t), equation (1); accurate relative to its own size, however small it is.

    Raises:
        ValueError: t is not a number, or there is no degree of freedom.
    """
    _check(freedom)
    if math.isnan(t):
        raise ValueError("t is not a number")
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    total = freedom + t * t
    half = 0.5 * _beta(freedom / total, t * t / total, freedom)
    return half if t >= 0 else 1.0 - half


@lru_cache(1024)
def t_quantile(probability: float, freedom: float | int) -> float:
    """The t that P(T <= t) = probability holds for, to the last digits of a float.

    Raises:
        ValueError: the probability is not between 0 and 1, or there is no degree of freedom.
    """
    _check(freedom)
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}; expected one between 0 and 1")
    if probability < 0.5:
        return -_upper(probability, freedom)
    return _upper(1 - probability, freedom)


def _upper(tail: float, freedom: float | int) -> float:
    """The t >= 0 above which lies `tail` <= 1/2, by bisection."""
    low, high = 0.0, 1.0
    while t_tail(high, freedom) > tail:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if t_tail(middle, freedom) > tail else (low, middle)
    return high if tail < 0.5 else 0.0


def _beta(x: float, rest: float, freedom: float | int) -> float:
    """I(x; freedom / 2, 1/2), with rest = 1 - x, whose digits a subtraction would lose."""
    a, b = freedom / 2, 0.5
    if 0.0 in (x, rest):
        return float(rest == 0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1.0 - front * _fraction(rest, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, by the modified method of Lentz."""
    c, d = 1.0, 1.0 / _away(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1.0 / _away(1.0 + term * d), _away(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-16:
            break
    return value


def _away(value: float) -> float:
    """Itself, or a tiny number in place of 0."""
    return value if abs(value) > _TINY else _TINY


def _check(freedom: float | int) -> None:
    if not (freedom > 0 and math.isfinite(freedom)):
        raise ValueError(f"degrees of freedom are {freedom}; expected a finite number above 0")
