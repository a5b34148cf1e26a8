"""What the domains beyond plain objects draw, and how a domain's topics become its tasks.

A thing (a lever, a graph, a stack of cubes) is the truth; its picture and all that is said about it come from it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.marks import Mark, brightness
from internvlu_jax.small_world.scenes.render import canvas
from internvlu_jax.small_world.scenes.scene import BACKGROUNDS, COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import frame, pick
from internvlu_jax.small_world.tasks.example import Example, Maker
from internvlu_jax.small_world.tasks.rejection import first_accepted
from internvlu_jax.small_world.tasks.spec_sampling import background

_HELD = 8  # one thing in so many is held out
_TRIES = 300
_LEGIBLE = 150  # lines brighter than this are hard to see on the backgrounds

_T = TypeVar("_T")


@runtime_checkable
class Thing(Protocol):
    """What a picture shows."""

    @property
    def key(self) -> Hashable:
        """Numbers and words that are the same for all pictures which training must not show if it must not show one."""
        ...

    def said(self) -> str:
        """The thing in words that leave nothing open but what does not matter."""
        ...

    def marks(self) -> Sequence[Mark]:
        """How it is drawn, what is on top last."""
        ...


@dataclass(frozen=True)
class Drawing:
    """A thing on a background."""

    thing: Thing
    background: str = "white"

    def draw(self, side: int) -> UInt8[np.ndarray, "y x 3"]:
        """The picture, side by side pixels.

        Raises:
            ValueError: side is under 8.
        """
        picture = canvas(side, BACKGROUNDS[self.background])
        for mark in self.thing.marks():
            mark.paint(picture)
        return picture

    def told(self, text: str) -> str:
        """The text with the background; white is not mentioned."""
        return text if self.background == "white" else f"{text}, on a {self.background} background"


@dataclass(frozen=True)
class Riddle:
    """A prompt that leaves something to be worked out; the facts do so.

    so: what is to be drawn, where that is less than everything about the thing.
    """

    prompt: str
    facts: tuple[str, ...]
    thing: Thing
    so: str = ""


@dataclass(frozen=True)
class Asked:
    """A question about a thing. kind: for scores by kind. answer: a word, a number in digits, or a few of them."""

    kind: str
    text: str
    answer: str
    thing: Thing


@dataclass(frozen=True)
class Change:
    """An edit: what is asked for, the thing before and after it. kind: for scores by kind."""

    kind: str
    instruction: str
    before: Thing
    after: Thing


@dataclass(frozen=True)
class Topic:
    """One kind of thing: made at random, as the answer to a riddle, asked about, and changed.

    Each may raise NoPlaceError where its random choices do not fit together.
    """

    thing: Callable[[World, np.random.Generator], Thing]
    riddle: Callable[[World, np.random.Generator], Riddle]
    question: Callable[[World, np.random.Generator], Asked]
    change: Callable[[World, np.random.Generator], Change] | None = None


def tasks(topics: Mapping[str, Topic]) -> Mapping[str, Maker]:
    """The tasks of a domain: all topics that have one are as frequent in it."""
    made: dict[str, Maker] = {
        "picture": partial(_picture, topics),
        "reasoning": partial(_reasoning, topics),
        "question": partial(_question, topics),
    }
    changing = {name: topic for name, topic in topics.items() if topic.change is not None}
    return {**made, "edit": partial(_edit, changing)} if changing else made


def holds(thing: Thing) -> bool:
    """Whether it is one of the eighth of all things that are held out of training."""
    return zlib.crc32(repr(thing.key).encode()) % _HELD == 0


def bold(world: World) -> tuple[str, ...]:
    """The world's colours in which even a line can be seen, or all if there is none."""
    legible = tuple(colour for colour in world.colours if brightness(COLOURS[colour]) < _LEGIBLE)
    return legible or world.colours


def distinct(options: Sequence[_T], count: int, rng: np.random.Generator) -> tuple[_T, ...]:
    """So many of them, all different, in any order.

    Raises:
        NoPlaceError: there are not that many.
    """
    if count > len(options):
        raise NoPlaceError(f"there are no {count} among {options}")
    return tuple(options[int(n)] for n in rng.choice(len(options), count, replace=False))


def _picture(topics: Mapping[str, Topic], world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """A prompt that says all there is to say."""
    name = pick(tuple(topics), rng)
    thing = _sampled(topics[name].thing, lambda thing: (thing,), world, rng, held_out)
    drawing = Drawing(thing, background(world, rng) or "white")
    return Example("t2i", name, frame(rng).format(drawing.told(thing.said())), drawing, drawing)


def _reasoning(topics: Mapping[str, Topic], world: World, rng: np.random.Generator, held_out: bool) -> Example:
    """A prompt with something to be worked out, and the reasoning before the picture."""
    name = pick(tuple(topics), rng)
    riddle = _sampled(topics[name].riddle, lambda riddle: (riddle.thing,), world, rng, held_out)
    drawing = Drawing(riddle.thing, background(world, rng) or "white")
    reasoning = " ".join([*riddle.facts, f"So draw {drawing.told(riddle.so or riddle.thing.said())}."])
    return Example("t2i", name, drawing.told(riddle.prompt), drawing, drawing, reasoning=reasoning)


def _question(topics: Mapping[str, Topic], world: World, rng: np.random.Generator, held_out: bool) -> Example:
    name = pick(tuple(topics), rng)
    asked = _sampled(topics[name].question, lambda asked: (asked.thing,), world, rng, held_out)
    drawing = Drawing(asked.thing, background(world, rng) or "white")
    return Example("understanding", f"{name} {asked.kind}", asked.text, asked, source=drawing, answer=asked.answer)


def _edit(topics: Mapping[str, Topic], world: World, rng: np.random.Generator, held_out: bool) -> Example:
    name = pick(tuple(topics), rng)
    change = topics[name].change
    assert change is not None
    made = _sampled(change, lambda made: (made.before, made.after), world, rng, held_out)
    back = background(world, rng) or "white"
    before, after = Drawing(made.before, back), Drawing(made.after, back)
    return Example("edit", f"{name} {made.kind}", made.instruction, made, after, before)


def _sampled(
    make: Callable[[World, np.random.Generator], _T],
    things: Callable[[_T], tuple[Thing, ...]],
    world: World,
    rng: np.random.Generator,
    held_out: bool,
) -> _T:
    """What is made, with something held out in it or nothing."""
    return first_accepted(
        lambda: make(world, rng),
        lambda made: any(map(holds, things(made))) == held_out,
        _TRIES,
        f"thing with held_out {held_out}",
    )
