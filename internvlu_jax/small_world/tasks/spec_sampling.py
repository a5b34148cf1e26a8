"""Prompts' meanings drawn at random: the six categories of GenEval, and mixed scenes that are said in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from internvlu_jax.small_world.scenes.scene import Scene
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import pick
from internvlu_jax.small_world.tasks.specs import RELATIONS, Group, SceneSpec, holds

CATEGORIES = ("single", "two", "counting", "colours", "position", "attribution")
"""Of prompts: one object; two; so many; one in a colour; two and how they lie; two, each in its colour."""


def sample_spec(world: World, category: str, rng: np.random.Generator, held_out: bool = False) -> SceneSpec:
    """A spec of one of the categories, or "mixed"; something held out is said in it, or nothing is.

    Raises:
        ValueError: there is no such category, or no such spec in this world.
    """
    if category not in _MAKERS:
        raise ValueError(f"the category is {category!r}; expected one of {', '.join(_MAKERS)}")
    for _ in range(2000):
        spec = _MAKERS[category](world, rng, held_out)
        if spec is not None and holds(world, spec) == held_out:
            return spec
    raise ValueError(f"no spec of category {category!r} was found with held_out {held_out}")


def background(world: World, rng: np.random.Generator) -> str | None:
    """The background that a prompt names: mostly None, which is the first of the world."""
    others = world.backgrounds[1:]
    return pick(others, rng) if others and rng.random() >= world.plain else None


def said_size(world: World, share: float, rng: np.random.Generator) -> str | None:
    """A size that is said, in that share of the cases; where all have one it is not worth a word."""
    return pick(world.sizes, rng) if len(world.sizes) > 1 and rng.random() < share else None


def described(scene: Scene) -> SceneSpec:
    """The scene's objects from left to right, equal ones together, with its background and word."""
    names = Counter((item.kind, item.colour) for item in sorted(scene.items, key=lambda item: item.x))
    groups = tuple(Group(kind, colour, count=count) for (kind, colour), count in names.items())
    word = scene.word
    return SceneSpec(
        groups, background=scene.background, word=word.text if word else None, word_colour=word.colour if word else None
    )


def _colour(world: World, rng: np.random.Generator) -> str:
    return pick(world.colours, rng)


def _kind(world: World, rng: np.random.Generator) -> str:
    return pick(world.kinds, rng)


def _single(world: World, rng: np.random.Generator, coloured: bool) -> SceneSpec:
    size = said_size(world, 0.4, rng)
    return SceneSpec((Group(_kind(world, rng), _colour(world, rng) if coloured else None, size),))


def _two(world: World, rng: np.random.Generator, coloured: bool) -> SceneSpec | None:
    groups = tuple(Group(_kind(world, rng), _colour(world, rng) if coloured else None) for _ in range(2))
    return SceneSpec(groups) if groups[0].kind != groups[1].kind else None


def _counting(world: World, rng: np.random.Generator, coloured: bool) -> SceneSpec:
    colour = _colour(world, rng) if rng.random() < 0.5 else None
    return SceneSpec((Group(_kind(world, rng), colour, count=int(rng.integers(min(2, world.most), world.most + 1))),))


def _colours(world: World, rng: np.random.Generator, coloured: bool) -> SceneSpec:
    return SceneSpec((Group(_kind(world, rng), _colour(world, rng)),))


def _position(world: World, rng: np.random.Generator, coloured: bool) -> SceneSpec | None:
    spec = _attribution(world, rng, True) if coloured or rng.random() < 0.6 else _two(world, rng, False)
    if spec is None:
        return None
    first, second = spec.groups
    if world.most >= 3 and rng.random() < 0.2:
        first = Group(first.kind, first.colour, count=2)
    return SceneSpec((first, second), pick(RELATIONS, rng))


def _attribution(world: World, rng: np.random.Generator, coloured: bool) -> SceneSpec | None:
    groups = tuple(Group(_kind(world, rng), _colour(world, rng)) for _ in range(2))
    differ = groups[0].kind != groups[1].kind and groups[0].colour != groups[1].colour
    return SceneSpec(groups) if differ else None


def _mixed(world: World, rng: np.random.Generator, coloured: bool) -> SceneSpec | None:
    """Up to four objects in up to three groups, everything about them said but for most of the sizes."""
    counts = [1 + int(rng.random() < 0.2) for _ in range(rng.integers(1, 4))]
    size = said_size(world, 0.2, rng)
    groups = [Group(_kind(world, rng), _colour(world, rng), count=count) for count in counts]
    names = {(group.kind, group.colour) for group in groups}
    if sum(counts) > world.most or len(names) < len(groups):
        return None
    groups[0] = Group(groups[0].kind, groups[0].colour, size, groups[0].count)
    return SceneSpec(tuple(groups), background=background(world, rng))


_MAKERS: dict[str, Callable[[World, np.random.Generator, bool], SceneSpec | None]] = {
    "single": _single,
    "two": _two,
    "counting": _counting,
    "colours": _colours,
    "position": _position,
    "attribution": _attribution,
    "mixed": _mixed,
}
