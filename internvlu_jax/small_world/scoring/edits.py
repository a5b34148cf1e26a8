"""Whether an edit was done, and how well the rest of the picture was kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from internvlu_jax.evaluation.scores import psnr
from internvlu_jax.small_world.scenes.scene import Item, Word
from internvlu_jax.small_world.scenes.world import World
from internvlu_jax.small_world.scoring.blobs import dilated
from internvlu_jax.small_world.scoring.geneval import RIGHT, Verdict
from internvlu_jax.small_world.scoring.reader import read
from internvlu_jax.small_world.scoring.reading import Reading, ReadItem, ReadWord
from internvlu_jax.small_world.tasks.edits import Edit

SAME = 0.06
"""How far, in sides of the picture, an object or the word may be from where it was."""

MOVED = 0.12
"""How far it may be from where it was to go."""

_NEAR = 2  # pixels around what changes that count as changed


def score(world: World, edit: Edit, picture: UInt8[np.ndarray, "y x 3"]) -> tuple[Verdict, float | None]:
    """The verdict on an edited picture, and the PSNR in dB of what was not to be touched.

    The second is None where there is no such thing. Where the new object is, if it was found, counts as touched. Of a
    new background the inside of the objects is what remains.
    """
    reading = read(picture, world.kinds)
    verdict, target = judge(edit, reading)
    kept = untouched(edit, len(picture), target)
    return verdict, psnr(picture, edit.before.draw(len(picture)), kept) if np.any(kept) else None


def judge(edit: Edit, reading: Reading) -> tuple[Verdict, ReadItem | None]:
    """The verdict, and the object that the edit was about, if it was found."""
    left = list(reading.items)
    rest = [item for item in edit.after.items if item != edit.new]
    missing = [item for item in rest if not _take(left, item, SAME)]
    target = _take(left, edit.new, _reach(edit), edit.sized) if edit.new is not None else None
    if edit.kind == "move" and target is not None and _apart(target, edit.new) >= _apart(target, edit.old):
        target = None  # a short way is within reach of where it began
    for reason, wrong in (
        ("malformed", bool(reading.malformed)),
        ("rest", bool(missing)),
        ("target", edit.new is not None and target is None),
        ("count", bool(left)),
        ("text", not _same_word(edit.after.word, reading.words)),
        ("background", reading.background != edit.after.background),
    ):
        if wrong:
            return Verdict(False, reason), target
    return RIGHT, target


def _same_word(word: Word | None, words: Sequence[ReadWord]) -> bool:
    """Whether this word is there, where it was, and no other."""
    if word is None or len(words) != 1:
        return word is None and not words
    (other,) = words
    near = max(abs(other.x - word.x), abs(other.y - word.y)) <= SAME
    return (other.text, other.colour) == (word.text, word.colour) and near


def _apart(one: ReadItem, other: Item | None) -> float:
    return np.inf if other is None else max(abs(one.x - other.x), abs(one.y - other.y))


def _reach(edit: Edit) -> float:
    if edit.free:
        return 1.0
    return MOVED if edit.kind in ("move", "add") else SAME


def _take(left: list[ReadItem], item: Item, reach: float, sized: bool = True) -> ReadItem | None:
    """Takes the nearest object out that is this one."""
    matches = [
        other
        for other in left
        if (other.kind, other.colour) == (item.kind, item.colour)
        and (not sized or other.size == item.size)
        and max(abs(other.x - item.x), abs(other.y - item.y)) <= reach
    ]
    if not matches:
        return None
    nearest = min(matches, key=lambda other: abs(other.x - item.x) + abs(other.y - item.y))
    left.remove(nearest)
    return nearest


def untouched(edit: Edit, side: int, target: ReadItem | None = None) -> Bool[np.ndarray, "y x"]:
    """The pixels that the edit does not change, apart from those near what it does."""
    changed = (edit.before.draw(side) != edit.after.draw(side)).any(2)
    if target is not None:
        rows, columns = (_within(target.box[n::2], side) for n in (1, 0))
        changed[rows, columns] = True
    for _ in range(_NEAR):
        changed = dilated(changed)
    return ~changed


def _within(ends: Sequence[float], side: int) -> slice:
    return slice(max(int(ends[0] * side), 0), max(int(np.ceil(ends[1] * side)), 0))
