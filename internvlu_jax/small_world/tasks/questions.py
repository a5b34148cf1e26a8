"""Questions about a scene, with short answers; the answer is drawn first, so that no question gives it away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.scene import Item, Scene
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import article, name, pick, plural
from internvlu_jax.small_world.tasks.edits import reference
from internvlu_jax.small_world.tasks.rejection import first_accepted
from internvlu_jax.small_world.tasks.spec_sampling import background, sample_spec
from internvlu_jax.small_world.tasks.specs import APART, OPPOSITE, RELATIONS, Group, SceneSpec, holds, related, scene_of

_TRIES = 400
_COUNTED = ("How many {} are there?", "How many {} are in the picture?", "How many {} do you see?")


@dataclass(frozen=True)
class Question:
    """kind: one of `QUESTIONS`, or `PLACE`. answer: a word, a number in digits, or what is written."""

    kind: str
    text: str
    answer: str
    scene: Scene


def question(world: World, kind: str, rng: np.random.Generator, held_out: bool = False) -> Question:
    """A question of one kind; something held out is in its scene, or nothing is.

    Raises:
        ValueError: there is no such kind.
        ConfigError: the world has no such questions.
        NoPlaceError: none was found; another draw may find one.
    """
    if kind not in _MAKERS:
        raise ValueError(f"the kind of question is {kind!r}; expected one of {', '.join(_MAKERS)}")
    world.require(kind, least_objects(kind), f"a question of kind {kind!r}")
    return first_accepted(
        lambda: _MAKERS[kind](world, rng, held_out),
        lambda made: world.holds(made.scene) == held_out,
        _TRIES,
        f"question {kind!r} with held_out {held_out}",
    )


def least_objects(kind: str) -> int:
    """The least number of objects in a scene that is made for such a question."""
    return 2 if kind in ("relation", "comparison", "place") else 1


def _mixed(world: World, rng: np.random.Generator, held_out: bool, least: int = 1) -> Scene:
    """Objects of all kinds, at least so many."""
    for _ in range(100):
        spec = sample_spec(world, "mixed", rng, held_out)
        if spec.count >= least:
            return scene_of(world, spec, rng, held_out)
    raise NoPlaceError(f"no scene with {least} objects was found")


def _scene(world: World, given: Scene | None, rng: np.random.Generator, held_out: bool, least: int = 1) -> Scene:
    """The scene that is asked about: the given one, or one of all kinds."""
    if given is None:
        return _mixed(world, rng, held_out, least)
    if len(given.items) < least:
        raise NoPlaceError(f"there are fewer than {least} objects")
    return given


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _existence(world: World, rng: np.random.Generator, held_out: bool, given: Scene | None = None) -> Question:
    scene = _scene(world, given, rng, held_out)
    item, coloured, there = pick(scene.items, rng), rng.random() < 0.7, rng.random() < 0.5
    group = Group(item.kind, item.colour if coloured else None)
    if not there:
        # what is missing looks like what is there: its colour or its kind is that of an object
        colour = pick(world.colours, rng) if rng.random() < 0.5 else pick(scene.items, rng).colour
        kind = pick(world.kinds, rng) if rng.random() < 0.5 else item.kind
        group = Group(kind, colour if coloured else None)
        if any(map(group.fits, scene.items)) or (not held_out and holds(world, SceneSpec((group,)))):
            raise NoPlaceError("it is there, or must not be spoken of")
    text = pick(("Is there {} in the picture?", "Is there {}?", "Can you see {}?"), rng)
    return Question("existence", text.format(article(name(group))), _yes(there), scene)


def _count(world: World, rng: np.random.Generator, held_out: bool) -> Question:
    """Every number is as likely as any other."""
    number = int(rng.integers(0, world.most + 1))
    asked = Group(pick(world.kinds, rng), pick(world.colours, rng) if rng.random() < 0.4 else None, count=number)
    if rng.random() < 0.15 and number > 0:
        scene = _mixed(world, rng, held_out)
        return Question("count", "How many objects are there?", str(len(scene.items)), scene)
    others = [
        Group(pick(world.kinds, rng), pick(world.colours, rng))
        for _ in range(rng.integers(number == 0, world.most - number + 1))
    ]
    if not held_out and (asked.colour, asked.kind) in world.held_pairs:
        raise NoPlaceError("it must not be spoken of")
    groups = tuple([asked] * bool(number) + others)
    scene = scene_of(world, SceneSpec(groups, background=background(world, rng)), rng, held_out)
    if sum(map(asked.fits, scene.items)) != number:
        raise NoPlaceError("there are others")
    return _how_many(asked, scene, rng)


def _how_many(group: Group, scene: Scene, rng: np.random.Generator) -> Question:
    text = pick(_COUNTED, rng).format(name(replace(group, count=2)))
    return Question("count", text, str(sum(map(group.fits, scene.items))), scene)


def _colour(world: World, rng: np.random.Generator, held_out: bool, given: Scene | None = None) -> Question:
    spelling = pick(("colour", "color"), rng)
    if len(world.backgrounds) > 1 and rng.random() < 0.15:
        scene = given or replace(_mixed(world, rng, held_out), background=pick(world.backgrounds, rng))
        return Question("colour", f"What {spelling} is the background?", scene.background, scene)
    scene = _scene(world, given, rng, held_out)
    item = pick(scene.items, rng)
    if sum(other.kind == item.kind for other in scene.items) > 1:
        raise NoPlaceError("the kind is there twice")
    return Question("colour", f"What {spelling} is the {item.kind}?", item.colour, scene)


def _shape(world: World, rng: np.random.Generator, held_out: bool, given: Scene | None = None) -> Question:
    scene = _scene(world, given, rng, held_out)
    item = pick(scene.items, rng)
    if sum(other.colour == item.colour for other in scene.items) > 1:
        raise NoPlaceError("the colour is there twice")
    text = pick(("What shape is the {} object?", "Which shape is {}?"), rng)
    return Question("shape", text.format(item.colour), item.kind, scene)


def _pair(scene: Scene, rng: np.random.Generator) -> tuple[Item, Item]:
    a, b = rng.choice(len(scene.items), 2, replace=False)
    return scene.items[a], scene.items[b]


def _relation(world: World, rng: np.random.Generator, held_out: bool, given: Scene | None = None) -> Question:
    scene = _scene(world, given, rng, held_out, least=2)
    (a, b), relation = _pair(scene, rng), pick(RELATIONS, rng)
    true, false = related(relation, a, b, 1.5 * APART), related(OPPOSITE[relation], a, b, 1.5 * APART)
    if not (true or false):
        raise NoPlaceError("neither is clear")
    first, second = reference(a, scene, rng), reference(b, scene, rng)
    if rng.random() < 0.5:
        answer = (relation if true else OPPOSITE[relation]).split()[0]
        ways = {"left of": "left or right of", "right of": "left or right of"}.get(relation, "above or below")
        return Question("relation", f"Is the {first} {ways} the {second}?", answer, scene)
    return Question("relation", f"Is the {first} {relation} the {second}?", _yes(true), scene)


def _place(world: World, rng: np.random.Generator, held_out: bool, given: Scene | None = None) -> Question:
    """Where in the picture one object is: what relations are made of, and learned from.

    Scenes of its own have several: of one object alone the answer is where anything is, and nothing is looked for.
    """
    scene = given or _mixed(world, rng, held_out, least=2)
    item = pick(scene.items, rng)
    ways, at = pick((("on the left or right", item.x), ("at the top or bottom", item.y)), rng)
    if abs(at - 0.5) < 0.75 * APART:
        raise NoPlaceError("it is in the middle")
    *_, first, _, second = ways.split()
    text = f"Is the {reference(item, scene, rng)} {ways}?"
    return Question("place", text, first if at < 0.5 else second, scene)


def _comparison(world: World, rng: np.random.Generator, held_out: bool, given: Scene | None = None) -> Question:
    scene = _scene(world, given, rng, held_out, least=2)
    form = rng.integers(3)
    if form == 0:
        item = pick(scene.items, rng)
        return Question(
            "comparison", f"Is the {reference_but_size(item, scene, rng)} small or large?", item.size, scene
        )
    (a, b), more = _pair(scene, rng), pick(("more", "fewer"), rng)
    if form == 1:
        numbers = [sum(item.kind == x.kind for item in scene.items) for x in (a, b)]
        if a.kind == b.kind or numbers[0] == numbers[1]:
            raise NoPlaceError("there is nothing to compare")
        answer = _yes((numbers[0] > numbers[1]) == (more == "more"))
        return Question("comparison", f"Are there {more} {plural(a.kind)} than {plural(b.kind)}?", answer, scene)
    if a.kind == b.kind or a.size == b.size:
        raise NoPlaceError("there is nothing to compare")
    larger = pick(("larger", "smaller"), rng)
    names = [reference_but_size(x, scene, rng) for x in (a, b)]
    winner = a if (a.radius > b.radius) == (larger == "larger") else b
    return Question("comparison", f"Which is {larger}, the {names[0]} or the {names[1]}?", winner.kind, scene)


def reference_but_size(item: Item, scene: Scene, rng: np.random.Generator) -> str:
    """Words that mean this object alone and do not tell its size."""
    called = reference(item, scene, rng)
    if item.size in called.split():
        raise NoPlaceError("its size tells it from another")
    return called


def _reading(world: World, rng: np.random.Generator, held_out: bool) -> Question:
    spec = sample_spec(world, "mixed", rng)
    groups = spec.groups[:1] if spec.groups[0].count == 1 and rng.random() < 0.3 else ()
    word = world.word(rng, held_out)
    scene = scene_of(world, SceneSpec(groups, background=spec.background, word=word), rng, held_out)
    ways = ("What does the word say?", "What is written in the picture?", "Read the text.", "图片上写着什么？")
    return Question("reading", pick(ways, rng), word, scene)


def _count_of(world: World, rng: np.random.Generator, held_out: bool, given: Scene) -> Question:
    """As `_count`, of a scene that was not made for it: in most cases a kind that is there."""
    if rng.random() < 0.15:
        return Question("count", "How many objects are there?", str(len(given.items)), given)
    kind = pick(given.items, rng).kind if rng.random() < 0.6 else pick(world.kinds, rng)
    group = Group(kind, pick(given.items, rng).colour if rng.random() < 0.4 else None)
    if not held_out and (group.colour, kind) in world.held_pairs:
        raise NoPlaceError("it must not be spoken of")
    return _how_many(group, given, rng)


def further(world: World, first: Question, number: int, rng: np.random.Generator, held_out: bool) -> list[Question]:
    """Up to so many other questions about the scene of a first one; no answer gives another one away."""
    asked = [first]
    # places tell relations
    left_out = _place if first.kind == "relation" else pick((_place, _relation), rng)
    about = [make for kind, make in _ABOUT.items() if make is not left_out and world.has(kind, 1)]
    for _ in range(4 * number):
        if len(asked) > number or not first.scene.items:
            break
        try:
            made = pick(about, rng)(world, rng, held_out, first.scene)
        except NoPlaceError:
            continue
        if _fact(made) not in map(_fact, asked):
            asked.append(made)
    return asked[1:]


def _fact(made: Question) -> tuple[str, str]:
    """What two questions must not share: the same may be asked in other words."""
    return made.kind, made.text if made.answer in ("yes", "no") else made.answer


_ABOUT: dict[str, Callable[[World, np.random.Generator, bool, Scene], Question]] = {
    "existence": _existence,
    "count": _count_of,
    "colour": _colour,
    "shape": _shape,
    "place": _place,
    "relation": _relation,
    "comparison": _comparison,
}

_MAKERS: dict[str, Callable[[World, np.random.Generator, bool], Question]] = {
    "existence": _existence,
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "relation": _relation,
    "comparison": _comparison,
    "reading": _reading,
    "place": _place,
}

PLACE = "place"
"""The kind of question that is there to learn from: relations are made of places."""

QUESTIONS = tuple(kind for kind in _MAKERS if kind != PLACE)
"""Kinds of questions that are scored."""
