"""Rules that tell parameters apart by path: for freezing, learning rates, weight decay and what is shown of a run."""

from __future__ import annotations

import re

from internvlu_jax.config import ConfigError
from internvlu_jax.training.config import Rules
from internvlu_jax.utils.tree import Tree, paths


def numbers(tree: Tree, rules: Rules, name: str) -> dict[str, float]:
    """The number that `rules` give each path of a tree.

    Raises:
        ConfigError: a pattern is no regular expression or matches no path, or a path matches no pattern; `name` says
            which rules these are.
    """
    compiled = [_compiled(pattern, name) for pattern, _ in rules]
    values, used = {}, set()
    for path in paths(tree):
        matching = [n for n, pattern in enumerate(compiled) if pattern.fullmatch(path)]
        if not matching:
            raise ConfigError(f"{name}: no pattern matches the parameter {path}; end with a pattern '.*'")
        used.update(matching)
        values[path] = rules[matching[0]][1]
    idle = [pattern for n, (pattern, _) in enumerate(rules) if n not in used]
    if idle:
        first = ", ".join(sorted({"/".join(path.split("/")[:2]) for path in values}))
        raise ConfigError(f"{name}: {', '.join(map(repr, idle))} match no parameter; paths begin with {first}")
    return values


def _compiled(pattern: str, name: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{name}: {pattern!r} is not a regular expression: {error}") from None


def group(path: str) -> str:
    """The part of the model that a parameter belongs to, for metrics and messages: vlm/vit, head/mmdit, ..."""
    return "/".join(path.split("/")[:2])
