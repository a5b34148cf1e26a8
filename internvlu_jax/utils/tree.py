"""Nested dicts by the paths of their leaves, joined with "/"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def paths(tree: Tree) -> dict[str, Any]:
    """Leaves of nested dicts by path: {"head/mmdit/latent_in/kernel": array, ...}, in the order of the tree."""
    return {
        "/".join(str(key.key) for key in keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def from_paths(leaves: Mapping[str, Any]) -> Tree:
    """The nested dicts whose `paths` these are."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def split(tree: Tree, chosen: Callable[[str], bool]) -> tuple[Tree, Tree]:
    """(leaves whose path is chosen, the others), each as nested dicts without empty branches."""
    leaves = paths(tree)
    return (
        from_paths({path: leaf for path, leaf in leaves.items() if chosen(path)}),
        from_paths({path: leaf for path, leaf in leaves.items() if not chosen(path)}),
    )


def in_dtype(tree: Tree, dtype: str) -> Tree:
    """Floating point arrays in `dtype`, each where it lies, on one device or many; those that are, and others, stay."""

    def one(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != dtype else leaf

    return jax.tree.map(one, tree)


def merge(first: Tree, second: Tree) -> Tree:
    """The inverse of `split`; where both have a path, the leaf of `second`."""
    return from_paths({**paths(first), **paths(second)})
