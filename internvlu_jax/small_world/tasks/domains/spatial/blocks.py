"""Stacks of cubes on three by three places: at an angle from above, and from the front, the right and the top."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.marks import DARK, WHITE, Mark, Point, Polygon, line, mixed, rectangle
from internvlu_jax.small_world.scenes.render import Colour
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import NUMBERS, listing, pick
from internvlu_jax.small_world.tasks.things import Asked, Change, Riddle, Topic

SIZE, HIGHEST = 3, 3
VIEWS = ("angle", "front", "right", "top", "three")
"""At an angle shows the front on the lower left and the right on the lower right; three is front, right and top."""

_ROWS = ("in the back", "in the middle", "in front")
_EDGE, _FACE = 9.0, 14.0
_ACROSS, _DOWN = _EDGE * math.cos(math.pi / 6), _EDGE / 2
_TURNS = {1: "a quarter clockwise", 2: "by half", 3: "a quarter anticlockwise"}

Corner = tuple[int, int, int]
"""Row, column and level, from a corner of a cube or from a cube."""

_FACES: tuple[tuple[tuple[Corner, ...], Corner], ...] = (
    (((0, 0, 1), (0, 1, 1), (1, 1, 1), (1, 0, 1)), (0, 0, 1)),
    (((1, 0, 1), (1, 1, 1), (1, 1, 0), (1, 0, 0)), (1, 0, 0)),
    (((0, 1, 1), (1, 1, 1), (1, 1, 0), (0, 1, 0)), (0, 1, 0)),
)
"""Top, front and right: the corners, and where the cube is that would cover it."""

Heights = tuple[tuple[int, ...], ...]
"""Cubes on each place: rows from back to front, each from left to right."""


@dataclass(frozen=True)
class Blocks:
    """Cubes as one of `VIEWS` shows them."""

    heights: Heights
    colour: str
    view: str = "angle"

    @property
    def key(self) -> tuple[Heights, str]:
        """The same from all sides and in all views."""
        return min(self.turned(by).heights for by in range(4)), self.colour

    @property
    def front(self) -> tuple[int, ...]:
        """Heights of the columns that are seen from the front, left to right."""
        return tuple(max(column) for column in zip(*self.heights, strict=True))

    @property
    def right(self) -> tuple[int, ...]:
        """Heights of the columns that are seen from the right: what is in front is on the left."""
        return tuple(max(row) for row in reversed(self.heights))

    def turned(self, by: int) -> Blocks:
        """After so many quarters clockwise, as seen from above."""
        return replace(self, heights=tuple(tuple(row) for row in np.rot90(self.heights, -by).tolist()))

    def said(self) -> str:
        cubes = f"{self.colour} cubes"
        if self.view == "angle":
            return f"{cubes} at an angle, {said_rows(self.heights)}"
        if self.view == "three":
            return f"three views of {cubes}: top {_said_top(self.heights)}; front {said_columns(self.front)}; " + (
                f"right {said_columns(self.right)}"
            )
        if self.view == "top":
            return f"a view of {cubes} from the top, {_said_top(self.heights)}"
        columns = self.front if self.view == "front" else self.right
        return f"a view of {cubes} from the {self.view}, columns of {said_columns(columns)}"

    def marks(self) -> list[Mark]:
        if self.view == "angle":
            return list(self._at_an_angle())
        if self.view == "three":
            return list(self._three())
        cells = {"front": _columns(self.front), "right": _columns(self.right), "top": _covered(self.heights)}[self.view]
        return list(self._faces(cells, 32 - 1.5 * _FACE, 32 - 1.5 * _FACE, _FACE))

    def _three(self) -> Iterator[Mark]:
        """The top above the front, the right beside it."""
        size, low, high = 8.0, 5.0, 35.0
        yield from self._faces(_covered(self.heights), low, low, size)
        yield from self._faces(_columns(self.front), low, high, size)
        yield from self._faces(_columns(self.right), high, high, size)

    def _faces(self, cells: Sequence[Sequence[bool]], left: float, top: float, size: float) -> Iterator[Mark]:
        for row, column in itertools.product(range(SIZE), repeat=2):
            if cells[row][column]:
                x, y = left + column * size, top + row * size
                yield rectangle(x, y, x + size, y + size, DARK)
                yield rectangle(x + 0.75, y + 0.75, x + size - 0.75, y + size - 0.75, COLOURS[self.colour])

    def _at_an_angle(self) -> Iterator[Mark]:
        """Cubes from the back to the front, the lower ones first, moved so that all are in the middle."""
        cubes = [
            (row, column, level)
            for row, column in itertools.product(range(SIZE), repeat=2)
            for level in range(self.heights[row][column])
        ]
        corners = [_corner(r + dr, c + dc, z + dz) for r, c, z in cubes for dr, dc, dz in np.ndindex(2, 2, 2)]
        xs, ys = zip(*corners, strict=True)
        shift = (32 - (max(xs) + min(xs)) / 2, 32 - (max(ys) + min(ys)) / 2)
        for row, column, level in sorted(cubes, key=sum):
            for (face, (dr, dc, dz)), shade in zip(_FACES, self._shades(), strict=True):
                if self._height(row + dr, column + dc) <= level + dz:
                    yield from _face(row, column, level, face, shift, shade)

    def _height(self, row: int, column: int) -> int:
        """Of the stack there; outside there is none."""
        return self.heights[row][column] if max(row, column) < SIZE else 0

    def _shades(self) -> tuple[Colour, Colour, Colour]:
        """Of the tops, the front and the right."""
        colour = COLOURS[self.colour]
        return mixed(colour, WHITE, 0.5), colour, mixed(colour, DARK, 0.45)


def _corner(row: int, column: int, level: int) -> Point:
    return (column - row) * _ACROSS, (column + row) * _DOWN - level * _EDGE


def _face(row: int, column: int, level: int, corners: Sequence[Corner], shift: Point, shade: Colour) -> Iterator[Mark]:
    """A face of a cube, with its edges."""
    placed = [_corner(row + dr, column + dc, level + dz) for dr, dc, dz in corners]
    points = tuple((x + shift[0], y + shift[1]) for x, y in placed)
    yield Polygon(points, shade)
    for a, b in itertools.pairwise((*points, points[0])):
        yield line(a, b, DARK, 0.75)


def _columns(heights: Sequence[int]) -> list[list[bool]]:
    """Rows of faces, the highest first."""
    return [[height >= level for height in heights] for level in range(SIZE, 0, -1)]


def _covered(heights: Heights) -> list[list[bool]]:
    return [[height > 0 for height in row] for row in heights]


def said_rows(heights: Heights) -> str:
    """ "stacked 3 2 1 in the back, 2 1 0 in the middle and 1 0 0 in front"."""
    rows = [f"{' '.join(map(str, row))} {where}" for row, where in zip(heights, _ROWS, strict=True)]
    return f"stacked {listing(rows)}"


def said_columns(columns: Sequence[int]) -> str:
    return listing([str(height) for height in columns])


def _said_top(heights: Heights) -> str:
    """One for a place with a cube, 0 for one without."""
    covered = tuple(tuple(int(cell) for cell in row) for row in _covered(heights))
    return said_rows(covered).removeprefix("stacked ")


def _colour(world: World, rng: np.random.Generator) -> str:
    """Edges are drawn dark, so the cubes are not."""
    return pick([colour for colour in world.colours if colour != "black"] or list(world.colours), rng)


def _any(world: World, rng: np.random.Generator, view: str) -> Blocks:
    """Two cubes or more. At an angle nothing is hidden: no stack is higher than one behind it or left of it."""
    heights = rng.integers(0, HIGHEST + 1, (SIZE, SIZE))
    if view == "angle":
        heights = -np.sort(np.sort(-heights, 0), 1)
    if heights.sum() < 2:
        raise NoPlaceError("that is no stack")
    return Blocks(tuple(tuple(row) for row in heights.tolist()), _colour(world, rng), view)


def _blocks(world: World, rng: np.random.Generator) -> Blocks:
    return _any(world, rng, pick(("angle", "angle", *VIEWS), rng))


def _riddle(world: World, rng: np.random.Generator) -> Riddle:
    """A view of stacks that are told place by place, or stacks turned around."""
    if rng.random() < 0.3:
        return _turning(world, rng)
    blocks = _any(world, rng, pick(VIEWS[1:], rng))
    what = "the three views" if blocks.view == "three" else f"the view from the {blocks.view}"
    prompt = f"{what} of {blocks.colour} cubes {said_rows(blocks.heights)}"
    facts = {
        "front": f"From the front each column is as high as its highest stack: {said_columns(blocks.front)}.",
        "right": f"From the right each row is as high as its highest stack, front first: {said_columns(blocks.right)}.",
        "top": f"From the top every stack is one face: {_said_top(blocks.heights)}.",
    }
    shown = ("top", "front", "right") if blocks.view == "three" else (blocks.view,)
    return Riddle(prompt, tuple(facts[view] for view in shown), blocks)


def _turning(world: World, rng: np.random.Generator) -> Riddle:
    before, by = _any(world, rng, "angle"), int(rng.integers(1, 4))
    after = before.turned(by)
    prompt = f"{before.said()}, turned {_TURNS[by]} as seen from above"
    facts = {
        1: "A quarter clockwise the left column becomes the back row.",
        2: "By half the back row becomes the front row, from right to left.",
        3: "A quarter anticlockwise the right column becomes the back row.",
    }
    return Riddle(prompt, (facts[by], f"So they are {said_rows(after.heights)}."), after)


def _question(world: World, rng: np.random.Generator) -> Asked:
    kind = pick(("cubes", "levels", "ground", "front", "right", "stacks"), rng)
    if kind == "levels":
        blocks = _any(world, rng, pick(("angle", "front", "right", "three"), rng))
        return Asked(kind, "How many cubes high is it?", str(max(blocks.front)), blocks)
    blocks = _any(world, rng, "angle")
    stacks = [height for row in blocks.heights for height in row if height]
    number = int(rng.integers(1, HIGHEST + 1))
    text, answer = {
        "cubes": ("How many cubes are there?", sum(stacks)),
        "ground": ("How many cubes stand on the ground?", len(stacks)),
        "front": ("How many faces are seen from the front?", sum(blocks.front)),
        "right": ("How many faces are seen from the right?", sum(blocks.right)),
        "stacks": (f"How many stacks are {NUMBERS[number]} high?", stacks.count(number)),
    }[kind]
    return Asked(kind, text, str(answer), blocks)


def _change(world: World, rng: np.random.Generator) -> Change:
    """Turned as seen from above, or drawn as a view."""
    blocks = _any(world, rng, "angle")
    if rng.random() < 0.5:
        by = int(rng.integers(1, 4))
        return Change("turn", f"turn the cubes {_TURNS[by]} as seen from above", blocks, blocks.turned(by))
    view = pick(VIEWS[1:], rng)
    text = "draw the three views of the cubes" if view == "three" else f"draw the cubes as seen from the {view}"
    return Change("view", text, blocks, replace(blocks, view=view))


TOPIC = Topic(_blocks, _riddle, _question, _change)
