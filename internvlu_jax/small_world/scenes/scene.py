"""What a picture of the small world shows. A scene is the truth; picture, texts, edits and scores derive from it.

Positions and lengths are fractions of the picture's side, x to the right and y downwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from internvlu_jax.small_world.scenes.letters import ROWS, word_columns
from internvlu_jax.small_world.scenes.render import Box, Colour, canvas, paint_shape, paint_word
from internvlu_jax.small_world.scenes.shapes import extent

COLOURS: Mapping[str, Colour] = {
    "red": (215, 25, 40),
    "green": (25, 150, 60),
    "blue": (35, 80, 220),
    "yellow": (255, 215, 0),
    "purple": (135, 45, 165),
    "orange": (245, 115, 0),
    "black": (20, 20, 20),
    "pink": (250, 125, 185),
    "cyan": (0, 190, 200),
    "brown": (120, 70, 35),
    "gray": (128, 128, 128),
}
"""Colours of objects and words."""

BACKGROUNDS: Mapping[str, Colour] = {
    "white": (255, 255, 255),
    "light blue": (195, 222, 250),
    "light yellow": (255, 246, 195),
    "light green": (200, 240, 200),
    "light gray": (218, 218, 218),
}
"""Colours of backgrounds; prompts do not mention white."""

SIZES: Mapping[str, float] = {"small": 8 / 64, "large": 12 / 64}
"""Radius of each size."""

CELL = (1 / 32, 3 / 64)
"""Width and height of one cell of a letter."""


@runtime_checkable
class Drawable(Protocol):
    """Anything that can be drawn at any size."""

    def draw(self, side: int) -> UInt8[np.ndarray, "y x 3"]: ...


@dataclass(frozen=True)
class Item:
    """One object; x, y is the middle of the box around it."""

    kind: str
    colour: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        return SIZES[self.size]

    @property
    def box(self) -> Box:
        return _around(self.x, self.y, extent(self.kind, self.radius))


@dataclass(frozen=True)
class Word:
    """A line of letters A-Z and 0-9; x, y is its middle."""

    text: str
    colour: str
    x: float = 0.5
    y: float = 0.5

    @property
    def box(self) -> Box:
        return _around(self.x, self.y, word_extent(len(self.text)))


@dataclass(frozen=True)
class Scene:
    """Objects and perhaps a word on a plain background, none of them touching."""

    items: tuple[Item, ...] = ()
    background: str = "white"
    word: Word | None = None

    def draw(self, side: int) -> UInt8[np.ndarray, "y x 3"]:
        """The picture, side by side pixels.

        Raises:
            ValueError: side is under 8, or there is no such kind, colour or letter.
        """
        under = _named(self.background, BACKGROUNDS)
        picture = canvas(side, under)
        for item in self.items:
            paint_shape(picture, item.kind, item.radius, (item.x, item.y), under, _named(item.colour, COLOURS))
        if self.word is not None:
            paint_word(picture, self.word.text, self.word.box, under, _named(self.word.colour, COLOURS))
        return picture


def word_extent(letters: int) -> tuple[float, float]:
    """Half the width and height of a word."""
    return word_columns(letters) * CELL[0] / 2, ROWS * CELL[1] / 2


def _around(x: float, y: float, half: tuple[float, float]) -> Box:
    return x - half[0], y - half[1], x + half[0], y + half[1]


def _named(name: str, colours: Mapping[str, Colour]) -> Colour:
    if name not in colours:
        raise ValueError(f"the colour is {name!r}; expected one of {', '.join(colours)}")
    return colours[name]
