"""A head that draws latents, or a language model that draws codes: decoupled beside shared-discrete.

More differs between them than what is shared: codes for latents, next code after next code for flow matching, and a
language model that has the parameters of vision encoder and head. It is the other end of the scale, not a control.
"""

from __future__ import annotations

from collections.abc import Mapping

from experiments.ablations import parts
from experiments.ablations.arms import Arm
from experiments.ablations.studies.study import DRAWING, READING, Study, Variant, with_seen_loss

_SCORES = (*READING, "transfer_questions", *DRAWING, "transfer_pictures")


def _variants(arms: Mapping[str, Arm]) -> tuple[Variant, ...]:
    discrete = tuple("code_loss" if name == "flow_loss" else name for name in _SCORES)
    return (
        with_seen_loss(Variant("decoupled", arms["decoupled"], scores=_SCORES)),
        Variant("shared-discrete", arms["shared-discrete"], scores=discrete),
    )


DISCRETE = Study("discrete", "xs", _variants, lessons=parts.ALL_PICTURES, flow="flow_loss_seen")
