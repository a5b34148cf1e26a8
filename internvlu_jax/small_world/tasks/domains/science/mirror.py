"""Rays and mirrors: a ray leaves at the angle at which it came, on the other side of the mirror's normal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.marks import DARK, PALE, Mark, Point, arrow_head, line
from internvlu_jax.small_world.scenes.scene import COLOURS
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.tasks.captions import article, pick
from internvlu_jax.small_world.tasks.things import Asked, Riddle, Topic, bold

MIRRORS = ("bottom", "top", "left", "right", "rising", "falling")
"""At an edge of the picture, or across its middle: rising or falling towards the right."""

ANGLES = (30, 45, 60)
_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_TURNED = {
    "rising": {"left": "above", "below": "right", "right": "below", "above": "left"},
    "falling": {"left": "below", "above": "right", "right": "above", "below": "left"},
}
_TOWARDS: dict[str, Point] = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}
_NORMALS: dict[str, Point] = {"bottom": (0.0, -1.0), "top": (0.0, 1.0), "left": (1.0, 0.0), "right": (-1.0, 0.0)}
_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class Ray:
    """mirror: one of `MIRRORS`. start: left, right, above or below. angle: to the mirror's normal, in degrees."""

    mirror: str
    start: str
    angle: int
    colour: str

    @property
    def key(self) -> tuple[str, str, int, str]:
        return self.mirror, self.start, self.angle, self.colour

    @property
    def leaves(self) -> str:
        """Where it goes: left, right, above or below."""
        return _TURNED[self.mirror][self.start] if self.mirror in _TURNED else _OPPOSITE[self.start]

    @property
    def ways(self) -> tuple[Point, Point]:
        """From where the ray meets the mirror to where it comes from, and to where it goes: of length one."""
        if self.mirror in _TURNED:
            return _TOWARDS[self.start], _TOWARDS[self.leaves]
        along, across = math.sin(math.radians(self.angle)), math.cos(math.radians(self.angle))
        nx, ny = _NORMALS[self.mirror]
        first, second = (
            (nx * across + dx * along, ny * across + dy * along)
            for dx, dy in (_TOWARDS[self.start], _TOWARDS[self.leaves])
        )
        return first, second

    def said(self) -> str:
        ray = f"{article(self.colour)} ray that comes from {_side(self.start)}"
        if self.mirror in _TURNED:
            return f"{ray} and is reflected {_to(self.leaves)} by a mirror {self.mirror} to the right"
        angle = f"at {self.angle} degrees to the normal"
        return f"{ray} {angle} and is reflected {_to(self.leaves)} by a mirror {_placed(self.mirror)}"

    def marks(self) -> list[Mark]:
        colour = COLOURS[self.colour]
        (x, y), length = self._meeting(), 27 if self.mirror in _TURNED else 31
        (fx, fy), (tx, ty) = self.ways
        made = [*self._mirror(x, y)]
        made.append(line((x + length * fx, y + length * fy), (x, y), colour, 2.0))
        made.append(line((x, y), (x + (length - 3) * tx, y + (length - 3) * ty), colour, 2.0))
        middle = length / 2 - 2.5
        made.append(arrow_head((x + middle * fx, y + middle * fy), (-fx, -fy), colour, 6.0))
        made.append(arrow_head((x + length * tx, y + length * ty), (tx, ty), colour, 6.0))
        return made

    def _meeting(self) -> Point:
        nx, ny = _NORMALS.get(self.mirror, (0.0, 0.0))
        return 32 - 22 * nx, 32 - 22 * ny

    def _mirror(self, x: float, y: float) -> list[Mark]:
        """A dark face and a pale back; the normal, where the angle is spoken of."""
        if self.mirror in _TURNED:
            dx, dy = _HALF, -_HALF if self.mirror == "rising" else _HALF
            (fx, fy), (tx, ty) = self.ways
            nx, ny = (fx + tx) * _HALF, (fy + ty) * _HALF
        else:
            nx, ny = _NORMALS[self.mirror]
            dx, dy = -ny, nx
        half = 15 if self.mirror in _TURNED else 26

        def bar(depth: float, width: float, colour: tuple[int, int, int]) -> Mark:
            mx, my = x - depth * nx, y - depth * ny
            return line((mx - half * dx, my - half * dy), (mx + half * dx, my + half * dy), colour, width)

        made = [bar(3.5, 4.0, PALE), bar(1.0, 2.0, DARK)]
        if self.mirror not in _TURNED:
            made += [
                line((x + n * nx, y + n * ny), (x + (n + 2) * nx, y + (n + 2) * ny), PALE, 1.0) for n in range(1, 25, 4)
            ]
        return made


def _side(side: str) -> str:
    return f"the {side}" if side in ("left", "right") else side


def _to(side: str) -> str:
    return {"left": "to the left", "right": "to the right", "above": "upwards", "below": "downwards"}[side]


def _placed(mirror: str) -> str:
    return f"at the {mirror}" if mirror in ("top", "bottom") else f"on the {mirror}"


def _ray(world: World, rng: np.random.Generator) -> Ray:
    mirror = pick(MIRRORS, rng)
    flat = {
        "bottom": ("left", "right"),
        "top": ("left", "right"),
        "left": ("above", "below"),
        "right": ("above", "below"),
    }
    start = pick(flat.get(mirror, tuple(_OPPOSITE)), rng)
    return Ray(mirror, start, 45 if mirror in _TURNED else pick(ANGLES, rng), pick(bold(world), rng))


def _riddle(world: World, rng: np.random.Generator) -> Riddle:
    """Where it goes; at an edge the angle may be given to the mirror and not to its normal."""
    ray = _ray(world, rng)
    start = f"{article(ray.colour)} ray from {_side(ray.start)} that meets a mirror"
    if ray.mirror in _TURNED:
        fact = f"A mirror {ray.mirror} to the right turns a ray from {_side(ray.start)} {_to(ray.leaves)}."
        return Riddle(f"{start} {ray.mirror} to the right", (fact,), ray)
    facts = [f"It leaves at the same angle on the other side of the normal: {ray.angle} degrees {_to(ray.leaves)}."]
    if rng.random() < 0.5:
        return Riddle(f"{start} {_placed(ray.mirror)} at {ray.angle} degrees to the normal", tuple(facts), ray)
    steep = 90 - ray.angle
    facts.insert(0, f"{steep} degrees to the mirror are 90 - {steep} = {ray.angle} degrees to the normal.")
    return Riddle(f"{start} {_placed(ray.mirror)} at {steep} degrees to the mirror", tuple(facts), ray)


def _question(world: World, rng: np.random.Generator) -> Asked:
    ray = _ray(world, rng)
    kind = pick(("leaves", "start", "between", "angle"), rng)
    if kind == "leaves":
        goes = {"above": "up", "below": "down"}.get(ray.leaves, ray.leaves)
        return Asked(kind, "Where does the reflected ray go, left, right, up or down?", goes, ray)
    if kind == "start":
        return Asked(kind, "Where does the ray come from, left, right, above or below?", ray.start, ray)
    if kind == "between":
        text = "How many degrees are between the ray and its reflection?"
        return Asked(kind, text, str(2 * ray.angle), ray)
    if ray.mirror in _TURNED:
        raise NoPlaceError("the normal is not shown")
    return Asked(kind, "At how many degrees to the normal does the ray meet the mirror?", str(ray.angle), ray)


TOPIC = Topic(_ray, _riddle, _question)
