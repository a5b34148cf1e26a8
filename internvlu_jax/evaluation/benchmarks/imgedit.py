"""ImgEdit: single edits of nine kinds, judged by a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import imgedit
from internvlu_jax.evaluation.task import Benchmark, Item, Report
from internvlu_jax.utils.files import read_json

_FIELDS = ("id", "prompt", "edit_type")
_KINDS = "basic_edit.json"
PUBLISHED = {"overall": 3.67, "overall with reasoning": 3.82}


def items(data: Path, pictures: Path | None = None) -> Iterator[Item]:
    """data: `basic_edit.json`. pictures: the folder `singleturn`."""
    rows = read_json(data)
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise ValueError(f"{data} is no file of ImgEdit; expected one JSON object of edits by key")
    kinds = json.dumps(rows)
    for key, row in zip(rows, reading.expect(rows.values(), _FIELDS, data, "ImgEdit"), strict=True):
        source = reading.shown(pictures or data.parent, row["id"])
        yield Item(id=key, prompt=row["prompt"], pictures=(source,), path=f"{key}.png", beside={_KINDS: kinds})


def score(folder: Path) -> Report:
    """Of `result.json`, which the official script writes with a judge's words."""
    results, kinds = folder / "result.json", folder / _KINDS
    command = (
        f"python basic_bench.py --result_img_folder {folder} --edit_json {kinds} --origin_img_root SOURCES "
        "--prompts_json prompts.json"
    )
    given = read_json(reading.judged(results, command))
    # where the judge failed its words are {"error": ...}
    judgements = {key: words if isinstance(words, str) else "" for key, words in given.items()}
    scores, silent = imgedit.summary(judgements, {key: row["edit_type"] for key, row in read_json(kinds).items()})
    return Report(scores, PUBLISHED, notes=(f"{silent} judgements without a number",) if silent else ())


IMGEDIT = Benchmark("imgedit", items, score)
