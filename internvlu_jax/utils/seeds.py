"""Which seeds there are: those that random keys of JAX tell apart; and keys of them."""

from __future__ import annotations

import numbers
import secrets
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

LARGEST_SEED = 2**32 - 1


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raises ValueError unless it is a whole number from 0 to `LARGEST_SEED`, for JAX takes others for one of these."""
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not (whole and 0 <= seed <= LARGEST_SEED):
        raise ValueError(f"{name} is {seed!r}; expected a whole number from 0 to {LARGEST_SEED}")


def any_seed() -> int:
    """One by chance, where none is given."""
    return secrets.randbits(31)


def numbered_keys(seed: int | Sequence[int], count: int) -> Key[Array, "b"]:
    """`count` random keys. Of one seed key i is the same however many there are; of `count` seeds it is the first of
    seed i."""
    one = isinstance(seed, numbers.Integral)
    seeds = np.full(count, seed, np.uint32) if one else np.asarray(seed, np.uint32)
    places = np.arange(count) if one else np.zeros(count, np.int32)
    return jax.vmap(lambda s, n: jax.random.fold_in(jax.random.key(s), n))(seeds, places)
