"""DPG-Bench: questions about a picture, some of which only make sense where others were answered yes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from internvlu_jax.evaluation.scores import Score, bootstrap, share


@dataclass(frozen=True)
class Question:
    """parents: the questions that it depends on; none is (0,) in the table. category: "entity - whole" and the like."""

    number: int
    parents: tuple[int, ...]
    category: str
    text: str


def tile(questions: Sequence[Question], answers: Mapping[int, str]) -> float:
    """The share of one picture's questions that hold.

    A question holds if the answer is exactly "yes" and no parent failed. Questions are settled in their order, so a
    parent that failed by its own parents fails its children only if it stands before them, as in the official script.

    Raises:
        ValueError: a question was not answered, or depends on one that is not there.
    """
    holds = {}
    for question in questions:
        if question.number not in answers:
            raise ValueError(f"question {question.number} ({question.text!r}) has no answer")
        holds[question.number] = answers[question.number] == "yes"
    for question in questions:
        for parent in question.parents:
            if parent and parent not in holds:
                raise ValueError(f"question {question.number} depends on question {parent}, which is not there")
        if any(parent and not holds[parent] for parent in question.parents):
            holds[question.number] = False
    return sum(holds.values()) / len(holds)


def summary(
    questions: Mapping[str, Sequence[Question]], answers: Mapping[str, Sequence[Mapping[int, str]]]
) -> dict[str, Score]:
    """In percent: "overall", the mean over tiles and then over prompts, and the broad categories.

    Categories count the last tile alone, and the answers as they are, without dependencies: the official script does
    so. It also leaves out the first question of the table, and thereby one prompt; here that counts too.

    Args:
        questions: by the prompt's name. answers: by the prompt's name, for each tile, by the question's number.

    Raises:
        ValueError: there is nothing to score, or a prompt has no questions, or see `tile`.
    """
    prompts: list[float] = []
    categories: dict[str, list[bool]] = {}
    for name, tiles in answers.items():
        if name not in questions:
            raise ValueError(f"there are no questions for {name!r}; expected one of {len(questions)} prompts")
        prompts.append(sum(tile(questions[name], tile_answers) for tile_answers in tiles) / len(tiles))
        for question in questions[name]:
            broad = question.category.split("-")[0].strip()
            categories.setdefault(broad, []).append(tiles[-1][question.number] == "yes")
    broad_scores = {name: share(values).percent() for name, values in sorted(categories.items())}
    return {"overall": bootstrap({"prompts": prompts}).percent(), **broad_scores}
