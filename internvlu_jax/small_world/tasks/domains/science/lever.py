"""Levers: weights at whole steps from the pivot, in balance when weight times distance is the same on both sides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.marks import DARK, PALE, Mark, Point, Polygon, ink, letters, line
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import NUMBERS, listing, pick
from internvlu_jax.small_world.tasks.things import Asked, Riddle, Topic

REACH, HEAVIEST = 4, 9
_STEP, _ARM, _BLOCK, _TILT = 6.0, 28.0, 9.0, math.radians(9)
_PIVOT = (32.0, 42.0)

Load = tuple[int, int]
"""Steps from the pivot, to the left if negative, and weight."""


@dataclass(frozen=True)
class Lever:
    """loads: from left to right, two steps or more apart."""

    loads: tuple[Load, ...]
    colour: str

    @property
    def key(self) -> tuple[tuple[Load, ...], str]:
        return self.loads, self.colour

    def torque(self, side: str) -> int:
        """Weight times distance, added up, on the "left" or the "right"."""
        sign = -1 if side == "left" else 1
        return sum(abs(place) * weight for place, weight in self.loads if place * sign > 0)

    @property
    def down(self) -> str | None:
        """The side that is down, None in balance."""
        left, right = self.torque("left"), self.torque("right")
        return None if left == right else "left" if left > right else "right"

    def said(self) -> str:
        state = f"tilted to the {self.down}" if self.down else "in balance"
        return f"a lever {state} with {self.colour} weights: {said_loads(self.loads)}"

    def marks(self) -> list[Mark]:
        angle = {None: 0.0, "left": -_TILT, "right": _TILT}[self.down]
        x, y = _PIVOT
        fill = COLOURS[self.colour]
        made: list[Mark] = [Polygon(((x, y), (x - 8, y + 15), (x + 8, y + 15)), PALE)]
        made.append(line(_at(-_ARM, 0.0, angle), _at(_ARM, 0.0, angle), DARK, 2.5))
        steps = [step for step in range(-REACH, REACH + 1) if step]
        made += [line(_at(step * _STEP, 0.0, angle), _at(step * _STEP, 4.0, angle), DARK, 1.0) for step in steps]
        for place, weight in self.loads:
            middle, half = place * _STEP, _BLOCK / 2
            corners = ((-half, -1.2), (half, -1.2), (half, -1.2 - _BLOCK), (-half, -1.2 - _BLOCK))
            made.append(Polygon(tuple(_at(middle + dx, dy, angle) for dx, dy in corners), fill))
            made.append(letters(str(weight), *_at(middle, -1.2 - half, angle), ink(fill)))
        return made


def said_loads(loads: Sequence[Load]) -> str:
    """ "3 two steps left and 2 three steps right of the pivot"."""
    return listing([f"{weight} {_where(place)}" for place, weight in loads]) + " of the pivot"


def _where(place: int) -> str:
    steps = "one step" if abs(place) == 1 else f"{NUMBERS[abs(place)]} steps"
    return f"{steps} {'left' if place < 0 else 'right'}"


def _at(along: float, down: float, angle: float) -> Point:
    """A point on the tilted beam: so far to the right of the pivot and below the beam."""
    cos, sin = math.cos(angle), math.sin(angle)
    return _PIVOT[0] + along * cos - down * sin, _PIVOT[1] - 1 + along * sin + down * cos


def _lever(world: World, rng: np.random.Generator) -> Lever:
    """One in three is in balance, one in three has two weights on one side."""
    goal = pick((None, "left", "right"), rng)
    places = [int(rng.integers(-REACH, 0)), int(rng.integers(1, REACH + 1))]
    if rng.random() < 1 / 3:
        places.append(int(pick([p for p in range(-REACH, REACH + 1) if p], rng)))
    places.sort()
    if any(b - a < 2 for a, b in itertools.pairwise(places)):
        raise NoPlaceError("the weights touch")
    for _ in range(100):
        weights = rng.integers(1, HEAVIEST + 1, len(places)).tolist()
        lever = Lever(tuple(zip(places, weights, strict=True)), pick(world.colours, rng))
        if lever.down == goal:
            return lever
    raise NoPlaceError(f"no lever at {places} has {goal} down")


def _sum(lever: Lever, side: str) -> str:
    """ "Left: 3 x 2 + 1 x 4 = 10."."""
    loads = [load for load in lever.loads if (load[0] < 0) == (side == "left")]
    return f"{side.capitalize()}: {' + '.join(f'{w} x {abs(p)}' for p, w in loads)} = {lever.torque(side)}."


def _riddle(world: World, rng: np.random.Generator) -> Riddle:
    """How it comes to rest, or the weight that keeps the balance."""
    lever = _lever(world, rng)
    if lever.down is None and len(lever.loads) == 2 and rng.random() < 0.8:
        return _missing(lever, rng)
    prompt = f"how a lever comes to rest with {lever.colour} weights: {said_loads(lever.loads)}"
    left, right = lever.torque("left"), lever.torque("right")
    sign = "=" if left == right else ">" if left > right else "<"
    end = f"it tilts to the {lever.down}" if lever.down else "it is in balance"
    return Riddle(prompt, (_sum(lever, "left"), _sum(lever, "right"), f"{left} {sign} {right}, so {end}."), lever)


def _missing(lever: Lever, rng: np.random.Generator) -> Riddle:
    gone = int(rng.integers(2))
    (place, weight), (other, known) = lever.loads[gone], lever.loads[1 - gone]
    prompt = (
        f"a lever in balance with {lever.colour} weights: {known} {_where(other)} of the pivot "
        f"and the one that balances it {_where(place)}"
    )
    total = known * abs(other)
    facts = f"{known} x {abs(other)} = {total}.", f"{total} : {abs(place)} = {weight}."
    return Riddle(prompt, facts, lever)


def _question(world: World, rng: np.random.Generator) -> Asked:
    lever = _lever(world, rng)
    kind, side = pick(("balance", "down", "torque", "weight", "number"), rng), pick(("left", "right"), rng)
    if kind == "balance":
        return Asked(kind, "Is the lever in balance?", "no" if lever.down else "yes", lever)
    if kind == "down":
        return Asked(kind, "Which side of the lever is down?", lever.down or "neither", lever)
    if kind == "torque":
        return Asked(kind, f"What is weight times distance on the {side}?", str(lever.torque(side)), lever)
    if kind == "number":
        return Asked(kind, "How many weights are on the lever?", str(len(lever.loads)), lever)
    weights = [weight for place, weight in lever.loads if (place < 0) == (side == "left")]
    return Asked(kind, f"How much weight is on the {side}?", str(sum(weights)), lever)


TOPIC = Topic(_lever, _riddle, _question)
