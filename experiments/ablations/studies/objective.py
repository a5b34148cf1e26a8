"""How pictures are learned: how noise levels are drawn in training, and how much pictures count beside text.

Text : flow is 1 : 5 in all arms but two, whatever tuning chose, and noise levels are the arm's own logit-normal ones in
all but three. What is scored is drawn, and its loss is taken, at the same levels in all of them.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.ablations.arms import Arm
from experiments.ablations.studies.study import Variant, exploratory


def _variants(arm: Arm) -> tuple[Variant, ...]:
    first = Variant("decoupled", arm, flow_weight=5.0)
    return (
        first,
        replace(first, name="uniform", time="uniform"),
        replace(first, name="shift-0.5", noise_shift=0.5),
        replace(first, name="shift-3", noise_shift=3.0),
        replace(first, name="flow-1", flow_weight=1.0),
        replace(first, name="flow-20", flow_weight=20.0),
    )


OBJECTIVE = exploratory("objective", _variants)
