"""GEdit-Bench: what users wish in English and Chinese, in eleven kinds of edits; a judge compares the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import gedit
from internvlu_jax.evaluation.task import Benchmark, Item, Report

_FIELDS = ("key", "task_type", "instruction", "instruction_language", "input_image")
PUBLISHED = {"overall": 6.66, "overall with reasoning": 6.88}


def items(data: Path, pictures: Path | None = None) -> Iterator[Item]:
    """data: the set's Parquet files, or their folder, with the pictures in them."""
    for row in reading.expect(reading.parquet(data), _FIELDS, data, "GEdit-Bench"):
        name = f"{row['task_type']}/{row['instruction_language']}/{row['key']}"
        source = reading.kept(row["input_image"], f"{data}: input_image of {row['key']}")
        yield Item(
            id=name,
            prompt=row["instruction"],
            pictures=(source,),
            path=f"fullset/{name}.png",
            as_source=True,
            beside={f"fullset/{name}_SRCIMG.png": source},
        )


def score(folder: Path) -> Report:
    """Of the tables that the official script writes with VIEScore; the English wishes, as they are published."""
    command = f"python test_gedit_score.py --model_name {folder.name} --save_path {folder.parent} --backbone gpt4o"
    table = folder / "gpt4o/eval_results_new" / f"{folder.name}_combined_gpt_score.csv"
    rows = reading.table(reading.judged(table, command))
    # .../fullset/KIND/LANGUAGE/KEY.png
    return Report(gedit.summary({**row, "kind": Path(row["edited_image"]).parts[-3]} for row in rows), PUBLISHED)


GEDIT = Benchmark("gedit", items, score)
