"""Tokens that are drawn: their distribution, the best so many, and the nucleus."""

import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.decode.generate import check_written
from internvlu_jax.decode.sampling import NO_NUMBER, choose
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


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 3}, {"top_p": 0.9, "top_k": 3}, {"greedy": True}])
def test_scores_that_are_not_finite_have_no_token(options):
    """And the other rows have theirs."""
    good = np.log([0.05, 0.5, 0.15, 0.3])
    logits = jnp.asarray([good, good * np.nan, np.where([0, 1, 0, 0], np.inf, good), good], jnp.float32)
    keys = None if options.get("greedy") else numbered_keys(1, 4)
    limits = {"top_p": options.get("top_p"), "top_k": options.get("top_k")}
    got = np.asarray(choose(logits, keys, 0, 1.0, **limits))
    alone = np.asarray(choose(jnp.asarray([good] * 4, jnp.float32), keys, 0, 1.0, **limits))
    assert got.tolist() == [alone[0], NO_NUMBER, NO_NUMBER, alone[3]]


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"repetition_penalty": 1.3}, {"keys": numbered_keys(0, 4)}])
def test_a_text_of_scores_that_are_not_finite_is_refused(options):
    """Of damaged weights: it was token 0 again and again."""
    params = toy_params(0)
    check_written(np.asarray(write(Toy(), params, PROMPTS, **options).tokens))
    result = write(Toy(), {**params, "out": params["out"].at[3].set(jnp.nan)}, PROMPTS, **options)
    assert int(result.steps) == 0  # it ends there
    for row in np.asarray(result.tokens):
        with pytest.raises(ValueError, match=r"the scores of the next token are not finite.* weights are damaged"):
            check_written(row)


def test_rows_beside_one_that_is_not_finite_are_written():
    """One prompt has a token whose embedding is damaged."""
    params = toy_params(0)
    params["embed"] = params["embed"].at[5].set(jnp.nan)
    result = write(Toy(), params, [[3, 4, 3], [3, 5, 3]], 3)
    assert texts(result) == [texts(write(Toy(), params, [[3, 4, 3]], 3))[0], [NO_NUMBER]]
