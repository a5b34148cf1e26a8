"""TextEdit: OCR of the edited pictures, apart for photos and for scenes that programs made."""

from __future__ import annotations

from collections.abc import Iterable

from internvlu_jax.evaluation.scores import Score, bootstrap

SPLITS = {"1": "virtual", "2": "real"}
"""By the first digit of a category: 1.1.1 and the like are made by programs, 2.1 and the like are photos."""


def summary(values: Iterable[tuple[str, float]]) -> dict[str, Score]:
    """The mean of a number per picture, apart for "real" and "virtual".

    Args:
        values: the category, as "1.1.1" or "2.7", and the number, as the F1 of its words.

    Raises:
        ValueError: there is none, or a category is unknown.
    """
    found: dict[str, list[float]] = {}
    for category, value in values:
        split = SPLITS.get(category.split(".")[0])
        if split is None:
            raise ValueError(f"category {category!r}; expected 1.x.x (virtual) or 2.x (real)")
        found.setdefault(split, []).append(value)
    if not found:
        raise ValueError("there is no picture to score")
    return {split: bootstrap({split: found[split]}) for split in sorted(found)}
