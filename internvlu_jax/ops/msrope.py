"""Rotary tables of the generation head from three-axis positions (`processing.positions`)."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from internvlu_jax.ops.rope import Table

THETA = 10000.0


def msrope_table(positions: Float[Array | np.ndarray, "*n 3"], axes: Sequence[int], theta: float = THETA) -> Table:
    """(cos, sin), each float32 [*n, h/2] with h = sum(axes), for `ops.rope.apply_interleaved`.

    Entry i of an axis of width a turns by `position * theta^(-2i/a)`; the axes stand one after the other.
    """
    angles = [
        jnp.asarray(positions[..., axis, None], jnp.float32) * _frequencies(width, theta)
        for axis, width in enumerate(axes)
    ]
    angle = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angle), jnp.sin(angle)


def _frequencies(width: int, theta: float) -> np.ndarray:
    """theta^(-2i/width), float32, rounded where the released code rounds: after the power and after the reciprocal."""
    exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return np.float32(1) / np.power(theta, exponent.astype(np.float64)).astype(np.float32)
