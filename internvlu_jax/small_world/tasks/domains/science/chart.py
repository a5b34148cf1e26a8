"""Bar charts with letters below and values above the bars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.marks import DARK, PALE, Mark, letters, line, rectangle
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import NUMBERS, listing, pick
from internvlu_jax.small_world.tasks.things import Asked, Riddle, Topic, distinct

HIGHEST = 9
_NAMES = "ABCDE"
_UNIT, _FLOOR, _LEFT, _PITCH, _WIDTH = 4.0, 51.0, 5.0, 11.0, 8.0


@dataclass(frozen=True)
class Chart:
    """values, colours: of the bars A, B, C ... from left to right; the colours differ."""

    values: tuple[int, ...]
    colours: tuple[str, ...]

    @property
    def key(self) -> tuple[int, ...]:
        return self.values

    @property
    def names(self) -> str:
        return _NAMES[: len(self.values)]

    def said(self) -> str:
        bars = [f"{name} at {v} in {c}" for name, v, c in zip(self.names, self.values, self.colours, strict=True)]
        return f"a bar chart with {listing(bars)}"

    def marks(self) -> list[Mark]:
        top = _FLOOR - HIGHEST * _UNIT
        made: list[Mark] = [
            line((_LEFT - 2, _FLOOR - n * _UNIT), (_LEFT, _FLOOR - n * _UNIT), PALE, 1.0) for n in range(HIGHEST + 1)
        ]
        made += [
            line((_LEFT + 0.5, top - 1), (_LEFT + 0.5, _FLOOR + 1), DARK, 1.0),
            line((_LEFT, _FLOOR + 0.5), (62.0, _FLOOR + 0.5), DARK, 1.0),
        ]
        for n, (name, value, colour) in enumerate(zip(self.names, self.values, self.colours, strict=True)):
            x = _LEFT + 1.5 + _PITCH * (n + 0.5) + (5 - len(self.values)) * 2
            height = _FLOOR - value * _UNIT
            made.append(rectangle(x - _WIDTH / 2, height, x + _WIDTH / 2, _FLOOR, COLOURS[colour]))
            made += [letters(name, x, _FLOOR + 6.5), letters(str(value), x, height - 4.5)]
        return made


def _chart(world: World, rng: np.random.Generator) -> Chart:
    count = int(rng.integers(2, min(5, len(world.colours)) + 1))
    return Chart(tuple(rng.integers(1, HIGHEST + 1, count).tolist()), distinct(world.colours, count, rng))


def _riddle(world: World, rng: np.random.Generator) -> Riddle:
    """Every bar but the first is to be worked out of those before it."""
    chart = _chart(world, rng)
    values = chart.values
    said, facts = [f"A is {values[0]}"], []
    for n in range(1, len(values)):
        text, fact = _derived(chart, n, rng)
        said.append(f"{chart.names[n]} is {text}")
        facts.append(f"{chart.names[n]}: {fact} = {values[n]}.")
    return Riddle(f"a bar chart in {listing(chart.colours)} in which {listing(said)}", tuple(facts), chart)


def _derived(chart: Chart, n: int, rng: np.random.Generator) -> tuple[str, str]:
    """A value in terms of those before it, and the sum that works it out; rarer ways to say it are preferred."""
    value, before = chart.values[n], chart.values[:n]
    m = int(rng.integers(n))
    other, name = before[m], chart.names[m]
    ways = []
    if value == 2 * other:
        ways.append((f"twice {name}", f"2 x {other}"))
    if other == 2 * value:
        ways.append((f"half of {name}", f"{other} : 2"))
    if n >= 2 and value == sum(before[:2]):
        ways.append(("as much as A and B together", f"{before[0]} + {before[1]}"))
    if ways:
        return pick(ways, rng)
    if value == other:
        return f"as much as {name}", str(other)
    more, sign = ("more", "+") if value > other else ("less", "-")
    return f"{NUMBERS[abs(value - other)]} {more} than {name}", f"{other} {sign} {abs(value - other)}"


def _question(world: World, rng: np.random.Generator) -> Asked:
    chart = _chart(world, rng)
    values = dict(zip(chart.names, chart.values, strict=True))
    a, b = distinct(chart.names, 2, rng)
    limit, ends = int(rng.integers(2, HIGHEST)), (min(chart.values), max(chart.values))
    kind = pick(("value", "highest", "lowest", "sum", "more", "over", "colour"), rng)
    if kind in ("highest", "lowest") and chart.values.count(ends[kind == "highest"]) > 1:
        raise NoPlaceError("there are two of them")
    text, answer = {
        "value": (f"What is the value of {a}?", values[a]),
        "highest": ("Which bar is the highest?", chart.names[chart.values.index(ends[1])]),
        "lowest": ("Which bar is the lowest?", chart.names[chart.values.index(ends[0])]),
        "sum": (f"What do {a} and {b} add up to?", values[a] + values[b]),
        "more": (f"Is {a} higher than {b}?", "yes" if values[a] > values[b] else "no"),
        "over": (f"How many bars are higher than {limit}?", sum(value > limit for value in chart.values)),
        "colour": (f"What colour is bar {a}?", chart.colours[chart.names.index(a)]),
    }[kind]
    return Asked(kind, text, str(answer), chart)


TOPIC = Topic(_chart, _riddle, _question)
