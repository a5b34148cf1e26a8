"""GenEval: prompts on objects, their number, colour and place; four pictures each, looked at by a detector."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import geneval
from internvlu_jax.evaluation.task import Benchmark, Item, Report

_FIELDS = ("tag", "include", "prompt")
_PICTURES = 4  # of each prompt
PUBLISHED = {
    "overall": 0.85,
    "single_object": 0.99,
    "two_object": 0.94,
    "counting": 0.74,
    "colors": 0.91,
    "position": 0.77,
    "color_attr": 0.74,
}


def items(data: Path, pictures: Path | None = None) -> Iterator[Item]:
    """data: `evaluation_metadata.jsonl`."""
    for number, row in enumerate(reading.expect(reading.json_lines(data), _FIELDS, data, "GenEval")):
        for picture in range(_PICTURES):
            yield Item(
                id=f"{number:05}/{picture:04}",
                prompt=row["prompt"],
                seed=picture,
                path=f"{number:05}/samples/{picture:04}.png",
                beside={f"{number:05}/metadata.jsonl": json.dumps(row) + "\n"},
            )


def score(folder: Path) -> Report:
    """Of `results.jsonl`, which the official detector writes."""
    results = folder / "results.jsonl"
    command = f"python evaluation/evaluate_images.py {folder} --outfile {results} --model-path DETECTOR"
    return Report(geneval.summary(reading.json_lines(reading.judged(results, command))), PUBLISHED)


GENEVAL = Benchmark("geneval", items, score)
