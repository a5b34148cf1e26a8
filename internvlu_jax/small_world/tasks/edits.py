"""Edits: a scene, an instruction with one meaning, and the scene after it. What is not spoken of stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError, edge_place, fits, free_place
from internvlu_jax.small_world.scenes.render import Box
from internvlu_jax.small_world.scenes.scene import SIZES, Item, Scene, word_extent
from internvlu_jax.small_world.scenes.shapes import extent
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import article, name, pick
from internvlu_jax.small_world.tasks.rejection import first_accepted
from internvlu_jax.small_world.tasks.spec_sampling import said_size, sample_spec
from internvlu_jax.small_world.tasks.specs import Group, SceneSpec, scene_of

_TRIES = 400

CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIDES = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Edit:
    """One change.

    kind: one of `EDITS`. old: the object that is changed, None where there is none; new: what becomes of it. free:
    whether the instruction leaves open where the new object is; sized: whether it says, or keeps, the size.
    """

    kind: str
    instruction: str
    before: Scene
    after: Scene
    old: Item | None = None
    new: Item | None = None
    free: bool = False
    sized: bool = True


def edit(world: World, kind: str, rng: np.random.Generator, held_out: bool = False) -> Edit:
    """An edit of one kind; something held out is in one of its scenes, or nothing is.

    Raises:
        ValueError: there is no such kind.
        ConfigError: the world has no such edits.
        NoPlaceError: none was found; another draw may find one.
    """
    if kind not in _MAKERS:
        raise ValueError(f"the kind of edit is {kind!r}; expected one of {', '.join(_MAKERS)}")
    world.require(kind, least_objects(kind), f"an edit of kind {kind!r}")
    return first_accepted(
        lambda: _MAKERS[kind](world, _before(world, kind, rng, held_out), rng, held_out),
        lambda made: (world.holds(made.before) or world.holds(made.after)) == held_out,
        _TRIES,
        f"edit {kind!r} with held_out {held_out}",
    )


def least_objects(kind: str) -> int:
    """The least number of objects that the scene after such an edit has."""
    return 2 if kind == "add" else 1


def _before(world: World, kind: str, rng: np.random.Generator, held_out: bool) -> Scene:
    """A mixed scene; where something held out is to come in, it may be there already."""
    spec = sample_spec(world, "mixed", rng, held_out and rng.random() < 0.5)
    if kind == "text":
        groups = spec.groups[:1] if spec.groups[0].count == 1 and rng.random() < 0.4 else ()
        spec = SceneSpec(groups, background=spec.background, word=world.word(rng))
    return scene_of(world, spec, rng, held_out)


def reference(item: Item, scene: Scene, rng: np.random.Generator) -> str:
    """Words that mean this object and no other: "star", "red star" or "small red star".

    Raises:
        NoPlaceError: the scene has another just like it.
    """
    ways = (
        Group(item.kind),
        Group(item.kind, item.colour),
        Group(item.kind, item.colour),
        Group(item.kind, item.colour, item.size),
    )
    clear = [way for way in ways if sum(map(way.fits, scene.items)) == 1]
    if not clear:
        raise NoPlaceError("there are two such objects")
    return name(pick(clear, rng))


def _others(scene: Scene, item: Item | None = None) -> list[Box]:
    """What is in the way of an object that takes another's place."""
    boxes = [other.box for other in scene.items if other is not item]
    return boxes + ([scene.word.box] if scene.word else [])


def _exchange(scene: Scene, old: Item, new: Item) -> Scene:
    """The scene with another object in the place of one.

    Raises:
        NoPlaceError: it touches others.
    """
    if not fits((new.x, new.y), extent(new.kind, new.radius), _others(scene, old)):
        raise NoPlaceError("the new object touches another")
    return replace(scene, items=tuple(new if item is old else item for item in scene.items))


def _changed(kind: str, text: str, scene: Scene, old: Item, new: Item) -> Edit:
    return Edit(kind, text, scene, _exchange(scene, old, new), old, new)


def _other(options: tuple[str, ...], but: str, rng: np.random.Generator) -> str:
    rest = [option for option in options if option != but]
    if not rest:
        raise NoPlaceError("there is nothing else")
    return pick(rest, rng)


