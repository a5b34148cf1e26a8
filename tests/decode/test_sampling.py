"""Tokens that are drawn: their distribution, the best so many, and the nucleus."""

import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.decode.sampling import choose
from internvlu_jax.utils.seeds import numbered_keys
from tests.helpers.toy_text import (
    PROMPTS,
    STOPS,
    Toy,
    texts,
    toy_log_probs,
    toy_params,
    write,
)


def chi_square(drawn, probabilities):
    expected = len(drawn) * probabilities
    counts = np.bincount(drawn, minlength=len(probabilities))
    return float(np.sum((counts - expected) ** 2 / expected))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_have_the_distribution(temperature):
    """6 degrees of freedom: 30 is exceeded in 4 of 100 000 draws, and the key is fixed."""
    model, params, count = Toy(), toy_params(0), 4000
    result = write(model, params, [[3, 4, 5]] * count, 2, keys=numbered_keys(0, count), temperature=temperature)
    first, second = np.asarray(result.tokens)[:, :2].T

    def wanted(history):
        p = np.exp(toy_log_probs(params, history) / temperature)
        return p / p.sum()

    assert chi_square(first, wanted([3, 4, 5])) < 30
    common = max((t for t in range(7) if t not in STOPS), key=lambda t: np.sum(first == t))
    assert chi_square(second[first == common], wanted([3, 4, 5, common])) < 30


def test_the_nucleus_holds_the_token_that_crosses_it():
    """Sampling at temperature 2 from p**2: the nucleus is that of p, so the temperature comes first."""
    p = np.array([0.05, 0.5, 0.15, 0.3])
    logits = jnp.broadcast_to(jnp.asarray(2 * np.log(p), jnp.float32), (2000, 4))
    for top_p, kept in [
        (0.01, {1}),
        (0.45, {1}),
        (0.55, {1, 3}),
        (0.79, {1, 3}),
        (0.81, {1, 2, 3}),
        (0.96, {0, 1, 2, 3}),
    ]:
        drawn = np.asarray(choose(logits, numbered_keys(1, 2000), 0, 2.0, top_p))
        assert set(drawn.tolist()) == kept
        inside = np.where(np.isin(np.arange(4), list(kept)), p, 1e-30)
        assert chi_square(drawn, inside / inside.sum()) < 30


@pytest.mark.parametrize(("top_k", "top_p"), [(1, None), (2, None), (3, None), (9, None), (2, 0.6), (3, 0.8), (3, 0.9)])
def test_the_best_so_many_are_drawn_from_and_the_nucleus_is_that_of_these(top_k, top_p):
    """In float64: of 0.3, 0.5, 0.05, 0.15 the best two have the nucleus 0.6 of one token, 0.5 / 0.8."""
    p = np.array([0.3, 0.5, 0.05, 0.15])
    best = np.argsort(-p)[:top_k]
    before = np.cumsum(p[best]) / p[best].sum() - p[best] / p[best].sum()
    kept = best if top_p is None else best[before < top_p]
    logits = jnp.broadcast_to(jnp.asarray(2 * np.log(p), jnp.float32), (2000, 4))
    drawn = np.asarray(choose(logits, numbered_keys(1, 2000), 0, 2.0, top_p, top_k))
    assert set(drawn.tolist()) == set(kept.tolist())
    inside = np.where(np.isin(np.arange(4), kept), p, 1e-30)
    assert chi_square(drawn, inside / inside.sum()) < 30


def test_a_tiny_nucleus_is_greedy():
    model, params = Toy(), toy_params(0)
    sampled = write(model, params, PROMPTS, keys=numbered_keys(0, len(PROMPTS)), top_p=1e-6)
    assert texts(sampled) == texts(write(model, params, PROMPTS))
