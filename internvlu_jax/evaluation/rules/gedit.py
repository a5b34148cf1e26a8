"""GEdit-Bench: the root of semantics times quality, a judge's 0 to 10 each, by kinds of edits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from internvlu_jax.evaluation.scores import Score, bootstrap

KINDS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)


def summary(rows: Iterable[Mapping[str, Any]], language: str = "en") -> dict[str, Score]:
    """The mean of each kind, and of the kinds: "overall", "semantics" and "quality".

    Args:
        rows: "kind", "instruction_language", "sementics_score" (as the official table spells it) and "quality_score";
            rows of other languages do not count. language: "en" or "cn".

    Raises:
        ValueError: there is none in the language, or a number is not between 0 and 10.
    """
    parts: dict[str, dict[str, list[float]]] = {"overall": {}, "semantics": {}, "quality": {}}
    for row in rows:
        if row["instruction_language"] != language:
            continue
        semantics, quality = float(row["sementics_score"]), float(row["quality_score"])
        if not (0 <= semantics <= 10 and 0 <= quality <= 10):
            raise ValueError(f"scores {semantics}, {quality} of {row['kind']}; expected 0 to 10")
        for name, value in (
            ("overall", math.sqrt(semantics * quality)),
            ("semantics", semantics),
            ("quality", quality),
        ):
            parts[name].setdefault(row["kind"], []).append(value)
    if not parts["overall"]:
        raise ValueError(f"no edit was judged in language {language!r}")
    kinds = {kind: bootstrap({kind: values}) for kind, values in parts["overall"].items()}
    return {**{name: bootstrap(values) for name, values in parts.items()}, **kinds}
