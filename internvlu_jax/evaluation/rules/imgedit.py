"""ImgEdit: a judge's numbers from 1 to 5, their mean, by kinds of edits."""

from __future__ import annotations

from collections.abc import Mapping

from internvlu_jax.evaluation.scores import Score, bootstrap


def numbers(judgement: str) -> list[int]:
    """The numbers that stand alone behind ": " at the end of a line: "Detail: 4" has one, "Detail: 4 of 5" none."""
    pairs = [line.strip().split(": ") for line in judgement.splitlines()]
    return [int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()]


def one(judgement: str) -> float | None:
    """The mean of a judgement's numbers, rounded to two decimals; None if it has none."""
    found = numbers(judgement)
    return round(sum(found) / len(found), 2) if found else None


def summary(judgements: Mapping[str, str], kinds: Mapping[str, str]) -> tuple[dict[str, Score], int]:
    """The mean of each kind of edit, and "overall", the mean of the kinds; and how many judgements had no number.

    Args:
        judgements: the judge's text by key, the official `result.json`. kinds: "edit_type" by key.

    Raises:
        ValueError: no judgement has a number, or a key is of no edit.
    """
    found: dict[str, list[float]] = {}
    for key, judgement in judgements.items():
        if key not in kinds:
            raise ValueError(f"{key!r} is judged but is no edit of this set")
        value = one(judgement)
        if value is not None:
            found.setdefault(kinds[key], []).append(value)
    if not found:
        raise ValueError(f"none of {len(judgements)} judgements has a number")
    silent = len(judgements) - sum(map(len, found.values()))
    kinds_scores = {kind: bootstrap({kind: values}) for kind, values in sorted(found.items())}
    return {"overall": bootstrap(found), **kinds_scores}, silent
