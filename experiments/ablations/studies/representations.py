"""Decoupled or shared: the joint arms, with all controls in world XS, again for longer, and alone in its twin and at
size S."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.ablations import parts
from experiments.ablations.arms import Arm, S
from experiments.ablations.design import DESIGNS, JOINT, single_arms
from experiments.ablations.pool import KINDS
from experiments.ablations.studies.study import DRAWING, READING, Study, Variant, with_seen_loss

_READING, _DRAWING = (*READING, "transfer_questions"), (*DRAWING, "transfer_pictures")


def _joint(arms: Mapping[str, Arm]) -> tuple[Variant, ...]:
    return tuple(Variant(name, arms[name], scores=_READING + _DRAWING) for name in JOINT)


def _singles(name: str, arm: Arm) -> tuple[Variant, Variant]:
    """The controls of a joint arm, which are trained on one task alone."""
    understanding, generation = single_arms(name)
    return (
        Variant(understanding, arm, KINDS[2:], _READING, tuned_as=name),
        Variant(generation, arm, KINDS[:2], _DRAWING, tuned_as=name),
    )


def _all(arms: Mapping[str, Arm]) -> tuple[Variant, ...]:
    like = {"twin": "shared-latent", "random-semantic": "shared-semantic"}
    scores = _READING + _DRAWING
    controls = (Variant(name, arms[name], scores=scores, tuned_as=other) for name, other in like.items())
    return *_joint(arms), *controls, *(single for name in JOINT for single in _singles(name, arms[name]))


def _long(arms: Mapping[str, Arm]) -> tuple[Variant, ...]:
    return tuple(with_seen_loss(variant) for variant in _all(arms))


REPRESENTATIONS = Study("representations", "xs", _all)
TRANSFER = Study("transfer", "xs-transfer", _joint, DESIGNS["transfer"].tuned_in, lessons=parts.TRANSFER)
LONG = Study("representations-long", "xs", _long, lessons=parts.ALL_PICTURES, flow="flow_loss_seen")
LARGER = Study("representations-s", "xs", _joint, size=S, lessons=parts.ALL_PICTURES)
