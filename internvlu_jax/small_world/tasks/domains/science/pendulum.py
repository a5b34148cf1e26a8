"""Pendulums: the longer, the slower; the time of a swing grows with the square root of the length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from internvlu_jax.small_world.scenes.marks import DARK, Disc, Mark, line
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import NUMBERS, article, listing, pick
from internvlu_jax.small_world.tasks.things import Asked, Riddle, Topic, distinct

LONGEST = 8
_UNIT, _TOP, _APART, _BOB, _SWING = 5.5, 6.0, 16.0, 5.0, math.radians(10)


@dataclass(frozen=True)
class Pendulums:
    """bobs: (colour, length) from left to right. swing: to the left -1, to the right 1, or straight down 0."""

    bobs: tuple[tuple[str, int], ...]
    swing: int

    @property
    def key(self) -> tuple[tuple[str, int], ...]:
        return self.bobs

    def said(self) -> str:
        phrases = [f"{article(colour)} one of length {length}" for colour, length in self.bobs]
        return f"{NUMBERS[len(phrases)]} pendulums from left to right: {listing(phrases)}"

    def marks(self) -> list[Mark]:
        angle = self.swing * _SWING
        made: list[Mark] = [line((5.0, _TOP - 1.5), (59.0, _TOP - 1.5), DARK, 3.0)]
        for n, (colour, length) in enumerate(self.bobs):
            x = 32 + _APART * (n - (len(self.bobs) - 1) / 2)
            end = (x + length * _UNIT * math.sin(angle), _TOP + length * _UNIT * math.cos(angle))
            made += [line((x, _TOP), end), Disc(*end, _BOB, COLOURS[colour])]
        return made


def _pendulums(world: World, rng: np.random.Generator, count: int | None = None) -> Pendulums:
    count = count or int(rng.integers(2, 4))
    colours, lengths = distinct(world.colours, count, rng), distinct(range(2, LONGEST + 1), count, rng)
    return Pendulums(tuple(zip(colours, lengths, strict=True)), int(rng.integers(-1, 2)))


def _riddle(world: World, rng: np.random.Generator) -> Riddle:
    """Which of two is slower, all in order of their speed, or a length from a ratio of times."""
    form = rng.integers(3)
    if form == 0:
        return _slower(world, rng)
    return _ordered(world, rng) if form == 1 else _ratio(world, rng)


def _slower(world: World, rng: np.random.Generator) -> Riddle:
    pendulums = _pendulums(world, rng, 2)
    one = int(rng.integers(2))
    (colour, length), (other, known) = pendulums.bobs[one], pendulums.bobs[1 - one]
    speed, longer = ("slower", "longer") if length > known else ("faster", "shorter")
    than = f"than {article(other)} one on its {('right', 'left')[one]}"
    so = f"{article(colour)} pendulum that is {longer} {than}"
    prompt = f"{article(colour)} pendulum that swings {speed} {than}"
    return Riddle(prompt, (f"The {longer} pendulum is the {speed} one.",), pendulums, so)


def _ordered(world: World, rng: np.random.Generator) -> Riddle:
    made = _pendulums(world, rng, 3)
    faster = rng.random() < 0.5
    bobs = tuple(sorted(made.bobs, key=lambda bob: bob[1], reverse=faster))
    colours = listing([colour for colour, _ in bobs])
    speed, length = (
        ("faster and faster", "shorter and shorter") if faster else ("slower and slower", "longer and longer")
    )
    prompt = f"three pendulums in {colours} that swing {speed} from left to right"
    fact = "The shorter a pendulum, the faster it swings." if faster else "The longer a pendulum, the slower it swings."
    return Riddle(prompt, (fact,), Pendulums(bobs, made.swing), f"three pendulums in {colours} that get {length}")


def _ratio(world: World, rng: np.random.Generator) -> Riddle:
    """Twice the time is four times the length."""
    short = 2
    colours = distinct(world.colours, 2, rng)
    twice = rng.random() < 0.5
    lengths = (short, 4 * short) if twice else (4 * short, short)
    pendulums = Pendulums(tuple(zip(colours, lengths, strict=True)), int(rng.integers(-1, 2)))
    time = "twice" if twice else "half"
    known = f"{article(colours[0])} pendulum of length {lengths[0]}"
    prompt = f"{known} and, right of it, {article(colours[1])} one that takes {time} as long for a swing"
    fact = "Twice the time takes four times the length" if twice else "Half the time takes a quarter of the length"
    return Riddle(prompt, (f"{fact}: {lengths[0]} {'x' if twice else ':'} 4 = {lengths[1]}.",), pendulums)


def _question(world: World, rng: np.random.Generator) -> Asked:
    pendulums = _pendulums(world, rng)
    bobs = pendulums.bobs
    kind = pick(("fastest", "slowest", "faster", "number", "place"), rng)
    if kind in ("fastest", "slowest"):
        extreme = (min if kind == "fastest" else max)(bobs, key=lambda bob: bob[1])
        return Asked(kind, f"Which pendulum swings {kind}?", extreme[0], pendulums)
    if kind == "number":
        return Asked(kind, "How many pendulums are there?", str(len(bobs)), pendulums)
    if kind == "place":
        return Asked(kind, "What colour is the leftmost pendulum?", bobs[0][0], pendulums)
    (first, a), (second, b) = distinct(bobs, 2, rng)
    text = f"Does the {first} pendulum swing faster than the {second} one?"
    return Asked(kind, text, "yes" if a < b else "no", pendulums)


TOPIC = Topic(_pendulums, _riddle, _question)
