"""Polygons, discs and letters that pictures of levers, graphs, charts and the like are made of.

They may lie on each other, as the objects of a scene do not. Positions and lengths are in 64ths of the picture's side,
x to the right and y downwards: whole numbers are sharp at 64 pixels and at its multiples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from internvlu_jax.small_world.scenes.letters import line_cells
from internvlu_jax.small_world.scenes.render import Box, Colour, Picture, paint_cells, paint_region
from internvlu_jax.small_world.scenes.shapes import in_polygon

UNITS = 64
"""Units of the picture's side."""

Point = tuple[float, float]

DARK: Colour = (45, 45, 52)
PALE: Colour = (170, 170, 178)
WHITE: Colour = (255, 255, 255)


@runtime_checkable
class Mark(Protocol):
    """Something that can be drawn over whatever is there."""

    @property
    def box(self) -> Box: ...
    def paint(self, picture: Picture) -> None: ...


@dataclass(frozen=True)
class Polygon:
    points: tuple[Point, ...]
    colour: Colour

    @property
    def box(self) -> Box:
        xs, ys = zip(*self.points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def paint(self, picture: Picture) -> None:
        corners = [(x / UNITS, y / UNITS) for x, y in self.points]
        paint_region(picture, _in_sides(self.box), lambda x, y: in_polygon(corners, x, y), self.colour)


@dataclass(frozen=True)
class Disc:
    x: float
    y: float
    radius: float
    colour: Colour

    @property
    def box(self) -> Box:
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius

    def paint(self, picture: Picture) -> None:
        x0, y0, limit = self.x / UNITS, self.y / UNITS, (self.radius / UNITS) ** 2
        paint_region(picture, _in_sides(self.box), lambda x, y: (x - x0) ** 2 + (y - y0) ** 2 <= limit, self.colour)


@dataclass(frozen=True)
class Cells:
    """Squares of side `cell` where a row has a "#", the first row on top; left, top are their upper left corner."""

    rows: tuple[str, ...]
    left: float
    top: float
    colour: Colour
    cell: float = 1.0

    @property
    def box(self) -> Box:
        return (
            self.left,
            self.top,
            self.left + self.cell * len(self.rows[0]),
            self.top + self.cell * len(self.rows),
        )

    def paint(self, picture: Picture) -> None:
        cells = np.array([[cell == "#" for cell in row] for row in self.rows])
        paint_cells(picture, cells, _in_sides(self.box), self.colour)


def letters(text: str, x: float, y: float, colour: Colour = DARK) -> Cells:
    """A line of letters around a point, as near as whole units allow: 5 wide and 7 high, one free between two."""
    rows = rows_of(line_cells(text))
    left, top = (float(math.floor(v + 0.5)) for v in (x - len(rows[0]) / 2, y - len(rows) / 2))
    return Cells(rows, left, top, colour)


def rows_of(cells: Bool[np.ndarray, "h w"]) -> tuple[str, ...]:
    """Cells as `Cells` has them."""
    return tuple("".join(".#"[int(cell)] for cell in row) for row in cells)


def line(a: Point, b: Point, colour: Colour = DARK, width: float = 1.5) -> Polygon:
    """A straight line with square ends."""
    length = math.dist(a, b)
    dx, dy = (width / 2 * (b[0] - a[0]) / length, width / 2 * (b[1] - a[1]) / length)
    return Polygon(
        ((a[0] - dy, a[1] + dx), (a[0] + dy, a[1] - dx), (b[0] + dy, b[1] - dx), (b[0] - dy, b[1] + dx)), colour
    )


def rectangle(left: float, top: float, right: float, bottom: float, colour: Colour) -> Polygon:
    return Polygon(((left, top), (right, top), (right, bottom), (left, bottom)), colour)


def arrow_head(tip: Point, direction: Point, colour: Colour, size: float = 5.0) -> Polygon:
    """A triangle that ends at the tip; the direction has length one."""
    (x, y), (dx, dy) = tip, direction
    base, half = (x - size * dx, y - size * dy), 0.55 * size
    return Polygon(
        ((x, y), (base[0] - half * dy, base[1] + half * dx), (base[0] + half * dy, base[1] - half * dx)), colour
    )


def badge(text: str, x: float, y: float, fill: Colour, radius: float = 5.5, rim: Colour = DARK) -> list[Mark]:
    """A disc with a rim and a letter in it."""
    return [Disc(x, y, radius, rim), Disc(x, y, radius - 1, fill), letters(text, x, y, ink(fill))]


def ink(fill: Colour) -> Colour:
    """What can be read on a colour."""
    return DARK if brightness(fill) > 125 else WHITE


def brightness(colour: Colour) -> float:
    """From 0 to 255, as the eye weighs the channels."""
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """The colour with a share of another one in it."""
    red, green, blue = (round(a * (1 - share) + b * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _in_sides(box: Box) -> Box:
    return box[0] / UNITS, box[1] / UNITS, box[2] / UNITS, box[3] / UNITS
