"""New tokens over a cache, against float64: the cached ones of each row, and each new one up to itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.ops.attention import cached
from internvlu_jax.ops.attention.cached import cached_attention

STARTS = (3, 0, 9)
SLOTS = 9


def made(length, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(3, length, heads, 8)) for heads in (4, 2, 2))
    old_k, old_v = rng.normal(size=(3, 2, 8, SLOTS)), rng.normal(size=(3, 2, SLOTS, 8))
    return q, k, v, old_k, old_v


def reference(q, k, v, old_k, old_v):
    out = np.empty_like(q)
    for b, s, n in np.ndindex(*q.shape[:3]):
        m = n // 2
        keys = np.concatenate([old_k[b, m].T[: STARTS[b]], k[b, : s + 1, m]])
        values = np.concatenate([old_v[b, m][: STARTS[b]], v[b, : s + 1, m]])
        weights = np.exp(keys @ q[b, s, n] / np.sqrt(8))
        out[b, s, n] = weights @ values / weights.sum()
    return out


@pytest.mark.parametrize("length", [1, 5, 40])
@pytest.mark.parametrize("scores", [2**24, 2000])
def test_new_tokens_see_the_cache_and_those_before_them(monkeypatch, length, scores):
    """40 queries and 49 keys of 12 heads have 23,520 scores: under the lower limit they are cut into three blocks."""
    monkeypatch.setattr(cached, "CHUNKED_SCORES", scores)
    given = made(length)
    got = cached_attention(*(jnp.asarray(x, jnp.float32) for x in given), jnp.asarray(STARTS))
    np.testing.assert_allclose(got, reference(*given), atol=2e-6)


def test_many_new_tokens_hold_no_array_of_all_scores():
    """A conversation that has little in common with the one before it is read like this."""
    tokens, slots = 4096, 8192
    q, k = (jax.ShapeDtypeStruct((1, tokens, heads, 64), jnp.bfloat16) for heads in (16, 8))
    old_k, old_v = (jax.ShapeDtypeStruct((1, 8, *shape), jnp.bfloat16) for shape in ((64, slots), (slots, 64)))
    traced = jax.jit(cached_attention).trace(q, k, k, old_k, old_v, jax.ShapeDtypeStruct((1,), jnp.int32))
    temporary = traced.lower().compile().memory_analysis().temp_size_in_bytes
    all_scores = 4 * 16 * tokens * (tokens + slots)
    assert temporary < all_scores / 8, f"{temporary / 1e6:.0f} MB of {all_scores / 1e6:.0f}"
