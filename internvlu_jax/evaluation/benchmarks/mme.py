"""MME: two yes-or-no questions on each picture, in ten tasks of perception and four of cognition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from internvlu_jax.evaluation import prompts
from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import mme
from internvlu_jax.evaluation.task import Benchmark, Item, Report
from internvlu_jax.utils.files import write_text

_COLUMNS = ("image", "question", "answer")
PUBLISHED = {"perception": 1607.5}


def items(data: Path, pictures: Path | None = None) -> Iterator[Item]:
    """data: the folder of `TASK.txt`, as the official tool has them. pictures: the folder of the tasks' folders."""
    files = sorted(data.glob("*.txt"))
    if not files or any(file.stem not in mme.TASKS for file in files):
        found = ", ".join(file.name for file in files) or "no *.txt"
        raise ValueError(f"{data} is no folder of MME: {found}; expected TASK.txt of {', '.join(mme.TASKS)}")
    for file in files:
        for number, row in enumerate(_questions(file)):
            folder = (pictures or data) / file.stem
            inner = folder if (folder / row["image"]).is_file() else folder / "images"
            yield Item(
                id=f"{file.stem}/{number:04}",
                prompt=prompts.with_pictures(prompts.yes_or_no(row["question"]), 1),
                pictures=(reading.shown(inner, row["image"]),),
                max_tiles=prompts.tiles("MME", 1),
                facts={"task": file.stem, **row},
            )


def finish(folder: Path) -> None:
    """Writes `TASK.txt` with the replies behind the questions, as the official calculation reads them."""
    for task, rows in _tasks(folder).items():
        lines = ["\t".join([*(row[name] for name in _COLUMNS), _one_line(row)]) for row in rows]
        write_text(folder / f"{task}.txt", "\n".join(lines) + "\n")


def score(folder: Path) -> Report:
    """Of the answers in the folder. A picture of which only the first question was asked (`limit`) is left out."""
    points = {}
    for task, rows in _tasks(folder).items():
        pairs = list(zip(rows[::2], rows[1::2], strict=False))
        if pairs:
            points[task] = [mme.picture((a["answer"], b["answer"]), (_one_line(a), _one_line(b))) for a, b in pairs]
    return Report(mme.summary(points), PUBLISHED)


def _questions(file: Path) -> list[dict[str, str]]:
    """The lines of a task, two for each picture.

    Raises:
        ValueError: a line has not three columns, its answer is neither yes nor no, or a picture has not two lines.
    """
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        row = dict(zip(_COLUMNS, line.split("\t"), strict=False))
        if len(row) < len(_COLUMNS) or row["answer"].lower() not in ("yes", "no"):
            raise ValueError(f"{file}:{number} is {line!r}; expected picture, question and Yes or No, by tabs")
        rows.append(row)
    names = [row["image"] for row in rows]
    if not rows or names[::2] != names[1::2] or len(set(names)) * 2 != len(names):
        raise ValueError(f"{file}: expected two lines after each other for each picture, and each picture once")
    return rows


def _tasks(folder: Path) -> dict[str, list[dict[str, Any]]]:
    tasks: dict[str, list[dict[str, Any]]] = {}
    for row in reading.answers(folder):
        tasks.setdefault(row["task"], []).append(row)
    return tasks


def _one_line(row: dict[str, Any]) -> str:
    return " ".join(row["text"].split())


MME = Benchmark("mme", items, score, finish)
