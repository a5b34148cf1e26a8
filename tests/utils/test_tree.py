"""Nested dicts by path."""

from internvlu_jax.utils.tree import from_paths, merge, paths, split

TREE = {"b": {"x": 1, "y": {"z": 2}}, "a": 3}


def test_paths_and_back():
    assert list(paths(TREE).items()) == [("a", 3), ("b/x", 1), ("b/y/z", 2)]
    assert from_paths(paths(TREE)) == TREE


def test_split_and_merge():
    first, second = split(TREE, lambda path: path.startswith("b/y"))
    assert (first, second) == ({"b": {"y": {"z": 2}}}, {"a": 3, "b": {"x": 1}})
    assert merge(first, second) == TREE
    assert merge(TREE, {"b": {"x": 5}})["b"] == {"x": 5, "y": {"z": 2}}
