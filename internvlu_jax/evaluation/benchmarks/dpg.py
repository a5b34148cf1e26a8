"""DPG-Bench: long prompts; four pictures each, tiled 2 x 2, and a model that answers questions about them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import dpg
from internvlu_jax.evaluation.rules.dpg import Question
from internvlu_jax.evaluation.task import Benchmark, Item, Report
from internvlu_jax.utils.files import read_json

_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
# picture, the tile's box, question, answer
_ANSWER = re.compile(r"(?P<file>.*), \((?P<box>\d+, \d+, \d+, \d+)\), (?P<question>.*), (?P<answer>[^,]*)")
PUBLISHED = {
    "overall": 85.18,
    "global": 90.39,
    "entity": 90.78,
    "attribute": 90.68,
    "relation": 90.29,
    "other": 88.77,
}


def items(data: Path, pictures: Path | None = None) -> Iterator[Item]:
    """data: `dpgbench_prompts.json`, or the folder of `*.txt`, one prompt each."""
    for name, prompt in _prompts(data).items():
        yield Item(id=name, prompt=prompt, path=f"images/{name}.png", tiled=4)


def score(folder: Path) -> Report:
    """Of `results_detail.txt`, which the official script writes, and the questions in `dpg_bench.csv` beside it."""
    results, table = folder / "results_detail.txt", folder / "dpg_bench.csv"
    command = (
        f"cp dpg_bench/dpg_bench.csv {table}; python dpg_bench/compute_dpg_bench.py --image-root-path "
        f"{folder / 'images'} --csv {table} --res-path {folder / 'results.txt'} --pic-num 4 --resolution SIDE"
    )
    questions = _questions(reading.judged(table, command))
    lines = reading.judged(results, command).read_text(encoding="utf-8").splitlines()
    return Report(dpg.summary(questions, _answers(lines, questions)), PUBLISHED)


def _prompts(data: Path) -> dict[str, str]:
    if data.is_dir():
        files = sorted(data.glob("*.txt"))
        if not files:
            raise ValueError(f"{data}: no *.txt in this folder; expected the prompts of DPG-Bench, one a file")
        return {file.stem: file.read_text(encoding="utf-8").strip() for file in files}
    prompts = read_json(data)
    if not isinstance(prompts, dict) or not prompts or not all(isinstance(text, str) for text in prompts.values()):
        raise ValueError(f"{data} is no file of DPG-Bench; expected one JSON object of prompts by name")
    return {name.removesuffix(".txt"): text for name, text in prompts.items()}


def _questions(table: Path) -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = {}
    for row in reading.expect(reading.table(table), _COLUMNS, table, "DPG-Bench"):
        parents = tuple(int(parent) for parent in row["dependency"].split(","))
        category = row["tuple"].split("(")[0].strip()
        question = Question(int(row["proposition_id"]), parents, category, row["question_natural_language"])
        found.setdefault(row["item_id"], []).append(question)
    return found


def _answers(lines: Sequence[str], questions: Mapping[str, Sequence[Question]]) -> dict[str, list[dict[int, str]]]:
    """By prompt, for each tile, by question: within a prompt lines come tile by tile, each in the questions' order."""
    given: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        found = _ANSWER.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} of the answers is {line!r}; expected picture, (box), question, answer")
        given.setdefault(Path(found["file"]).name.split(".")[0], []).append(found["answer"])
    tiles: dict[str, list[dict[int, str]]] = {}
    for name, answers in given.items():
        numbers = [question.number for question in questions.get(name, ())]
        if not numbers or len(answers) % len(numbers):
            raise ValueError(f"{len(answers)} answers on {name}, which has {len(numbers)} questions for each tile")
        starts = range(0, len(answers), len(numbers))
        tiles[name] = [dict(zip(numbers, answers[start:], strict=False)) for start in starts]
    return tiles


DPG = Benchmark("dpg", items, score)
