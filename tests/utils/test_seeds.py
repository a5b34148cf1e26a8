"""Seeds that would be taken for others are refused wherever they enter."""

import jax
import numpy as np
import pytest

from internvlu_jax.training.autoencoder import AutoencoderConfig
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.utils.seeds import LARGEST_SEED, check_seed, numbered_keys


def key(seed: int) -> bytes:
    return np.asarray(jax.random.key_data(jax.random.key(seed))).tobytes()


def test_the_range_is_that_of_keys_that_differ():
    assert (
        key(LARGEST_SEED) != key(LARGEST_SEED - 1) and key(0) == key(LARGEST_SEED + 1) and key(-1) == key(LARGEST_SEED)
    )


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, np.int64(7), np.uint32(2**32 - 1)])
def test_seeds_in_range(seed):
    check_seed(seed)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, -(2**31), 1.0, "1", None, True])
def test_other_seeds_are_refused_by_value(seed):
    configs = (lambda s: TrainConfig("a", 1, seed=s), lambda s: AutoencoderConfig(seed=s))
    for refuse in (check_seed, *(configs if isinstance(seed, int) else ())):
        with pytest.raises(ValueError, match=r"seed is .*; expected a whole number from 0 to 4294967295"):
            refuse(seed)


def test_keys_of_one_seed_are_numbered_and_those_of_several_are_each_ones_first():
    def drawn(keys):
        return np.asarray(jax.random.key_data(keys))

    one = drawn(numbered_keys(LARGEST_SEED, 4))
    assert len(np.unique(one, axis=0)) == 4
    for i in range(4):
        np.testing.assert_array_equal(one[i], drawn(jax.random.fold_in(jax.random.key(LARGEST_SEED), i)))
    np.testing.assert_array_equal(one[:2], drawn(numbered_keys(LARGEST_SEED, 2)))
    several = drawn(numbered_keys((3, LARGEST_SEED), 2))
    np.testing.assert_array_equal(several[1], one[0])
