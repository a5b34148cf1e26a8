"""Words before the picture: what reasoning is worth, in training and when a picture is drawn.

    arm         riddles in training   with the words that resolve them
    decoupled   no
    riddles     yes                   no
    reasoned    yes                   yes

The last two see the same examples in the same order. All are asked to draw riddles at once (`riddles`) and after words
of their own (`riddles_reasoned`). Where there are words in training they are among the text's targets, beside answers.
"""

from __future__ import annotations

from experiments.ablations.arms import Arm
from experiments.ablations.matching import Sizes
from experiments.ablations.studies.study import DRAWING, READING, Variant, exploratory

_SCORES = (*READING, *DRAWING, "reasoning")


def _variants(arm: Arm) -> tuple[Variant, ...]:
    return (
        Variant("decoupled", arm, scores=_SCORES),
        Variant("riddles", arm, scores=_SCORES, mixture="reasoning", reasoned=False),
        Variant("reasoned", arm, scores=_SCORES, mixture="reasoning"),
    )


# A riddle with its words has up to 57 tokens. Shapes are the same in all arms, so all are padded for it.
REASONING = exploratory("reasoning", _variants, Sizes(picture=(80, 64), edit=(80, 64)))
