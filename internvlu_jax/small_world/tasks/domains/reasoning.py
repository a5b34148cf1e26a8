"""Reasoning: prompts that need an inference, the chain of thought that resolves them, and the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks import riddles
from internvlu_jax.small_world.tasks.captions import article, name, phrase, pick, plain, plural
from internvlu_jax.small_world.tasks.example import Example, Maker
from internvlu_jax.small_world.tasks.spec_sampling import sample_spec
from internvlu_jax.small_world.tasks.specs import OPPOSITE, SceneSpec, holds, scene_of
from internvlu_jax.small_world.tasks.steps import STEPS, SceneRiddle


def _number(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    """As many as something else has, or a small sum; sometimes in a colour to be inferred as well."""
    spec = sample_spec(world, "counting", rng, held_out)
    group = spec.groups[0]
    count, fact = riddles.number(group.count, rng)
    if group.colour is not None and rng.random() < 0.4:
        colour, second = riddles.colour(group.colour, rng)
        return f"{count.format(plural(group.kind))}, in {colour}", [fact, second], spec
    return count.format(" ".join(w for w in (group.colour, plural(group.kind)) if w)), [fact], spec


def _colour(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    spec = sample_spec(world, "colours", rng, held_out)
    group = spec.groups[0]
    assert group.colour is not None
    text, fact = riddles.colour(group.colour, rng)
    return f"{article(group.kind)} in {text}", [fact], spec


def _kind(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    spec = sample_spec(world, "colours", rng, held_out)
    group = spec.groups[0]
    text, fact = riddles.kind(group.kind, world, rng)
    return f"{text}, in {group.colour}", [fact], spec


def _size(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    spec = sample_spec(world, "colours", rng, held_out)
    group = spec.groups[0]
    size, other = ("small", "large") if rng.random() < 0.5 else ("large", "small")
    if {size, other} - set(world.sizes):
        raise NoPlaceError("there is one size only")
    text = f"{article(name(group))} that is the opposite of {other}"
    return text, [f"The opposite of {other} is {size}."], SceneSpec((replace(group, size=size),))


def _mirror(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    """A relation turned around: by a mirror, by turning the picture, or by speaking of the other object."""
    spec = sample_spec(world, "position", rng, held_out)
    first, second = spec.groups
    relation = spec.relation
    assert relation is not None
    turned = OPPOSITE[relation]
    said = f"{phrase(first)} {turned} {phrase(second)}"
    if relation in ("left of", "right of"):
        return f"{said}, seen in a mirror", ["A mirror swaps left and right."], spec
    return f"{said}, turned upside down", ["Upside down, above is below."], spec


def _swap(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    spec = sample_spec(world, "attribution", rng, held_out)
    a, b = spec.groups
    swapped = SceneSpec((replace(a, colour=b.colour), replace(b, colour=a.colour)))
    if not held_out and holds(world, swapped):
        raise NoPlaceError("it must not be spoken of")
    facts = [f"The {a.kind} becomes {a.colour}, the {b.kind} becomes {b.colour}."]
    return f"{plain(swapped)} with their colours swapped", facts, spec


def _letter(world: World, rng: np.random.Generator, held_out: bool) -> SceneRiddle:
    """One letter, or a number; of all these only numbers are ever held out."""
    words = [
        word for word in riddles.READABLE if set(word) <= set(world.letters) and world.holds_word(word) == held_out
    ]
    if not words:
        raise NoPlaceError("no such word is held out")
    word = pick(words, rng)
    text, fact = riddles.letter(word, rng)
    return text, [fact], SceneSpec(word=word)


_RIDDLES: dict[str, Callable[[World, np.random.Generator, bool], SceneRiddle]] = {
    "number": _number,
    "colour": _colour,
    "kind": _kind,
    "size": _size,
    "mirror": _mirror,
    "swap": _swap,
    "letter": _letter,
}

RIDDLES = tuple(_RIDDLES)
"""Kinds of inferences, each from one fact or two that stand apart."""


def riddle(world: World, kind: str, rng: np.random.Generator, held_out: bool = False) -> tuple[str, str, SceneSpec]:
    """A prompt, the reasoning that resolves it, and what is meant.

    Raises:
        NoPlaceError: none was found; another draw may find one.
    """
    text, facts, spec = (_RIDDLES | STEPS)[kind](world, rng, held_out)
    facts = [fact[0].upper() + fact[1:] for fact in facts]
    return text, " ".join([*facts, f"So draw {plain(spec)}."]), spec


def picture(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """A prompt with the reasoning before the picture."""
    return _drawn(world, _pick(RIDDLES, world, rng), rng, held_out)


def steps(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """A prompt that takes several steps, with the reasoning before the picture."""
    return _drawn(world, _pick(tuple(STEPS), world, rng), rng, held_out)


def _pick(kinds: tuple[str, ...], world: World, rng: np.random.Generator) -> str:
    """One of the kinds that the world has."""
    return pick([kind for kind in kinds if kind not in world.without], rng)


def _drawn(world: World, kind: str, rng: np.random.Generator, held_out: bool) -> Example:
    text, reasoning, spec = riddle(world, kind, rng, held_out)
    return Example("t2i", kind, text, spec, scene_of(world, spec, rng, held_out), reasoning=reasoning)


def direct(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """The same prompts, the picture drawn without reasoning."""
    return replace(picture(world, rng, held_out), reasoning=None)


def words(world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """The same prompts and reasoning in words alone, for a language model that does not draw yet."""
    kind = _pick(RIDDLES, world, rng)
    text, reasoning, spec = riddle(world, kind, rng, held_out)
    return Example("understanding", kind, text, spec, answer=reasoning)


TASKS: Mapping[str, Maker] = {"picture": picture, "steps": steps, "direct": direct, "words": words}
