"""MMMU: questions of college exams in 30 subjects, with options or open."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from internvlu_jax.evaluation import prompts
from internvlu_jax.evaluation.benchmarks import reading
from internvlu_jax.evaluation.rules import mmmu
from internvlu_jax.evaluation.task import Benchmark, Item, Picture, Report

_SPLIT = "validation"  # whose score is published; the answers of test are not
_FIELDS = ("id", "question", "options", "answer", "question_type", "image_1")
PUBLISHED = {"overall": 54.7}


def items(data: Path, pictures: Path | None = None) -> Iterator[Item]:
    """data: the set's Parquet files, or the folder of its subjects, with the pictures in them.

    Of a folder the files of validation are read. Raises ValueError where a row is of another split.
    """
    for row in reading.expect(reading.parquet(data, _SPLIT), _FIELDS, data, "MMMU"):
        if not row["id"].startswith(f"{_SPLIT}_"):
            raise ValueError(f"{data}: {row['id']} is not of {_SPLIT}, whose score is published; expected its files")
        options = [str(option) for option in _listed(row["options"])]
        named = [f"image_{number}" for number in range(1, 8) if row.get(f"image_{number}") is not None]
        shown = [reading.kept(row[name], f"{data}: {name} of {row['id']}") for name in named]
        shown[0] = _enlarged(shown[0])
        text = prompts.multiple_choice(row["question"], dict(zip(ascii_uppercase, options, strict=False)))
        yield Item(
            id=row["id"],
            prompt=prompts.with_pictures(text, len(shown)),
            pictures=tuple(shown),
            max_tiles=prompts.tiles("MMMU", len(shown)),
            facts={"kind": row["question_type"], "options": options, "answer": row["answer"]},
        )


def score(folder: Path) -> Report:
    """Of the answers in the folder, and how many letters were guessed."""
    source, verdicts, guessed = mmmu.guesses(), [], 0
    for row in reading.answers(folder):
        if row["kind"] == "multiple-choice":
            choice = mmmu.choice(row["text"], row["options"], source)
            right, guessed = choice.letter == row["answer"], guessed + choice.guessed
        else:
            right = mmmu.right_open(row["text"], [str(answer) for answer in _listed(row["answer"])])
        subject = "_".join(row["id"].split("_")[1:-1])  # validation_Art_Theory_12
        verdicts.append((subject, right))
    return Report(mmmu.summary(verdicts), PUBLISHED, notes=(f"{guessed} letters guessed (seed 42)",))


def _enlarged(picture: Picture) -> Picture:
    return lambda: prompts.enlarged(picture())


def _listed(text: str) -> list[Any]:
    """Lists stand in the set as they are written in Python; an open question's one answer stands alone."""
    return ast.literal_eval(text) if text.startswith("[") else [text]


MMMU = Benchmark("mmmu", items, score)
