"""What a benchmark is: items to draw or answer, the files that its scorer reads, and how the results count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from internvlu_jax.evaluation.scores import Score

Picture = Callable[[], Image.Image]
"""Opens a picture when its turn comes; a set's pictures together may not fit in memory."""
ANSWERS = "answers.jsonl"
"""In a run's folder, a line for each item that was answered: its number, "id", "text", and the item's facts."""


@dataclass(frozen=True)
class Item:
    """One thing that is asked of a model.

    Attributes:
        id: stable and unique; with the seed it decides the noise.
        prompt: with a mark for each picture, or without: then they stand in front.
        pictures: that the prompt shows, or that are edited.
        path: where the picture goes in the folder; None asks for text.
        seed: of the item, besides the run's.
        tiled: so many pictures are drawn, and kept as one, tiled row by row in a square.
        as_source: the picture is brought to the size of the first of `pictures` when it is kept.
        max_tiles: that the vision encoder sees of each picture.
        reasoning: words come before the picture, whatever the run's options say.
        max_new_tokens: of text, where the run's options say nothing; None is the pipeline's.
        noise: the starting noise is that of numpy's generator of these numbers, whatever the run's seed; for items
            that must share it.
        facts: what the rule needs beside the answer; JSON.
        beside: files that the scorer reads beside the pictures, by path: text, or a picture.
    """

    id: str
    prompt: str
    pictures: tuple[Picture, ...] = ()
    path: str | None = None
    seed: int = 0
    tiled: int = 1
    as_source: bool = False
    max_tiles: int = 1
    reasoning: bool = False
    max_new_tokens: int | None = None
    noise: tuple[int, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, str | Picture] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """scores: by name, the first is the one that counts. published: of them, for InternVL-U. notes: a line each."""

    scores: Mapping[str, Score]
    published: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """items: from the prompts' file or folder, and the folder of pictures where they lie apart. score: of a run's
    folder; raises `NeedsJudge` where somebody else's scorer comes first. finish: writes what the scorer reads from
    the answers, when all are there."""

    name: str
    items: Callable[[Path, Path | None], Iterator[Item]]
    score: Callable[[Path], Report]
    finish: Callable[[Path], None] | None = None


class NeedsJudge(ValueError):
    """The folder has no judgements yet; the message says what makes them."""


def distinct(items: Iterable[Item]) -> Iterator[Item]:
    """The items, in their order.

    Raises:
        ValueError: an id comes twice, or two pictures would be one file.
    """
    ids: set[str] = set()
    paths: set[str] = set()
    for item in items:
        if item.id in ids:
            raise ValueError(f"the id {item.id!r} comes twice; expected each once")
        if item.path is not None and item.path in paths:
            raise ValueError(f"the picture {item.path} would be written twice, again for {item.id!r}")
        ids.add(item.id)
        paths.update([item.path] if item.path is not None else [])
        yield item
