"""The sinusoid of the diffusion time, with the rounding that the weights were trained with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

TIME_CHANNELS = 256
_SCALE = 1000.0


def timestep_sinusoid(
    timestep: Float[Array, "b"], dtype: DTypeLike, channels: int = TIME_CHANNELS
) -> Float[Array, "b {channels}"]:
    """cos and then sin of `1000 * timestep * f_i`, float32; `timestep` is in [0, 1000], so time is scaled twice.

    Arguments reach 1e6, where one unit in the last place is a sixteenth of a radian, so rounding is part of the
    definition: `timestep` is first cast to the compute `dtype` (in bfloat16 999 becomes 1000 and 922 becomes 920), and
    both products are rounded to float32 in the order written. Parity: the released code does all of this.
    """
    # Two casts say the same, and a compiler for TPUs or GPUs may leave out such a pair.
    kind = jnp.finfo(dtype)
    rounded = jax.lax.reduce_precision(timestep.astype(jnp.float32), kind.nexp, kind.nmant)
    # Without the barrier a compiler may fold the two constant factors into one and round once.
    product = jax.lax.optimization_barrier(rounded[:, None] * _frequencies(channels // 2))
    argument = jnp.float32(_SCALE) * product
    return jnp.concatenate([jnp.cos(argument), jnp.sin(argument)], axis=-1)


def _frequencies(count: int) -> np.ndarray:
    """f_i = exp(-ln(10000) i / count): the exponent rounded in float32, the exponential correctly rounded to it."""
    exponent = np.float32(-np.log(10000.0)) * np.arange(count, dtype=np.float32) / np.float32(count)
    return np.exp(exponent.astype(np.float64)).astype(np.float32)
