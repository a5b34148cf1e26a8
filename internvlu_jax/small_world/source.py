"""The world as a source of records: number i is drawn when it is asked for, and is always the same."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from internvlu_jax.data.records import PictureFile, Record, drawn_picture
from internvlu_jax.processing.chat import IMAGE_MARK
from internvlu_jax.small_world.scenes.layout import NoPlaceError
from internvlu_jax.small_world.scenes.scene import Drawable
from internvlu_jax.small_world.scenes.world import WORLDS, World
from internvlu_jax.small_world.tasks.domains import KINDS, TASKS
from internvlu_jax.small_world.tasks.example import Example
from internvlu_jax.small_world.tasks.transfer import is_answered, transferred

SPLITS = ("train", "seen", "heldout", "transfer")
"""Examples to train on; others of the same combinations; others that all have a held-out combination in them; others
about what training shows in tasks of the other sort alone (`tasks.transfer`)."""

WEIGHTS: Mapping[str, float] = {
    "general/picture": 4.0,
    "general/edit": 3.0,
    "general/question": 2.0,
    "general/description": 0.5,
    "text/picture": 1.5,
    "text/edit": 0.5,
    "text/question": 0.5,
    "reasoning/picture": 1.5,
    "reasoning/steps": 1.0,
    "reasoning/direct": 0.5,
}
"""How often each task comes up, unless said otherwise; of a world that is without some, the others."""

_MAKERS = {**TASKS, **KINDS}
_TRIES = 500
_RECENT = 8192  # examples that are kept: a loader asks for each twice, to plan a batch and to fill it


class WorldSource:
    """Records of the world by number, like those of any other source.

    Args:
        world: what exists, or the name of one of `WORLDS`.
        weights: how often each task, or each kind of one, comes up; what is left out does not. None is `WEIGHTS`.
        seed: another seed is another sequence of examples.
        split: one of `SPLITS`.
        side: of the pictures, in pixels.
        length: how many records there are said to be.

    Raises:
        ValueError: there is no such world, task or split, or a weight is not over 0.
    """

    def __init__(
        self,
        world: World | str = "small",
        weights: Mapping[str, float] | None = None,
        *,
        seed: int = 0,
        split: str = "train",
        side: int = 64,
        length: int = 10_000_000,
    ) -> None:
        self.world = _known_world(world)
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
        if weights is None:
            weights = {task: weight for task, weight in WEIGHTS.items() if not self._lacks(task)}
        unknown = [task for task in weights if task not in _MAKERS]
        if unknown or not weights:
            kind = f"or of one kind, as {next(iter(KINDS))}"
            raise ValueError(f"weights has {unknown or 'nothing'}; expected some of {', '.join(TASKS)}, {kind}")
        missing = [task for task in weights if self._lacks(task)]
        if missing:
            raise ValueError(f"weights has {missing[0]}; this world is without {', '.join(self.world.without)}")
        if min(weights.values()) <= 0:
            raise ValueError(f"weights is {dict(weights)}; expected every weight over 0: leave a task out instead")
        if length < 1 or side < 8 or seed < 0:
            raise ValueError(f"length {length}, side {side}, seed {seed}; expected at least 1, 8 and 0")
        self._tasks = tuple(weights)
        self._shares = np.cumsum([weights[task] for task in self._tasks]) / sum(weights.values())
        self._seed, self._split, self._side, self._length = seed, split, side, length
        self._recent = lru_cache(_RECENT)(self._make)

    def _lacks(self, task: str) -> bool:
        return not set(task.split("/")).isdisjoint(self.world.without)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of {self._length}")
        return record_of(self.example(index), f"world/{self._split}/{self._seed}:{index}", self._side)

    def example(self, index: int) -> Example:
        """The example behind a record, with its truth."""
        return self._recent(index)

    def _make(self, index: int) -> Example:
        rng = np.random.default_rng([self._seed, zlib.crc32(self._split.encode()), index])
        task = self._tasks[int(np.searchsorted(self._shares, rng.random(), side="right"))]
        for _ in range(_TRIES):
            try:
                return self._example(task, rng)
            except NoPlaceError:
                continue
        raise ValueError(f"task {task!r} made no example in {_TRIES} tries; the world may be too small for it")

    def _example(self, task: str, rng: np.random.Generator) -> Example:
        make, world = _MAKERS[task], self.world
        if self._split == "transfer":
            return transferred(world, task, make, rng)
        if self._split == "heldout":
            return make(world, rng, True)
        return make(world.asked if is_answered(task) else world.drawn, rng, False)


def record_of(example: Example, where: str, side: int) -> Record:
    """The example in the form of a stored record; its pictures are drawn when they are read."""
    image = None if example.image is None else _drawn("image.png", example.image, side)
    sources = () if example.source is None else (_drawn("source.png", example.source, side),)
    if example.task == "understanding":
        asked = f"{IMAGE_MARK}\n{example.prompt}" if sources else example.prompt
        turns = ((asked, example.answer), *example.further)
        said = [
            {"from": who, "value": value} for turn in turns for who, value in zip(("human", "gpt"), turn, strict=True)
        ]
        data: dict[str, Any] = {"task": example.task, "conversations": said}
        data.update({"image": "source.png"} if sources else {})
        return Record(example.task, where, sources=sources, turns=turns, data=data)
    data = {"task": example.task, "prompt": example.prompt, "image": "image.png"}
    data.update({"source": ["source.png"]} if sources else {})
    data.update({"reasoning": example.reasoning} if example.reasoning else {})
    return Record(example.task, where, example.prompt, example.reasoning, image, sources, data=data)


def _drawn(name: str, picture: Drawable, side: int) -> PictureFile:
    return drawn_picture(name, partial(picture.draw, side), (side, side))


def _known_world(world: World | str) -> World:
    if isinstance(world, World):
        return world
    if world not in WORLDS:
        raise ValueError(f"the world is {world!r}; expected one of {', '.join(WORLDS)}")
    return WORLDS[world]
