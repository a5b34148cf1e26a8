"""WISE: prompts that need knowledge of cultures, time, space and nature; a judge looks at the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import wise
from internvlu_jax.evaluation.task import Benchmark, Item, Report

_FIELDS = ("Prompt", "Explanation", "prompt_id")
_FILES = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
PUBLISHED = {"overall": 0.46, "overall with reasoning": 0.58}


def items(data: Path, pictures: Path | None = None) -> Iterator[Item]:
    """data: the folder of the three files, or one of them."""
    files = sorted(data.glob("*.json")) if data.is_dir() else [data]
    if not files:
        raise ValueError(f"{data}: no *.json in this folder; expected {', '.join(_FILES)}.json of WISE")
    for file in files:
        for row in reading.expect(reading.json_list(file), _FIELDS, file, "WISE"):
            yield Item(id=str(row["prompt_id"]), prompt=row["Prompt"], path=f"{row['prompt_id']}.png")


def score(folder: Path) -> Report:
    """Of `Results/*.jsonl`, which the official judge writes."""
    results = folder / "Results"
    command = "\n".join(
        f"python gpt_eval.py --json_path data/{name}.json --image_dir {folder} --output_dir {results} "
        f"--result_full {name}_full.json --result_scores {name}.jsonl --model gpt-4o-2024-05-13 --api_key KEY"
        for name in _FILES
    )
    files = sorted(results.glob("*.jsonl")) or [reading.judged(results / f"{_FILES[0]}.jsonl", command)]
    return Report(wise.summary(row for file in files for row in reading.json_lines(file)), PUBLISHED)


WISE = Benchmark("wise", items, score)
