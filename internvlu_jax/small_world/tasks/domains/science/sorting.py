"""Bars and the steps of sorting algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from internvlu_jax.small_world.scenes.marks import DARK, Mark, letters, line, rectangle
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import NUMBERS, listing, pick, plural
from internvlu_jax.small_world.tasks.things import Asked, Riddle, Topic, distinct

HIGHEST = 9
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_UNIT, _FLOOR, _PITCH, _WIDTH = 5.0, 51.0, 10.0, 7.0

Step = tuple[str, tuple[int, ...]]
"""What is done, and the heights after it."""


@dataclass(frozen=True)
class Bars:
    """heights: from left to right, all different."""

    heights: tuple[int, ...]
    colour: str

    @property
    def key(self) -> tuple[tuple[int, ...], str]:
        return tuple(sorted(self.heights)), self.colour

    def said(self) -> str:
        return f"{self.colour} bars with the heights {listing(list(map(str, self.heights)))}"

    def marks(self) -> list[Mark]:
        made: list[Mark] = [line((2.0, _FLOOR + 0.5), (62.0, _FLOOR + 0.5), DARK, 1.0)]
        for n, height in enumerate(self.heights):
            x = 32 + _PITCH * (n - (len(self.heights) - 1) / 2) + 0.5
            left, top = x - _WIDTH / 2, _FLOOR - height * _UNIT
            made.append(rectangle(left, top, left + _WIDTH, _FLOOR, COLOURS[self.colour]))
            made.append(letters(str(height), x, _FLOOR + 6.5))
        return made


def bubble_pass(heights: Sequence[int]) -> Step:
    """Every two neighbours in turn are swapped if the left one is higher."""
    row, swaps = list(heights), []
    for n in range(len(row) - 1):
        if row[n] > row[n + 1]:
            row[n], row[n + 1] = row[n + 1], row[n]
            swaps.append(f"{row[n + 1]} and {row[n]}")
    return (f"Swap {', then '.join(swaps)}" if swaps else "Nothing is swapped"), tuple(row)


def selection_step(heights: Sequence[int], n: int) -> Step:
    """The least one from the n-th on (from 0) swaps places with the n-th."""
    row = list(heights)
    least = row.index(min(row[n:]))
    if least == n:
        return f"{row[n]} is the least from the {ORDINALS[n]} on and stays", tuple(row)
    row[n], row[least] = row[least], row[n]
    return f"{row[n]} is the least from the {ORDINALS[n]} on and swaps with {row[least]}", tuple(row)


def insertion_step(heights: Sequence[int], n: int) -> Step:
    """The n-th (from 0) moves to the left, before all that are higher."""
    row = list(heights)
    value = row.pop(n)
    place = sum(other < value for other in row[:n])
    row.insert(place, value)
    return (f"{value} stays" if place == n else f"{value} goes before {row[place + 1]}"), tuple(row)


def _bars(world: World, rng: np.random.Generator) -> Bars:
    return Bars(distinct(range(1, HIGHEST + 1), int(rng.integers(4, 7)), rng), pick(world.colours, rng))


def _steps(bars: Bars, rng: np.random.Generator) -> tuple[str, list[Step]]:
    """What is done, in words, and its steps."""
    count = int(rng.integers(1, 3))
    algorithm, unit = pick((("bubble", "pass"), ("selection", "step"), ("insertion", "step")), rng)
    row: Sequence[int] = bars.heights
    steps: list[Step] = []
    for n in range(count):
        if algorithm == "bubble":
            step = bubble_pass(row)
        else:
            step = selection_step(row, n) if algorithm == "selection" else insertion_step(row, n + 1)
        steps.append(step)
        row = step[1]
    return f"{NUMBERS[count]} {plural(unit) if count > 1 else unit} of {algorithm} sort", steps


def _riddle(world: World, rng: np.random.Generator) -> Riddle:
    """Steps of an algorithm, or the order at its end."""
    bars = _bars(world, rng)
    if rng.random() < 0.25:
        falling = rng.random() < 0.5
        done = tuple(sorted(bars.heights, reverse=falling))
        order = "highest to lowest" if falling else "lowest to highest"
        fact = f"From {order}: {_row(done)}."
        return Riddle(f"{bars.said()}, sorted from {order}", (fact,), Bars(done, bars.colour))
    what, steps = _steps(bars, rng)
    facts = tuple(f"{step}: {_row(row)}." for step, row in steps)
    return Riddle(f"{bars.said()}, after {what}", facts, Bars(steps[-1][1], bars.colour))


def _row(heights: Sequence[int]) -> str:
    return " ".join(map(str, heights))


def _question(world: World, rng: np.random.Generator) -> Asked:
    bars = _bars(world, rng)
    kind = pick(("sorted", "number", "height", "highest", "lowest", "step"), rng)
    if kind == "sorted":
        done = tuple(sorted(bars.heights))
        bars = Bars(done, bars.colour) if rng.random() < 0.5 else bars
        return Asked(kind, "Are the bars sorted from low to high?", "yes" if bars.heights == done else "no", bars)
    if kind == "step":
        what, steps = _steps(bars, rng)
        return Asked(kind, f"What are the heights after {what}?", _row(steps[-1][1]), bars)
    place = int(rng.integers(len(bars.heights)))
    text, answer = {
        "number": ("How many bars are there?", len(bars.heights)),
        "height": (f"How high is the {ORDINALS[place]} bar from the left?", bars.heights[place]),
        "highest": ("How high is the highest bar?", max(bars.heights)),
        "lowest": ("How high is the lowest bar?", min(bars.heights)),
    }[kind]
    return Asked(kind, text, str(answer), bars)


TOPIC = Topic(_bars, _riddle, _question)
