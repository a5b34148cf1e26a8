"""The straight path between pictures and noise, and what the network predicts on it (flow matching).

    x_sigma = (1 - sigma) x0 + sigma eps          sigma in [0, 1]; 0 is the picture, 1 the noise
    velocity = d x_sigma / d sigma = eps - x0
    x0 = x_sigma - sigma velocity

The network is given `TIME_SCALE * sigma` as its time.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, Float

TIME_SCALE = 1000.0


def interpolate(
    clean: Float[Array, "b *n"], noise: Float[Array, "b *n"], sigma: Float[Array, "b"]
) -> Float[Array, "b *n"]:
    """x_sigma, with one sigma per example."""
    sigma = per_example(sigma, clean.ndim)
    return (1 - sigma) * clean + sigma * noise


def velocity_target(clean: Float[Array, "b *n"], noise: Float[Array, "b *n"]) -> Float[Array, "b *n"]:
    """What the network is trained to predict, the same at every sigma."""
    return noise - clean


def predict_clean(
    noisy: Float[Array, "b *n"], velocity: Float[Array, "b *n"], sigma: Float[Array, ""] | Float[Array, "b"]
) -> Float[Array, "b *n"]:
    """x0 from a point on the path and the velocity there; sigma is one for all or one per example."""
    return noisy - per_example(sigma, noisy.ndim) * velocity


def per_example(value: Float[Array, "*b"], ndim: int) -> Float[Array, "..."]:
    """Appends axes of length 1 to a vector over examples; a scalar stays as it is."""
    return value.reshape(*value.shape, *(1,) * (ndim - 1)) if value.ndim else value


def shift_sigma(u: Any, shift: float) -> Any:
    """s u / (1 + (s - 1) u): moves noise levels u towards 1 for shift s > 1, as larger pictures need."""
    return shift * u / (1 + (shift - 1) * u)
