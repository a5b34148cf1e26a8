"""Parts of the released head, each one left out or put more simply.

    arm               in place of
    no-gate           a gate on the output of attention
    numbered          positions of frame, row and column: all tokens are numbered through, as in a text
    no-context-norm   an RMSNorm of the context
    one-layer         hidden states of two layers as the context: those of the last alone

Arms without a gate, a norm or a layer have fewer parameters, which the report lists: nothing is made up for.
"""

from __future__ import annotations

from experiments.ablations.arms import Arm
from experiments.ablations.studies.study import Variant, exploratory, with_head


def _variants(arm: Arm) -> tuple[Variant, ...]:
    width = arm.config.vlm.llm_config.hidden_size
    plain_rotary = (arm.config.generation_decoder.decoder_config.attention_head_dim, 0, 0)
    arms = (
        arm,
        with_head(arm, "no-gate", {"gate": False}),
        with_head(arm, "numbered", {"axes_dims_rope": plain_rotary}, positions="sequence"),
        with_head(arm, "no-context-norm", {"context_norm": False}),
        with_head(
            arm, "one-layer", {"joint_attention_dim": width}, vlm_select_layer=(-1,), input_hidden_size=width,
            output_hidden_size=width,
        ),
    )  # fmt: skip
    return tuple(Variant(one.name, one) for one in arms)


HEAD = exploratory("head", _variants)
