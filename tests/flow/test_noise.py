"""Starting noise: the order of its numbers, and what one seed and several stand for."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from internvlu_jax.flow.noise import starting_noise
from tests.conftest import GOLDENS

SHAPE = (4, 6, 16)


def test_torch_numbers_lie_as_the_released_code_shapes_them():
    """torch.randn(1, 16, 4, 6): channels first, rows of six columns."""
    cases = json.loads((GOLDENS / "torch_randn.json").read_text())["cases"]
    (case,) = [c for c in cases if (c["dtype"], c["seed"], c["count"]) == ("float32", 42, 384)]
    (noise,) = starting_noise("torch-cpu", 42, 1, SHAPE)
    ends = np.concatenate([noise[0, :4, 0], noise[1, 2:6, 15], noise[3, 2:6, 15]])
    np.testing.assert_array_equal(ends.astype(np.float64), case["values"])


def test_keys_of_jax_are_numbered():
    noise = starting_noise("jax", 7, 3, SHAPE)
    for number in range(3):
        key = jax.random.fold_in(jax.random.key(7), number)
        np.testing.assert_array_equal(noise[number], jax.random.normal(key, SHAPE, jnp.float32))


@pytest.mark.parametrize("kind", ["torch-cpu", "torch-cuda", "jax"])
def test_one_seed_and_several(kind):
    four = starting_noise(kind, 2**32 - 1, 4, SHAPE)
    assert four.shape == (4, *SHAPE) and four.dtype == np.float32 and len(np.unique(four)) > 1500
    np.testing.assert_array_equal(four[:2], starting_noise(kind, 2**32 - 1, 2, SHAPE))
    own = starting_noise(kind, (3, 2**32 - 1), 2, SHAPE)
    np.testing.assert_array_equal(own[1], four[0])
    np.testing.assert_array_equal(own[:1], starting_noise(kind, 3, 1, SHAPE))
