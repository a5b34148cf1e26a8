"""Classifier-free guidance with two scales (InternVL-U, arXiv 2603.09877, and its released sampler).

Three velocities of the same latents: `full` sees the whole prompt, in `partial` the text is dropped and the source
pictures stay, in `dropped` everything is. The guided velocity is

    v = dropped + s_partial (partial - dropped) + s_all (full - partial)

At high noise (time above 930) each difference is divided by n^0.4 wherever n, its norm over channels, is above 1, which
keeps large scales from burning the first steps. Without source pictures `partial` equals `dropped`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

HIGH_NOISE = 930.0
_POWER = 0.4


class Scales(NamedTuple):
    """Guidance scales. They are ordinary inputs of the compiled sampler: new values do not compile again."""

    all: float | Array
    partial: float | Array


class Velocities(NamedTuple):
    """Velocities of the branches, each [b, y, x, c]; `partial` is None where it equals `dropped`."""

    full: Array
    dropped: Array
    partial: Array | None = None


def guide(branches: Velocities, timestep: Float[Array, ""], scales: Scales) -> Float[Array, "b y x c"]:
    """The guided velocity, float32; `timestep` is the truncated time in [0, 1000]."""
    full, dropped = branches.full.astype(jnp.float32), branches.dropped.astype(jnp.float32)
    if branches.partial is None:
        return dropped + scales.all * _tamed(full - dropped, timestep)
    partial = branches.partial.astype(jnp.float32)
    kept = scales.partial * _tamed(partial - dropped, timestep)
    return dropped + kept + scales.all * _tamed(full - partial, timestep)


def _tamed(difference: Float[Array, "b y x c"], timestep: Float[Array, ""]) -> Float[Array, "b y x c"]:
    """The difference, shrunk at high noise where its norm over channels is above 1."""
    norm = jnp.linalg.norm(difference, axis=-1, keepdims=True)
    shrink = (timestep > HIGH_NOISE) & (norm > 1.0)
    return jnp.where(shrink, difference / jnp.maximum(norm, 1.0) ** _POWER, difference)
