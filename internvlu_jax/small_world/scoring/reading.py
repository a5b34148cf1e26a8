"""What was read from a picture. Lengths are fractions of its side, x to the right and y downwards."""

from __future__ import annotations

from dataclasses import dataclass

from internvlu_jax.small_world.scenes.render import Box


@dataclass(frozen=True)
class ReadItem:
    """An object; x, y is the middle of its box. fit: how well its shape agrees, 0 to 1."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    box: Box
    fit: float


@dataclass(frozen=True)
class ReadWord:
    """A word; letters that could not be read are "?"."""

    text: str
    colour: str
    x: float
    y: float
    box: Box


@dataclass(frozen=True)
class Reading:
    """What a picture shows. background: None is a colour without a name. malformed: boxes of what is no object."""

    items: tuple[ReadItem, ...]
    background: str | None
    words: tuple[ReadWord, ...] = ()
    malformed: tuple[Box, ...] = ()
