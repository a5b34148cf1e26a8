"""Which seeds there are: those that random keys of JAX tell apart; and keys of them. A key may stand for a seed."""

from __future__ import annotations

import numbers
import secrets
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

LARGEST_SEED = 2**32 - 1

Seed = int | jax.Array
"""A whole number, or a single typed key, as `jax.random.key` makes them."""


def check_seed(seed: Any, name: str = "seed") -> None:
    """Raises ValueError unless it is a whole number from 0 to `LARGEST_SEED`, for JAX takes others for one of these; or
    a key."""
    if is_key(seed):
        return
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not (whole and 0 <= seed <= LARGEST_SEED):
        raise ValueError(f"{name} is {seed!r}; expected a whole number from 0 to {LARGEST_SEED}")


def any_seed() -> int:
    """One by chance, where none is given."""
    return secrets.randbits(31)


def is_key(value: Any) -> bool:
    """Whether it is a single typed key."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.ndim == 0


def numbered_keys(seed: Seed | Sequence[Seed], count: int) -> Key[Array, "b"]:
    """`count` random keys. Of one seed key i is the same however many there are; of `count` seeds it is the first of
    seed i. A key counts as the seed that it was made of."""
    several = isinstance(seed, Sequence)
    seeds: list[Any] = list(seed) if isinstance(seed, Sequence) else [seed] * count
    places = np.zeros(count, np.int32) if several else np.arange(count)
    if any(map(is_key, seeds)):
        keys = jnp.stack([s if is_key(s) else jax.random.key(s) for s in seeds])
        return jax.vmap(jax.random.fold_in)(keys, places)
    return jax.vmap(lambda s, n: jax.random.fold_in(jax.random.key(s), n))(np.asarray(seeds, np.uint32), places)
