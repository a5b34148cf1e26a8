"""RISEBench: edits that need reasoning on time, causes, space and logic; judged by a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import risebench
from internvlu_jax.evaluation.rules.risebench import Judged
from internvlu_jax.evaluation.task import Benchmark, Item, Report

_FIELDS = ("index", "category", "instruction", "image")
PUBLISHED = {"accuracy": 3.6, "accuracy with reasoning": 9.4}


def items(data: Path, pictures: Path | None = None) -> Iterator[Item]:
    """data: `datav2_total_w_subtask.json`. pictures: the folder of its `*_images`; that of the file by default."""
    for row in reading.expect(reading.json_list(data), _FIELDS, data, "RISEBench"):
        if row["category"] not in risebench.CATEGORIES:
            raise ValueError(f"{data}: category {row['category']!r}; expected {', '.join(risebench.CATEGORIES)}")
        yield Item(
            id=row["index"],
            prompt=row["instruction"],
            pictures=(reading.shown(pictures or data.parent, row["image"]),),
            path=f"images/{row['category']}/{row['index']}.png",
        )


def score(folder: Path) -> Report:
    """Of `judgements.jsonl`: "category", "reasoning", and "consistency" and "plausibility" or null.

    The official script keeps its judgements in a pickle, which is not read; the file is for judges of one's own.
    """
    command = f"python gpt_eval.py --data data/datav2_total_w_subtask.json --input data --output {folder}"
    rows = reading.json_lines(reading.judged(folder / "judgements.jsonl", command))
    rows = list(reading.expect(rows, ("category", "reasoning"), folder, "judgements"))
    judged = (
        Judged(row["category"], row["reasoning"], row.get("consistency"), row.get("plausibility")) for row in rows
    )
    return Report(risebench.summary(judged), PUBLISHED)


RISEBENCH = Benchmark("risebench", items, score)
