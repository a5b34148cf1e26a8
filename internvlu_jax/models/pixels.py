"""8-bit pictures to what the two picture encoders read, and back: the only place where pixels are scaled.

Written for arrays of numpy and of JAX alike. Under numpy the values are the released processor's to the last bit; XLA
may divide by way of a reciprocal, which moves some of them by one unit in the last place.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from internvlu_jax.config import GenerationImageProcessorConfig, ImageProcessorConfig


def vision_values(
    tiles: UInt8[Array | np.ndarray, "*b p q 3"], cfg: ImageProcessorConfig
) -> Float[Array | np.ndarray, "*b p q 3"]:
    """For the vision encoder: (x - 255 mean) / (255 std) in float32, the products rounded first."""
    mean, std = (np.float32(255) * np.asarray(values, np.float32) for values in (cfg.image_mean, cfg.image_std))
    return (tiles.astype(np.float32) - mean) / std


def codec_values(
    pixels: UInt8[Array | np.ndarray, "*b Y X 3"], cfg: GenerationImageProcessorConfig
) -> Float[Array | np.ndarray, "*b Y X 3"]:
    """For the autoencoder: (x / 255 - mean) / std in float32, with the released numbers from -1 to 1."""
    mean, std = (np.asarray(values, np.float32) for values in (cfg.image_mean, cfg.image_std))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def to_bytes(pixels: Float[Array, "*b Y X 3"]) -> UInt8[Array, "*b Y X 3"]:
    """From -1 to 1 to 8 bits, rounded as in the released code: 128, not 127.5, then truncated."""
    unit: Any = jnp.clip((127.5 * pixels.astype(jnp.float32) + 128.0) / 255.0, 0.0, 1.0)
    return (unit * 255.0).astype(jnp.uint8)
