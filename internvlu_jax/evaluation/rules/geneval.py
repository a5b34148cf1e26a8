"""GenEval: what the detector found in each picture, task by task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from internvlu_jax.evaluation.scores import Score, by_category, overall, share

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, Score]:
    """The share of right pictures in each task, and the mean of the tasks: what `summary_scores.py` prints.

    Args:
        rows: the lines of the official detector's `results.jsonl`, one a picture: "tag" (the task), "correct" and
            "metadata" (the line of the prompts file, as a string) count.

    Returns:
        The tasks in their order of appearance, "overall" (each task counts alike, however many pictures it has),
        "pictures" (the share of right ones) and "prompts" (the share that has a right picture).

    Raises:
        ValueError: there are no rows, or one has no such field.
    """
    rows = list(rows)
    for number, row in enumerate(rows, start=1):
        if missing := {"tag", "correct", "metadata"} - row.keys():
            raise ValueError(
                f"line {number} has no {', '.join(sorted(missing))}; expected what GenEval's evaluate_images.py writes"
            )
    tasks = by_category((row["tag"], bool(row["correct"])) for row in rows)
    prompts: dict[str, bool] = {}
    for row in rows:
        prompts[row["metadata"]] = prompts.get(row["metadata"], False) or bool(row["correct"])
    return {
        **tasks,
        "overall": overall(tasks),
        "pictures": share([bool(row["correct"]) for row in rows]),
        "prompts": share(list(prompts.values())),
    }
