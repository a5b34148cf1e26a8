"""Rotary position embedding: the table of a text, and the two ways to pair the entries of a head.

Pairs (a, b) turn by an angle: (a cos - b sin, a sin + b cos). Qwen3 pairs entry i with entry i + h/2 ("half"), the
generation head pairs entry 2i with entry 2i + 1 ("interleaved"; its tables are in `ops.msrope`).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

Table = tuple[Array, Array]
"""(cos, sin), each float32 [b, s, h/2]; b may be 1."""


def rotary_table(positions: Int[Array, "b s"], head_dim: int, theta: float) -> Table:
    """cos and sin of `position * theta^(-2i/h)` for i = 0..h/2-1."""
    frequencies = (theta ** -(np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_half(x: Float[Array, "b s n h"], table: Table) -> Float[Array, "b s n h"]:
    """Turns the pairs (i, i + h/2) of every head; computed in float32, returned in the dtype of x."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(_turn(first, second, table), axis=-1).astype(x.dtype)


def apply_interleaved(x: Float[Array, "b s n h"], table: Table) -> Float[Array, "b s n h"]:
    """Turns the pairs (2i, 2i + 1) of every head; computed in float32, returned in the dtype of x."""
    pairs = rearrange(x.astype(jnp.float32), "b s n (i two) -> two b s n i", two=2)
    turned = jnp.stack(_turn(pairs[0], pairs[1], table), axis=-1)
    return rearrange(turned, "b s n i two -> b s n (i two)").astype(x.dtype)


def _turn(
    first: Float[Array, "b s n i"], second: Float[Array, "b s n i"], table: Table
) -> tuple[Float[Array, "b s n i"], Float[Array, "b s n i"]]:
    cos, sin = (part[:, :, None, :] for part in table)
    return first * cos - second * sin, first * sin + second * cos
