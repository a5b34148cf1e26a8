"""Choosing the next token of each row: the best one, or a random one.

Random choices are keyed by row and step, so a row is written alike whatever else is in its batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Scalar = Float[Array, ""] | float


def row_keys(seed: int, count: int) -> Key[Array, "b"]:
    """One random key for each of `count` rows. Row i has the same key however many rows there are."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(count))


def choose(
    logits: Float[Array, "b v"],
    keys: Key[Array, "b"] | None,
    step: Int[Array, ""] | int,
    temperature: Scalar,
    top_p: Scalar | None,
) -> Int[Array, "b"]:
    """The next token of each row: the best without `keys`, else drawn from softmax(logits / temperature).

    `top_p` restricts the draw to the nucleus, the fewest best tokens that together reach that probability (Holtzman
    et al. 2019, arXiv 1904.09751); None does not restrict it. The temperature comes first.
    """
    if keys is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
    scaled = logits.astype(jnp.float32) / temperature
    draw = jax.vmap(jax.random.categorical)
    if top_p is None:
        return draw(keys, scaled).astype(jnp.int32)
    order = jnp.argsort(scaled, axis=-1, descending=True)
    scaled = jnp.take_along_axis(scaled, order, axis=-1)
    place = draw(keys, jnp.where(_in_nucleus(scaled, top_p), scaled, -jnp.inf))
    return jnp.take_along_axis(order, place[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _in_nucleus(descending: Float[Array, "b v"], top_p: Scalar) -> Bool[Array, "b v"]:
    """A token belongs while those before it fall short of `top_p`: the one that crosses it does, and the first."""
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    return (before < top_p).at[:, 0].set(True)
