"""MME: two yes-or-no questions a picture; each that is right counts, and both together count again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from internvlu_jax.evaluation.scores import Score, bootstrap

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = (*PERCEPTION, *COGNITION)


def verdict(reply: str) -> Literal["yes", "no", "other"]:
    """What a reply says by its first four letters in lower case: "yes" wins over "no", and both may stand within words:
    "eyes" is yes, "know" is no."""
    beginning = reply.lower()[:4]
    if "yes" in beginning:
        return "yes"
    return "no" if "no" in beginning else "other"


def picture(answers: tuple[str, str], replies: tuple[str, str]) -> float:
    """0, 50 or 200 points of a picture: 50 for each right reply, and 100 more if both are.

    Raises:
        ValueError: an answer is neither yes nor no.
    """
    for answer in answers:
        if answer.lower() not in ("yes", "no"):
            raise ValueError(f"the answer {answer!r} is neither Yes nor No")
    rights = [answer.lower() == verdict(reply) for answer, reply in zip(answers, replies, strict=True)]
    return 50.0 * sum(rights) + 100.0 * all(rights)


def summary(tasks: Mapping[str, Sequence[float]]) -> dict[str, Score]:
    """The points of each task, their mean over pictures (accuracy + accuracy-plus, at most 200), and their sums:
    "perception" of ten tasks (at most 2000) and "cognition" of four (at most 800), where all of them are there.

    Args:
        tasks: the points of each `picture`, by task.

    Raises:
        ValueError: there is none, or a task is none of MME's.
    """
    if unknown := tasks.keys() - {*PERCEPTION, *COGNITION}:
        raise ValueError(
            f"{', '.join(sorted(unknown))}: no task of MME; they are {', '.join((*PERCEPTION, *COGNITION))}"
        )
    sums = {}
    for name, parts in (("perception", PERCEPTION), ("cognition", COGNITION)):
        if all(part in tasks for part in parts):
            sums[name] = bootstrap({part: tasks[part] for part in parts}, dict.fromkeys(parts, 1.0))
    single = {name: bootstrap({name: tasks[name]}) for name in TASKS if name in tasks}
    if not single:
        raise ValueError("there is no task to score")
    return {**sums, **single}