def _recolour(world: World, scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    old = pick(scene.items, rng)
    new = replace(old, colour=_other(world.colours, old.colour, rng))
    ways = ("make the {} {}", "change the colour of the {} to {}", "paint the {} {}", "turn the {} {}")
    return _changed("recolour", pick(ways, rng).format(reference(old, scene, rng), new.colour), scene, old, new)


def _replace(world: World, scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    old = pick(scene.items, rng)
    kind, text = _other(world.kinds, old.kind, rng), reference(old, scene, rng)
    if rng.random() < 0.5:
        new = replace(old, kind=kind)
        return _changed("replace", f"turn the {text} into {article(kind)}", scene, old, new)
    new = replace(old, kind=kind, colour=pick(world.colours, rng))
    ways = ("replace the {} with {}", "put {1} in the place of the {0}")
    return _changed("replace", pick(ways, rng).format(text, article(f"{new.colour} {kind}")), scene, old, new)


def _resize(world: World, scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    old = pick(scene.items, rng)
    size = _other(world.sizes, old.size, rng)
    comparative = {"small": "smaller", "large": "larger"}[size]
    text = pick(("make the {} {}", "make the {} {}", "the {} should be {}"), rng)
    text = text.format(reference(old, scene, rng), comparative)
    return _changed("resize", text, scene, old, replace(old, size=size))


def _move(world: World, scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    old = pick(scene.items, rng)
    goal = pick(SIDES + CORNERS, rng)
    x, y = edge_place((old.x, old.y), extent(old.kind, old.radius), world.grid, goal)
    if abs(x - old.x) + abs(y - old.y) < 0.15:
        raise NoPlaceError("it is there already")
    corner = " corner" if goal in CORNERS else ""
    text = f"move the {reference(old, scene, rng)} to the {goal}{corner}"
    return _changed("move", text, scene, old, replace(old, x=x, y=y))


def _add(world: World, scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    if len(scene.items) >= world.most:
        raise NoPlaceError("there are as many objects as may be")
    said = said_size(world, 0.3, rng)
    kind, colour, size = pick(world.kinds, rng), pick(world.colours, rng), said or pick(world.sizes, rng)
    half, free = extent(kind, SIZES[size]), rng.random() < 0.5
    if free:
        place, where = free_place(half, _others(scene), world.grid, rng), ""
    else:
        corner = pick(CORNERS, rng)
        place, where = edge_place((0.5, 0.5), half, world.grid, corner), f" in the {corner} corner"
    new = Item(kind, colour, size, *place)
    if not fits(place, half, _others(scene)):
        raise NoPlaceError("there is no room")
    text = pick(("add {}{}", "add {}{}", "put {}{}"), rng) if where else pick(("add {}{}", "also draw {}{}"), rng)
    text = text.format(article(name(Group(kind, colour, said))), where)
    return Edit("add", text, scene, replace(scene, items=(*scene.items, new)), None, new, free, said is not None)


def _remove(world: World, scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    old = pick(scene.items, rng)
    after = replace(scene, items=tuple(item for item in scene.items if item is not old))
    text = pick(("remove the {}", "remove the {}", "take away the {}", "delete the {}"), rng)
    return Edit("remove", text.format(reference(old, scene, rng)), scene, after, old)


def _background(world: World, scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    new = _other(world.backgrounds, scene.background, rng)
    text = pick(("change the background to {}", "make the background {}", "use a {} background"), rng)
    return Edit("background", text.format(new), scene, replace(scene, background=new))


def _text(world: World, scene: Scene, rng: np.random.Generator, held_out: bool) -> Edit:
    word = scene.word
    assert word is not None
    new = world.word(rng, held_out)
    half = word_extent(len(new))
    if new == word.text or not fits((word.x, word.y), half, [item.box for item in scene.items]):
        raise NoPlaceError("the new word does not fit, or is the old one")
    ways = ("change the word to {1}", "change {0} to {1}", "replace {0} with {1}", "把{0}改成{1}", "把文字改成{1}")
    after = replace(scene, word=replace(word, text=new))
    return Edit("text", pick(ways, rng).format(word.text, new), scene, after)


_MAKERS: dict[str, Callable[[World, Scene, np.random.Generator, bool], Edit]] = {
    "recolour": _recolour,
    "add": _add,
    "remove": _remove,
    "move": _move,
    "replace": _replace,
    "resize": _resize,
    "background": _background,
    "text": _text,
}

EDITS = tuple(_MAKERS)
"""Kinds of edits."""
