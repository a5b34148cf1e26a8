"""OCRBench: 1000 questions on text in pictures, right where the reply contains an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from internvlu_jax.evaluation import prompts
from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import ocrbench
from internvlu_jax.evaluation.task import Benchmark, Item, Report

_FIELDS = ("question", "answers", "type", "image_path")
PUBLISHED = {"overall": 83.9}


def items(data: Path, pictures: Path | None = None) -> Iterator[Item]:
    """data: `OCRBench.json`. pictures: the folder `OCRBench_Images`."""
    for number, row in enumerate(reading.expect(reading.json_list(data), _FIELDS, data, "OCRBench")):
        answers = [row["answers"]] if isinstance(row["answers"], str) else row["answers"]
        yield Item(
            id=f"{number:04}",
            prompt=prompts.with_pictures(prompts.question("OCRBench", row["question"]), 1),
            pictures=(reading.shown(pictures or data.parent, row["image_path"]),),
            max_tiles=prompts.tiles("OCRBench", 1),
            facts={"kind": row["type"], "answers": answers},
        )


def score(folder: Path) -> Report:
    """Of the answers in the folder."""
    rows = reading.answers(folder)
    verdicts = [(row["kind"], ocrbench.right(row["text"], row["answers"], row["kind"])) for row in rows]
    return Report(ocrbench.summary(verdicts), PUBLISHED)


OCRBENCH = Benchmark("ocrbench", items, score)
