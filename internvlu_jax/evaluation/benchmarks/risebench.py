"""RISEBench: edits that need reasoning on time, causes, space and logic; judged by a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import risebench
from internvlu_jax.evaluation.rules.risebench import Judged
from internvlu_jax.evaluation.task import Benchmark, Item, Report

_FIELDS = ("index", "category", "instruction", "image")
# Columns of the official script's table, and what `judgements.jsonl` calls them.
_JUDGED = {
    "category": "category",
    "Reasoning": "reasoning",
    "ApprConsistency": "consistency",
    "VisualPlausibility": "plausibility",
}
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

    The official script keeps its judgements in a pickle, which is not read, and in an Excel table, of which the pandas
    that wrote it makes the file. It may as well come from a judge of one's own.
    """
    file, table = folder / "judgements.jsonl", folder / f"{folder.name}_judge.xlsx"
    command = (
        f"python gpt_eval.py --data data/datav2_total_w_subtask.json --input data --output {folder}\n"
        f"python -c \"import pandas; pandas.read_excel('{table}')[{list(_JUDGED)}].rename(columns={_JUDGED})"
        f".to_json('{file}', orient='records', lines=True)\"\n"
        "or write it with a judge of your own, a line for each picture: "
        '{"category": "causal_reasoning", "reasoning": 4, "consistency": 5, "plausibility": 3}, '
        "from 1 to 5, consistency null where the edit is free of it, plausibility null for logical_reasoning"
    )
    rows = reading.json_lines(reading.judged(file, command))
    rows = list(reading.expect(rows, ("category", "reasoning"), folder, "judgements"))
    judged = (
        Judged(row["category"], row["reasoning"], row.get("consistency"), row.get("plausibility")) for row in rows
    )
    return Report(risebench.summary(judged), PUBLISHED)


RISEBENCH = Benchmark("risebench", items, score)
