"""What moves the matrices of the layers: Adam, as in all other studies, or Muon (`training.muon`); each arm is tuned.

Tuning alone says much of it: `--until tuning`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from experiments.ablations import parts
from experiments.ablations.arms import Arm
from experiments.ablations.studies.study import Study, Variant, with_seen_loss


def _variants(arms: Mapping[str, Arm]) -> tuple[Variant, ...]:
    adam = with_seen_loss(Variant("decoupled", arms["decoupled"]))
    return adam, replace(adam, name="muon", matrices="muon")


OPTIMIZER = Study("optimizer", "xs", _variants, matched=False, lessons=parts.ALL_PICTURES, flow="flow_loss_seen")
