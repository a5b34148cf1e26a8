"""RISEBench: a judge's 1 to 5 for consistency, reasoning and plausibility, weighted; and what is done completely."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from internvlu_jax.evaluation.scores import Score, bootstrap, by_category, share

CATEGORIES = ("temporal_reasoning", "causal_reasoning", "spatial_reasoning", "logical_reasoning")


@dataclass(frozen=True)
class Judged:
    """1 to 5 each. consistency: None where the edit is free to change everything. plausibility: None for logic."""

    category: str
    reasoning: int | float
    consistency: int | float | None
    plausibility: int | float | None


def one(judged: Judged) -> float:
    """0.3 consistency + 0.5 reasoning + 0.2 plausibility; without consistency 0.8 and 0.2; for logic 0.3 and 0.7.

    Reasoning of 1 halves the result, but never below 1.

    Raises:
        ValueError: the category is unknown, or a number that it needs is missing or not within 1 to 5.
    """
    if judged.category not in CATEGORIES:
        raise ValueError(f"category {judged.category!r}; expected one of {', '.join(CATEGORIES)}")
    for value in (judged.reasoning, judged.consistency, judged.plausibility):
        if value is not None and not 1 <= value <= 5:
            raise ValueError(f"{judged}: {value} is not within 1 to 5")
    reasoning, consistency, plausibility = judged.reasoning, judged.consistency, judged.plausibility
    if judged.category == "logical_reasoning":
        if consistency is None:
            raise ValueError(f"{judged}: logic needs consistency")
        value = 0.3 * consistency + 0.7 * reasoning
    elif plausibility is None:
        raise ValueError(f"{judged}: {judged.category} needs plausibility")
    elif consistency is None:
        value = 0.8 * reasoning + 0.2 * plausibility
    else:
        value = 0.3 * consistency + 0.5 * reasoning + 0.2 * plausibility
    return max(value * 0.5, 1.0) if reasoning == 1 else value


def complete(judged: Judged) -> bool:
    """Whether everything that counts is a 5."""
    counts = (judged.reasoning, judged.consistency, judged.plausibility)
    return all(value == 5 for value in counts if value is not None)


def summary(judgements: Iterable[Judged]) -> dict[str, Score]:
    """In percent: "accuracy", the share that is complete (what the leaderboard ranks by), also of each category; and
    "score", the mean of `one`, 1 to 5 brought to 0 to 100.

    Where the official script finds the mark `consistency_free` in any row, it counts every row's score as free of it;
    here only those that are. Accuracy is the same.

    Raises:
        ValueError: there is none, or see `one`.
    """
    judgements = list(judgements)
    accuracy = share([complete(judged) for judged in judgements]).percent()
    values = [25 * (one(judged) - 1) for judged in judgements]
    categories = by_category((judged.category, complete(judged)) for judged in judgements)
    return {
        "accuracy": accuracy,
        "score": bootstrap({"all": values}),
        **{name: score.percent() for name, score in categories.items()},
    }
