"""Pictures to work on."""

import numpy as np


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3), every level as likely."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
