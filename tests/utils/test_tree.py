"""Nested dicts by path."""

import jax.numpy as jnp
import numpy as np

from internvlu_jax.utils.tree import from_paths, in_dtype, merge, paths, split

TREE = {"b": {"x": 1, "y": {"z": 2}}, "a": 3}


def test_paths_and_back():
    assert list(paths(TREE).items()) == [("a", 3), ("b/x", 1), ("b/y/z", 2)]
    assert from_paths(paths(TREE)) == TREE


def test_split_and_merge():
    first, second = split(TREE, lambda path: path.startswith("b/y"))
    assert (first, second) == ({"b": {"y": {"z": 2}}}, {"a": 3, "b": {"x": 1}})
    assert merge(first, second) == TREE
    assert merge(TREE, {"b": {"x": 5}})["b"] == {"x": 5, "y": {"z": 2}}


def test_floats_in_another_dtype():
    """What has it already, and what is no float, is not copied."""
    tree = {"a": jnp.ones(2), "b": jnp.arange(2), "c": jnp.full(2, 1 / 3, "bfloat16")}
    half, same = in_dtype(tree, "bfloat16"), in_dtype(tree, "float32")
    assert [half["a"].dtype, same["c"].dtype] == ["bfloat16", "float32"]
    assert half["b"] is tree["b"] and half["c"] is tree["c"] and same["a"] is tree["a"]
    np.testing.assert_array_equal(same["c"], np.asarray(tree["c"], np.float32))
