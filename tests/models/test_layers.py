"""Layers one by one in place of a stack."""

import jax
import numpy as np

from internvlu_jax.models.layers import unstack


def test_a_stack_is_taken_apart_by_layers():
    stack = {"norm": np.arange(6).reshape(3, 2), "attn": {"q": np.arange(12).reshape(3, 4), "k": np.arange(3)}}
    want = [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(3)]
    got = unstack(stack)
    assert list(got) == ["0", "1", "2"] and not stack
    for layer, expected in zip(got.values(), want, strict=True):
        jax.tree.map(np.testing.assert_array_equal, layer, expected)


class Leaf:
    """Two layers; notes how many like it there are whenever a layer is taken."""

    shape, alive, seen = (2,), 0, []

    def __init__(self):
        Leaf.alive += 1

    def __del__(self):
        Leaf.alive -= 1

    def __getitem__(self, layer):
        Leaf.seen.append(Leaf.alive)
        return layer


def test_no_more_than_one_array_is_held_twice():
    unstack({"a": Leaf(), "b": {"c": Leaf(), "d": Leaf()}})
    assert Leaf.seen == [3, 3, 2, 2, 1, 1]
