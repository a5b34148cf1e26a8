"""What the head is told of the source of an edit: the language model's context, its latents, or both as released."""

from __future__ import annotations

from experiments.ablations.arms import Arm
from experiments.ablations.studies.study import Variant, exploratory, with_head

_SOURCES = {"decoupled": "both", "context-only": "context", "latents-only": "latents"}


def _variants(arm: Arm) -> tuple[Variant, ...]:
    return tuple(Variant(name, with_head(arm, name, sources=sources)) for name, sources in _SOURCES.items())


CONDITION = exploratory("condition", _variants)
