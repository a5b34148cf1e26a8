"""TextEdit, of InternVL-U's authors: words in pictures are replaced, and read again by OCR."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import textedit
from internvlu_jax.evaluation.task import Benchmark, Item, Report
from internvlu_jax.utils.files import read_json

_FIELDS = ("id", "prompt", "original_image", "source_text", "target_text")
PUBLISHED = {"real": 0.71, "virtual": 0.75}


def items(data: Path, pictures: Path | None = None) -> Iterator[Item]:
    """data: a folder of `eval_prompts`, or a file of it. pictures: the folder `data`."""
    files = sorted(data.glob("*.jsonl")) if data.is_dir() else [data]
    if not files:
        raise ValueError(f"{data}: no *.jsonl in this folder; expected the prompts of TextEdit, a file a category")
    for file in files:
        for row in reading.expect(reading.json_lines(file), _FIELDS, file, "TextEdit"):
            parts = row["original_image"].split("/")
            name = f"{parts[0]}/{parts[-1]}"  # the category and the source's own name, where the scorer looks
            source = reading.shown(pictures or data.parent, row["original_image"])
            yield Item(id=name, prompt=row["prompt"], pictures=(source,), path=name)


def score(folder: Path) -> Report:
    """F1 of the words that OCR finds, from what the official script writes."""
    results = folder / "classic" / f"{folder.name}.json"
    command = (
        f"python eval_pipeline/classic_metrics_eval.py --models {folder.name} --model_output_root {folder.parent} "
        f"--output_dir {results.parent} --benchmark_dir eval_prompts/fullset --gt_root_dir data --cache_dir checkpoint"
    )
    splits = read_json(reading.judged(results, command))["summary_by_model"][folder.name]
    values = [
        (Path(row["path"]["edited_image"]).parent.name, float(row["score"]["ocr_f1"]))
        for split in splits.values()
        for row in split["detailed_results"]
    ]
    return Report(textedit.summary(values), PUBLISHED)


TEXTEDIT = Benchmark("textedit", items, score)
