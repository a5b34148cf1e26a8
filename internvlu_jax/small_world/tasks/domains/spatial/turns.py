"""Flat figures turned by quarters: an arrow, and letters that look different from every side."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from internvlu_jax.small_world.scenes.letters import GLYPHS
from internvlu_jax.small_world.scenes.marks import Cells, Mark, rows_of
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import article, pick
from internvlu_jax.small_world.tasks.things import Asked, Change, Riddle, Topic, bold

FIGURES = ("arrow", "arrow", "arrow", *"FGJLPR47")  # the arrow comes up more often than each of the letters
DIRECTIONS = ("up", "right", "down", "left")
TURNS = ("upright", "turned a quarter clockwise", "upside down", "turned a quarter anticlockwise")
"""A letter after so many quarters."""

_BY = ("", "a quarter clockwise", "by half", "a quarter anticlockwise")
_CELL = 7.0
_ARROW = ("..#..", ".###.", "#####", "..#..", "..#..", "..#..", "..#..")


@dataclass(frozen=True)
class Turned:
    """figure: "arrow", which points up at first, or a letter. turns: quarters, clockwise."""

    figure: str
    turns: int
    colour: str

    @property
    def key(self) -> tuple[str, str]:
        return self.figure, self.colour

    @property
    def name(self) -> str:
        """ "arrow", "letter F" or "digit 4"."""
        if self.figure == "arrow":
            return self.figure
        return f"{'digit' if self.figure.isdigit() else 'letter'} {self.figure}"

    def said(self) -> str:
        if self.figure == "arrow":
            return f"{article(self.colour)} arrow that points {DIRECTIONS[self.turns]}"
        return f"{article(self.colour)} {self.name}, {TURNS[self.turns]}"

    def marks(self) -> list[Mark]:
        drawn = np.array([[cell == "#" for cell in row] for row in _ARROW])
        cells = np.rot90(drawn if self.figure == "arrow" else GLYPHS[self.figure], -self.turns)
        height, width = cells.shape
        return [Cells(rows_of(cells), 32 - width * _CELL / 2, 32 - height * _CELL / 2, COLOURS[self.colour], _CELL)]

    def turned(self, by: int) -> Turned:
        """After so many quarters more, clockwise."""
        return replace(self, turns=(self.turns + by) % 4)


def _turned(world: World, rng: np.random.Generator) -> Turned:
    return Turned(pick(FIGURES, rng), int(rng.integers(4)), pick(bold(world), rng))


def _state(turned: Turned) -> str:
    """ "up", or "upside down"."""
    return DIRECTIONS[turned.turns] if turned.figure == "arrow" else TURNS[turned.turns]


def _riddle(world: World, rng: np.random.Generator) -> Riddle:
    """One more turn of a letter that is turned already; one or two of an arrow."""
    first = _turned(world, rng)
    if first.figure != "arrow":
        first, by = replace(first, turns=int(rng.integers(1, 4))), int(rng.integers(1, 4))
        turned = first.turned(by)
        then = f"then turned {_BY[by]}"
        fact = f"{TURNS[first.turns].capitalize()}, {then}, it is {TURNS[turned.turns]}."
        return Riddle(f"{first.said()}, {then}", (fact,), turned)
    turned, facts, said = first, [], []
    for by in rng.integers(1, 4, int(rng.integers(1, 3))).tolist():
        turned = turned.turned(by)
        said.append(f"turned {_BY[by]}")
        facts.append(f"{said[-1].capitalize()} it points {DIRECTIONS[turned.turns]}.")
    return Riddle(f"{first.said()}, {', then '.join(said)}", tuple(facts), turned)


def _question(world: World, rng: np.random.Generator) -> Asked:
    turned = _turned(world, rng)
    if turned.figure == "arrow":
        return Asked("direction", "Which way does the arrow point?", _state(turned), turned)
    if rng.random() < 0.5:
        return Asked("letter", "Which letter or digit is it?", turned.figure, turned)
    return Asked("turn", f"How is the {turned.figure} turned?", _state(turned).removeprefix("turned "), turned)


def _change(world: World, rng: np.random.Generator) -> Change:
    turned, by = _turned(world, rng), int(rng.integers(1, 4))
    return Change("turn", f"turn the {turned.name} {_BY[by]}", turned, turned.turned(by))


TOPIC = Topic(_turned, _riddle, _question, _change)
