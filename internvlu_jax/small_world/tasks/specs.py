"""What a prompt asks for: the meaning that its text, the scenes that fulfil it and the verdict on a picture share.

Whatever is not said is free: the colours and sizes of objects, where they are. What is there is not: a picture that
fulfils the prompt shows the objects that are asked for and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from internvlu_jax.small_world.scenes.layout import (
    Half,
    NoPlaceError,
    Place,
    box_at,
    edge_place,
    fits,
    free_place,
    free_places,
)
from internvlu_jax.small_world.scenes.scene import SIZES, Item, Scene, Word, word_extent
from internvlu_jax.small_world.scenes.shapes import extent
from internvlu_jax.small_world.scenes.world import World

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

APART = 0.1
"""A relation holds from this difference on, in sides of the picture; the world's own scenes have twice as much."""


@runtime_checkable
class Seen(Protocol):
    """An object, drawn or read."""

    @property
    def kind(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...


@dataclass(frozen=True)
class Group:
    """So many objects of a kind, all of the colour and the size if there is one."""

    kind: str
    colour: str | None = None
    size: str | None = None
    count: int = 1

    def fits(self, item: Seen) -> bool:
        return (
            item.kind == self.kind
            and (self.colour is None or item.colour == self.colour)
            and (self.size is None or item.size == self.size)
        )


@dataclass(frozen=True)
class SceneSpec:
    """A picture as it is asked for.

    relation: of every object of the first group to every one of the second. background: None is white. word: its text;
    None is no word. word_place: of the word, "above" or "below" the objects.
    """

    groups: tuple[Group, ...] = ()
    relation: str | None = None
    background: str | None = None
    word: str | None = None
    word_colour: str | None = None
    word_place: str | None = None

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)


def holds(world: World, spec: SceneSpec) -> bool:
    """Whether what is said, whatever is free, is held out of training."""
    return (
        any((group.colour, group.kind) in world.held_pairs for group in spec.groups)
        or world.holds_numbers((group.count, group.kind) for group in spec.groups)
        or (spec.word is not None and world.holds_word(spec.word))
    )


def related(relation: str, a: Seen, b: Seen, least: float = APART) -> bool:
    """Whether a is left of (right of, above, below) b."""
    across, down = b.x - a.x, b.y - a.y
    return {"left of": across, "right of": -across, "above": down, "below": -down}[relation] >= least


def assignments(groups: Sequence[Group], items: Sequence[Seen]) -> list[list[list[Seen]]]:
    """All ways to share the items out so that every group has its number; empty if there is none."""
    if len(items) != sum(group.count for group in groups):
        return []
    if not groups:
        return [[]]
    ways = []
    for chosen in itertools.combinations(range(len(items)), groups[0].count):
        if all(groups[0].fits(items[i]) for i in chosen):
            rest = [item for i, item in enumerate(items) if i not in chosen]
            ways += [[[items[i] for i in chosen], *way] for way in assignments(groups[1:], rest)]
    return ways


def scene_of(world: World, spec: SceneSpec, rng: np.random.Generator, held_out: bool = False) -> Scene:
    """A scene that fulfils the spec, what is free drawn at random; no held-out combination in it unless allowed.

    Raises:
        NoPlaceError: none was found, which only a very crowded one should see.
    """
    for attempt in range(400):
        items = [_free(world, group, rng, attempt > 40) for group in spec.groups for _ in range(group.count)]
        if not _distinct(spec, items) or (not held_out and world.holds_items(items)):
            continue
        try:
            scene = _placed(spec, items, world, rng)
        except NoPlaceError:
            continue
        if held_out or not world.holds(scene):
            return scene
    raise NoPlaceError(f"no scene was found for {spec}")


def _free(world: World, group: Group, rng: np.random.Generator, crowded: bool) -> Item:
    """The object without a place; where there is no room, small ones will do."""
    colour = group.colour or world.colours[rng.integers(len(world.colours))]
    sizes = world.sizes if not crowded else (min(world.sizes, key=lambda size: SIZES[size]),)
    return Item(group.kind, colour, group.size or sizes[rng.integers(len(sizes))], 0.5, 0.5)


def _distinct(spec: SceneSpec, items: Sequence[Item]) -> bool:
    """Whether the objects of related groups can be told apart."""
    return spec.relation is None or len(assignments(spec.groups, items)) == 1


def _placed(spec: SceneSpec, items: list[Item], world: World, rng: np.random.Generator) -> Scene:
    background = spec.background or "white"
    word = None
    if spec.word is not None:
        colour = spec.word_colour or world.colours[rng.integers(len(world.colours))]
        word = Word(spec.word, colour, *_word_place(spec, world.grid, rng))
    taken = [word.box] if word else []
    halves: list[Half] = [extent(item.kind, item.radius) for item in items]
    places = free_places(halves, taken, world.grid, rng)
    if spec.relation is not None:
        places = _sorted(places, spec.relation)
        if not _all_fit(places, halves):
            raise NoPlaceError("the objects do not fit in this order")
    placed = tuple(Item(i.kind, i.colour, i.size, *place) for i, place in zip(items, places, strict=True))
    if spec.relation is not None and not _clear(placed, spec.groups[0].count, spec.relation):
        raise NoPlaceError("the relation is not clear")
    if word is not None and not all(_beyond(word, item, spec.word_place) for item in placed):
        raise NoPlaceError("an object is beside the word")
    return Scene(placed, background, word)


def _sorted(places: Sequence[Place], relation: str) -> list[Place]:
    """The places in the order that the relation asks for."""
    axis = 0 if relation in ("left of", "right of") else 1
    return sorted(places, key=lambda place: place[axis], reverse=relation in ("right of", "below"))


def _all_fit(places: Sequence[Place], halves: Sequence[Half]) -> bool:
    boxes = [box_at(place, half) for place, half in zip(places, halves, strict=True)]
    return all(
        fits(place, half, boxes[:n] + boxes[n + 1 :])
        for n, (place, half) in enumerate(zip(places, halves, strict=True))
    )


def _clear(items: Sequence[Item], first: int, relation: str) -> bool:
    """Whether the relation is the more obvious one of the two axes, for every two objects that it speaks of."""
    axis = (lambda item: (item.x, item.y)) if relation in ("left of", "right of") else (lambda item: (item.y, item.x))
    for a, b in itertools.product(items[:first], items[first:]):
        (along_a, across_a), (along_b, across_b) = axis(a), axis(b)
        if not related(relation, a, b, 2 * APART) or abs(along_a - along_b) < abs(across_a - across_b):
            return False
    return True


def _beyond(word: Word, item: Item, word_place: str | None) -> bool:
    """Whether the object is wholly on the other side of the word."""
    if word_place is None:
        return True
    return item.box[1] >= word.box[3] if word_place == "above" else item.box[3] <= word.box[1]


def _word_place(spec: SceneSpec, grid: int, rng: np.random.Generator) -> Place:
    """Anywhere, or at the top or bottom where there are objects too."""
    half = word_extent(len(spec.word or ""))
    place = free_place(half, [], grid, rng)
    if not spec.groups:
        return place
    above = spec.word_place == "above" or (spec.word_place is None and rng.random() < 0.5)
    return edge_place(place, half, grid, "top" if above else "bottom")
