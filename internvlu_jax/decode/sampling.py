"""Choosing the next token of each row: the best one, or a random one.

Random choices are keyed by row and step, so a row is written alike whatever else is in its batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

Scalar = Float[Array, ""] | float

SMALLEST = 1e-30  # temperature, and penalty: scores divided by less overflow float32
NO_NUMBER = -1  # in the place of a token


def choose(
    logits: Float[Array, "b v"],
    keys: Key[Array, "b"] | None,
    step: Int[Array, ""] | int,
    temperature: Scalar,
    top_p: Scalar | None,
    top_k: int | None = None,
) -> Int[Array, "b"]:
    """The next token of each row: the best without `keys`, else drawn from softmax(logits / temperature).

    `NO_NUMBER` where the score of what would be chosen is not finite, as where all are NaN: so the host learns of it
    from the tokens, without a look at all scores in each step.

    `top_k` restricts the draw to the so many best tokens, `top_p` to their nucleus, the fewest best that together reach
    that probability (Holtzman et al. 2019, arXiv 1904.09751); None does not restrict it. They come in this order, after
    the temperature, and each sees the probabilities of what the one before it left.
    """
    chosen = _chosen(logits, keys, step, temperature, top_p, top_k)
    score = jnp.take_along_axis(logits, chosen[:, None], axis=-1)[:, 0]
    return jnp.where(jnp.isfinite(score), chosen, NO_NUMBER)


def _chosen(
    logits: Float[Array, "b v"],
    keys: Key[Array, "b"] | None,
    step: Int[Array, ""] | int,
    temperature: Scalar,
    top_p: Scalar | None,
    top_k: int | None,
) -> Int[Array, "b"]:
    """`choose` of scores that are finite."""
    if keys is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step)
    scaled = logits.astype(jnp.float32) / temperature
    draw = jax.vmap(jax.random.categorical)
    if top_p is None and top_k is None:
        return draw(keys, scaled).astype(jnp.int32)
    vocabulary = scaled.shape[-1]
    scaled, order = jax.lax.top_k(scaled, vocabulary if top_k is None else min(top_k, vocabulary))
    if top_p is not None:
        scaled = jnp.where(_in_nucleus(scaled, top_p), scaled, -jnp.inf)
    place = draw(keys, scaled)
    return jnp.take_along_axis(order, place[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _in_nucleus(descending: Float[Array, "b v"], top_p: Scalar) -> Bool[Array, "b v"]:
    """A token belongs while those before it fall short of `top_p`: the one that crosses it does, and the first."""
    probabilities = jax.nn.softmax(descending, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    return (before < top_p).at[:, 0].set(True)


def penalised(
    scores: Float[Array, "*n v"], tokens: Int[Array, "*n T"], written: Int[Array, ""] | int, penalty: Scalar | None
) -> Float[Array, "*n v"]:
    """Scores of the next token, those of tokens among the first `written` of `tokens` made worse: divided by `penalty`
    where they are over 0, else multiplied (Keskar et al. 2019, arXiv 1909.05858). None changes nothing.

    Parity: tokens of the prompt do not count, as in the released code, which gives its library embedded prompts.
    """
    if penalty is None:
        return scores
    vocabulary = scores.shape[-1]
    places = jnp.where(jnp.arange(tokens.shape[-1]) < written, tokens, vocabulary)  # no place, where none is written
    flat = places.reshape(-1, places.shape[-1])
    seen = jnp.zeros((len(flat), vocabulary), bool).at[jnp.arange(len(flat))[:, None], flat].set(True, mode="drop")
    worse = jnp.where(scores > 0, scores / penalty, scores * penalty)
    return jnp.where(seen.reshape(scores.shape), worse, scores)
