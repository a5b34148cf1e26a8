"""The verdict on a picture that was drawn for a prompt.

After Ghosh et al. 2023 (GenEval), with the small world's own reader in the place of a detector. Stricter than theirs in
one thing: what was not asked for must not be there, be it an object or a malformed blob.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.scoring.reader import read
from internvlu_jax.small_world.scoring.reading import Reading
from internvlu_jax.small_world.tasks.specs import APART, SceneSpec, assignments, related


@dataclass(frozen=True)
class Verdict:
    """reason: what is wrong, the first of "malformed", "text", "count", "kind", "colour", "size", "position",
    "background"; of edits also "target" and "rest". Empty where nothing is."""

    right: bool
    reason: str = ""


RIGHT = Verdict(True)


def score(world: World, spec: SceneSpec, picture: UInt8[np.ndarray, "y x 3"]) -> Verdict:
    """The verdict on a picture; its shapes can only be those of the world."""
    return judge(spec, read(picture, world.kinds))


def judge(spec: SceneSpec, reading: Reading) -> Verdict:
    """Whether the picture shows what was asked for and nothing else."""
    for reason, wrong in (
        ("malformed", bool(reading.malformed)),
        ("text", [word.text for word in reading.words] != ([spec.word] if spec.word is not None else [])),
        ("count", len(reading.items) != spec.count),
    ):
        if wrong:
            return Verdict(False, reason)
    reason = _objects(spec, reading) or _surroundings(spec, reading)
    return Verdict(False, reason) if reason else RIGHT


def _objects(spec: SceneSpec, reading: Reading) -> str:
    """What is wrong with the objects: the first of their properties with which they cannot be what was asked for."""
    groups = spec.groups
    for reason, simpler in (
        ("kind", tuple(replace(group, colour=None, size=None) for group in groups)),
        ("colour", tuple(replace(group, size=None) for group in groups)),
        ("size", groups),
    ):
        if not assignments(simpler, reading.items):
            return reason
    relation = spec.relation
    if relation is None:
        return ""
    ways = assignments(groups, reading.items)
    holds = any(all(related(relation, a, b) for a in way[0] for b in way[1]) for way in ways)
    return "" if holds else "position"


def _surroundings(spec: SceneSpec, reading: Reading) -> str:
    if spec.word is not None:
        word = reading.words[0]
        if spec.word_colour not in (None, word.colour):
            return "colour"
        sign = {"above": 1, "below": -1}.get(spec.word_place or "", 0)
        if sign and any(sign * (item.y - word.y) < APART for item in reading.items):
            return "position"
    return "background" if reading.background != (spec.background or "white") else ""
