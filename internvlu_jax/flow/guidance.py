"""Classifier-free guidance with two scales (InternVL-U, arXiv 2603.09877, and its released sampler).

Three velocities of the same latents, one for each branch: `cond` sees the whole prompt, in `text_dropped` the text is
dropped and the source pictures stay, in `uncond` everything is dropped. The guided velocity is

    v = uncond + s_part (text_dropped - uncond) + s_all (cond - text_dropped)

At high noise (time above 930) each difference is divided by n^0.4 wherever n, its norm over channels, is above 1, which
keeps large scales from burning the first steps. Without source pictures `text_dropped` equals `uncond`.
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
    part: float | Array


class Velocities(NamedTuple):
    """Velocities of the branches, each [b, y, x, c]; `text_dropped` is None where it equals `uncond`."""

    cond: Array
    uncond: Array
    text_dropped: Array | None = None


def guide(branches: Velocities, timestep: Float[Array, ""], scales: Scales) -> Float[Array, "b y x c"]:
    """The guided velocity, float32; `timestep` is the truncated time in [0, 1000]."""
    cond, uncond = branches.cond.astype(jnp.float32), branches.uncond.astype(jnp.float32)
    if branches.text_dropped is None:
        return uncond + scales.all * _tamed(cond - uncond, timestep)
    text_dropped = branches.text_dropped.astype(jnp.float32)
    kept = scales.part * _tamed(text_dropped - uncond, timestep)
    return uncond + kept + scales.all * _tamed(cond - text_dropped, timestep)


def _tamed(difference: Float[Array, "b y x c"], timestep: Float[Array, ""]) -> Float[Array, "b y x c"]:
    """The difference, shrunk at high noise where its norm over channels is above 1."""
    norm = jnp.linalg.norm(difference, axis=-1, keepdims=True)
    shrink = (timestep > HIGH_NOISE) & (norm > 1.0)
    return jnp.where(shrink, difference / jnp.maximum(norm, 1.0) ** _POWER, difference)
