"""Every way that runs here is timed and compared; seconds are no business of the tests."""

import jax.numpy as jnp

from experiments import attention
from experiments.attention import Arguments, Shape


def test_every_way_is_compared_with_exact_attention(monkeypatch):
    monkeypatch.setattr(attention, "CASES", {"vision": Shape(1, 40, 4, 2, 16, causal=True)})
    rows = attention.rows(Arguments(("vision",), repeats=1))
    assert [(row["pass"], row["way"]) for row in rows] == [
        (each, way) for each in ("forward", "gradients") for way in ("xla", "chunked")
    ]
    assert all(row["apart"] < 1e-5 and row["seconds"] > 0 for row in rows)


def test_apart_is_the_relative_norm_over_all_arrays():
    true = (jnp.asarray([3.0, 0.0]), jnp.asarray([4.0]))
    assert abs(attention._apart((jnp.asarray([3.0, 0.5]), jnp.asarray([4.0])), true) - 0.1) < 1e-6
