"""Parameters by path: one mechanism for freezing, learning rates, weight decay and what is shown of a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax

from internvlu_jax.config import ConfigError
from internvlu_jax.training.config import Rules

Tree = Any


def paths(tree: Tree) -> dict[str, Any]:
    """Leaves of nested dicts by path: {"head/mmdit/latent_in/kernel": array, ...}, in the order of the tree."""
    found = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        found["/".join(str(key.key) for key in keys)] = leaf
    return found


def from_paths(leaves: dict[str, Any]) -> Tree:
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


def merge(first: Tree, second: Tree) -> Tree:
    """The inverse of `split`."""
    return from_paths({**paths(first), **paths(second)})


def numbers(tree: Tree, rules: Rules, name: str) -> dict[str, float]:
    """The number that `rules` give each path of a tree.

    Raises:
        ConfigError: a pattern is no regular expression or matches no path, or a path matches no pattern; `name` says
            which rules these are.
    """
    compiled = [_compiled(pattern, name) for pattern, _ in rules]
    found, used = {}, set()
    for path in paths(tree):
        matching = [n for n, pattern in enumerate(compiled) if pattern.fullmatch(path)]
        if not matching:
            raise ConfigError(f"{name}: no pattern matches the parameter {path}; end with a pattern '.*'")
        used.update(matching)
        found[path] = rules[matching[0]][1]
    idle = [pattern for n, (pattern, _) in enumerate(rules) if n not in used]
    if idle:
        first = ", ".join(sorted({"/".join(path.split("/")[:2]) for path in found}))
        raise ConfigError(f"{name}: {', '.join(map(repr, idle))} match no parameter; paths begin with {first}")
    return found


def _compiled(pattern: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{name}: {pattern!r} is not a regular expression: {error}") from None


def group(path: str) -> str:
    """The part of the model that a parameter belongs to, for metrics and messages: vlm/vit, head/mmdit, ..."""
    return "/".join(path.split("/")[:2])
