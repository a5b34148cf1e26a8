"""WISE: a judge's 0 to 2 for consistency, realism and looks, weighted, by fields of knowledge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from internvlu_jax.evaluation.scores import Score, bootstrap

WEIGHTS = {"culture": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
"""Of the fields in the whole: 400, 167, 133 and three times 100 of the 1000 prompts."""
_LAST = {"culture": 400, "time": 567, "space": 700, "biology": 800, "physics": 900, "chemistry": 1000}
_JUDGED = ("consistency", "realism", "aesthetic_quality")


def one(consistency: int | float, realism: int | float, aesthetic_quality: int | float) -> float:
    """0 to 1, of a picture."""
    return (0.7 * consistency + 0.2 * realism + 0.1 * aesthetic_quality) / 2


def field(prompt_id: int) -> str:
    """Which field a prompt is of.

    Raises:
        ValueError: there is no such prompt.
    """
    for name, last in _LAST.items():
        if 1 <= prompt_id <= last:
            return name
    raise ValueError(f"prompt_id {prompt_id} is none of WISE's; expected 1 to 1000")


def summary(rows: Iterable[Mapping[str, Any]]) -> dict[str, Score]:
    """The mean of each field, and their weighted sum "overall" where all six are there.

    Args:
        rows: the lines of the official judge's `*_scores*.jsonl`: "prompt_id" and the three numbers.

    Raises:
        ValueError: there are none, a prompt is judged twice, or a number is missing.
    """
    fields: dict[str, list[float]] = {}
    seen: set[int] = set()
    for row in rows:
        number = row.get("prompt_id")
        if not isinstance(number, int) or not all(isinstance(row.get(name), int | float) for name in _JUDGED):
            raise ValueError(f"{dict(row)} is no judgement; expected prompt_id and numbers for {', '.join(_JUDGED)}")
        if number in seen:
            raise ValueError(f"prompt_id {number} is judged twice")
        seen.add(number)
        fields.setdefault(field(number), []).append(one(*(row[name] for name in _JUDGED)))
    if not fields:
        raise ValueError("there is no judgement; expected one per picture")
    ordered = {name: fields[name] for name in WEIGHTS if name in fields}
    scores = {name: bootstrap({name: values}) for name, values in ordered.items()}
    return {"overall": bootstrap(ordered, WEIGHTS), **scores} if len(ordered) == len(WEIGHTS) else scores
