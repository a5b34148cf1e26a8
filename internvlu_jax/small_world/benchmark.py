"""The scores of the small world as a benchmark: cases with a seed of their own become items, and what a run made of
them is judged from its folder.

The noise of a case is that of its number and the cases' seed, with or without reasoning before the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from internvlu_jax.evaluation import task
from internvlu_jax.evaluation.benchmarks.reading import answers
from internvlu_jax.evaluation.folder import RUN
from internvlu_jax.evaluation.scores import Score
from internvlu_jax.evaluation.task import ANSWERS, Benchmark, Item
from internvlu_jax.small_world import WORLDS
from internvlu_jax.small_world.scoring.responder import NEW_TOKENS
from internvlu_jax.small_world.scoring.sheet import outcome_sheet
from internvlu_jax.small_world.scoring.suite import KEYS, Query, Reply, Report, queries, run
from internvlu_jax.utils.files import read_json, write_json
from internvlu_jax.utils.sheets import save_sheet

NAME = "small-world"
Set = Literal["geneval_seen", "geneval_heldout", "questions", "edits", "words", "reasoning", "domain_questions"]
SHIPPED: tuple[Set, ...] = ("geneval_seen", "geneval_heldout", "questions", "edits", "words", "reasoning")
"""What the model in the box was trained for; the questions of the other domains are scored when they are named."""
_LEAST = 8  # cases: one of each kind of edit
_SMALLEST = 48  # pixels, from where on the reader is reliable


@dataclass(frozen=True)
class Cases:
    """Which cases.

    Attributes:
        only: the sets to be scored.
        count: cases of each.
        world: that they are of.
        cases_seed: of the cases and of their noise.
    """

    only: tuple[Set, ...] = SHIPPED
    count: int = 500
    world: Literal["small", "full"] = "small"
    cases_seed: int = 0

    def check(self, side: int | None) -> None:
        """Raises ValueError naming the first that cannot be used. side: of the pictures, where it is chosen."""
        for name, least in (("count", _LEAST), ("cases_seed", 0)):
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise ValueError(f"--{name.replace('_', '-')} is {value}; expected at least {least}")
        if side is not None and side < _SMALLEST:
            raise ValueError(f"--height is {side}; expected at least {_SMALLEST}, from where on the reader is reliable")
        if not self.only:
            raise ValueError(f"--only names no set; expected some of {', '.join(KEYS)}")


def benchmark(cases: Cases = Cases(), side: int = 64) -> Benchmark:
    """Of these cases; source pictures have `side` pixels. It reads no files: the world is drawn."""
    return Benchmark(NAME, lambda data, pictures: items(cases, side), score)


def items(cases: Cases, side: int) -> Iterator[Item]:
    """Every query of every set."""
    for name in cases.only:
        for asked in queries(WORLDS[cases.world], name, cases.count, side, cases.cases_seed):
            for query in asked:
                place = _place(name, query)
                yield Item(
                    id=place,
                    prompt=query.prompt,
                    pictures=() if query.source is None else (_Source(query),),
                    path=None if query.mode == "text" else f"{place}.png",
                    reasoning=query.mode == "text_image",
                    max_new_tokens=NEW_TOKENS.get(query.mode),
                    noise=(cases.cases_seed, query.number),
                )


def known(cases: Cases, side: int) -> dict[str, Any]:
    """What goes into the settings of a run, from which `score` knows the cases."""
    return {"cases": asdict(cases), "side": side}


def score(folder: Path) -> task.Report:
    """Judges a run's pictures and answers; writes `scores.json`, and a sheet of right and wrong cases for each set."""
    settings = read_json(folder / RUN)
    given = settings["cases"]
    cases = Cases(**{**given, "only": tuple(given["only"])})
    reports: dict[str, Report] = {}
    for name in cases.only:
        kept = _Kept(folder, name)
        result = run(WORLDS[cases.world], name, cases.count, kept, settings["side"], cases.cases_seed)
        reports |= result.reports
        save_sheet(outcome_sheet(result.outcomes), folder / f"{name}.png")
    told = {key: report.json() for key, report in reports.items()}
    write_json(folder / "scores.json", {**told, "settings": settings}, allow_nan=False)
    scores: dict[str, Score] = {}
    for key, report in reports.items():
        scores |= {key: report.score, **{f"{key}: {part}": value for part, value in report.parts.items()}}
    return task.Report(scores, {})


@dataclass(frozen=True)
class _Source:
    of: Query

    def __call__(self) -> Image.Image:
        assert self.of.source is not None
        return Image.fromarray(self.of.source)


class _Kept:
    """The model that is judged: it replies with what lies in the folder.

    Raises:
        ValueError: a picture or an answer is missing; in a call.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        rows = answers(folder) if (folder / ANSWERS).is_file() else []
        self._texts = {row["id"]: row["text"] for row in rows}

    def __call__(self, asked: Sequence[Query]) -> list[Reply]:
        return [self._reply(query) for query in asked]

    def _reply(self, query: Query) -> Reply:
        place = _place(self._name, query)
        if query.mode != "image" and place not in self._texts:
            raise ValueError(f"{self._folder} has no answer {place}; let the run come to its end first")
        text = self._texts.get(place, "")
        if query.mode == "text":
            return Reply(text=text)
        file = self._folder / f"{place}.png"
        if not file.is_file():
            raise ValueError(f"{file} is not there; let the run come to its end first")
        with Image.open(file) as picture:
            return Reply(np.asarray(picture.convert("RGB")), text)


def _place(name: str, query: Query) -> str:
    return f"{name}/{query.mode}/{query.number:05}"
