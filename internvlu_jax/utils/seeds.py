"""Which seeds there are: those that random keys of JAX tell apart."""

from __future__ import annotations

import numbers
from typing import Any

LARGEST_SEED = 2**32 - 1


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raises ValueError unless it is a whole number from 0 to `LARGEST_SEED`, for JAX takes others for one of these."""
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not (whole and 0 <= seed <= LARGEST_SEED):
        raise ValueError(f"{name} is {seed!r}; expected a whole number from 0 to {LARGEST_SEED}")
