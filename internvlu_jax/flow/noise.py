"""The starting noise of pictures: whose random numbers a seed stands for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from internvlu_jax.config import Noise
from internvlu_jax.flow.torch_noise import cpu_normal, cuda_normal
from internvlu_jax.utils.seeds import Seed, numbered_keys


def starting_noise(kind: Noise, seed: Seed | Sequence[Seed], count: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Standard normal float32 [count, y, x, c], as the released code draws it whatever the dtype of its weights.

    Args:
        seed: one for all pictures, or one for each, which then has the noise that it alone would have. Keys are for
            "jax" alone.
        shape: (y, x, c). PyTorch's numbers come in the order [count, c, y, x], as the released code shapes them. Of one
            seed picture i is the same however many there are, where a picture has a multiple of 16 numbers and a GPU
            has no fewer threads than numbers.
    """
    if kind == "jax":
        normal = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))
        return np.asarray(normal(numbered_keys(seed, count)))
    draw = {"torch-cpu": cpu_normal, "torch-cuda": cuda_normal}[kind]
    if isinstance(seed, Sequence):
        return np.concatenate([_channels_last(draw, int(s), 1, shape) for s in seed])
    return _channels_last(draw, int(seed), count, shape)


def numbered_noise(numbers: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
    """Standard normal float32 [y, x, c] of whole numbers, as a seed and the number of a case: numpy's generator's."""
    return np.random.default_rng(list(numbers)).standard_normal(shape).astype(np.float32)


def _channels_last(
    draw: Callable[[int, int], np.ndarray], seed: int, count: int, shape: tuple[int, int, int]
) -> np.ndarray:
    rows, columns, channels = shape
    numbers = draw(seed, count * math.prod(shape)).reshape(count, channels, rows, columns)
    return np.ascontiguousarray(np.moveaxis(numbers, 1, -1))
