"""DPM-Solver++(2M) for the straight path, in a form whose step is a few multiplications.

Notation (Lu et al. 2022, arXiv 2211.01095, algorithm 2): alpha = 1 - sigma, lambda = log(alpha / sigma),
h = lambda' - lambda where ' marks the end of a step, r = h_previous / h. With x0 = x - sigma v,

    (1)  x' = (sigma' / sigma) x - alpha' (exp(-h) - 1) (x0 + (x0 - x0_previous) / (2 r))

The first step has no previous x0 and the last one ends at sigma' = 0, where (1) without the difference gives x' = x0;
both are of first order. Everything that does not depend on x is worked out on the host in float64:

    (2)  x' = decay x + weight (x0 + slope (x0 - x0_previous))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from internvlu_jax.flow.path import predict_clean, shift_sigma


class Schedule(NamedTuple):
    """Noise levels of a sampler of k steps: step n goes from sigmas[n] to sigmas[n + 1].

    timesteps: int32 [k], what the network is told, `trunc(1000 sigma)`.
    sigmas: float32 [k + 1], what the update uses; the last is 0.
    """

    timesteps: np.ndarray
    sigmas: np.ndarray


class Steps(NamedTuple):
    """Coefficients of equation (2), each float32 [k], or one number after slicing out a step."""

    timestep: Array
    sigma: Array
    decay: Array
    weight: Array
    slope: Array


class SolverState(NamedTuple):
    """x: latents, float32; clean: the previous step's prediction of x0."""

    x: Array
    clean: Array


def schedule(num_steps: int, shift: float = 3.0, train_timesteps: int = 1000) -> Schedule:
    """Noise levels from just under 1 to 0, moved towards 1 by `shift`, as the released scheduler spaces them.

    Raises ValueError if `num_steps` is below 1, or if float32 cannot tell the levels apart.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; expected at least 1")
    alphas = np.linspace(1, 1 / train_timesteps, num_steps + 1)
    sigmas = np.flip(shift_sigma(1.0 - alphas, shift))[:-1]
    plan = Schedule((sigmas * train_timesteps).astype(np.int32), np.append(sigmas, 0.0).astype(np.float32))
    if not _falls(plan):
        raise ValueError(
            f"flow_shift is {shift} with {num_steps} steps, whose noise levels float32 does not tell apart; expected a "
            "shift nearer to 1, or fewer steps"
        )
    return plan


def schedule_of_sigmas(sigmas: Sequence[int | float]) -> Schedule:
    """A schedule through these noise levels, which are not shifted. A 0 is put behind them.

    Raises ValueError unless they fall, from at most 1 to over 0, in float32.
    """
    return _given("sigmas", sigmas, 1.0, 1000 * np.asarray(sigmas, np.float64))


def schedule_of_timesteps(timesteps: Sequence[int | float]) -> Schedule:
    """The same by 1000 times the noise levels."""
    return _given("timesteps", timesteps, 1000.0, np.asarray(timesteps, np.float64))


def _given(name: str, levels: Sequence[int | float], largest: float, times: np.ndarray) -> Schedule:
    if times.ndim == 1 and len(times) > 0 and times[0] <= 1000:
        # A time that is whole but for the rounding of float32 stays so.
        plan = Schedule(np.trunc(times + 1e-4).astype(np.int32), np.append(times / 1000, 0.0).astype(np.float32))
        if _falls(plan):
            return plan
    raise ValueError(
        f"{name} is {list(levels)}; expected numbers that fall, from at most {largest:g} to over 0, as float32 has "
        "them (a last 0 is added)"
    )


def _falls(plan: Schedule) -> bool:
    """Whether each step has a length; without one its coefficients are 0 / 0."""
    return bool(np.all(np.diff(plan.sigmas) < 0))


def steps(plan: Schedule) -> Steps:
    """The coefficients of equation (2) for every step of a schedule."""
    sigma = plan.sigmas.astype(np.float64)
    with np.errstate(divide="ignore"):  # lambda is infinite at sigma = 0, and at sigma = 1
        log_snr = np.log(1 - sigma) - np.log(sigma)
    h = np.diff(log_snr)
    slope = np.zeros_like(h)
    slope[1:-1] = h[1:-1] / (2 * h[:-2])
    coefficients = (plan.timesteps, sigma[:-1], sigma[1:] / sigma[:-1], -(1 - sigma[1:]) * np.expm1(-h), slope)
    return Steps(*(jnp.asarray(c, jnp.float32) for c in coefficients))


def start(noise: Float[Array, "b *n"]) -> SolverState:
    """State before the first step."""
    x = noise.astype(jnp.float32)
    return SolverState(x, jnp.zeros_like(x))


def step(state: SolverState, velocity: Float[Array, "b *n"], at: Steps) -> SolverState:
    """Equation (2); `at` holds the coefficients of one step."""
    clean = predict_clean(state.x, velocity.astype(jnp.float32), at.sigma)
    x = at.decay * state.x + at.weight * (clean + at.slope * (clean - state.clean))
    return SolverState(x, clean)
