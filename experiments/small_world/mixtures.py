"""What the parts of the small model's training read: tasks of the small world, and how often each comes up."""

from __future__ import annotations

Mixture = tuple[tuple[str, float], ...]
"""As `DataConfig.sources`."""


def _sources(**weights: float) -> Mixture:
    """Of tasks "general_edit", and of one kind of a task, "general_picture_position"."""
    return tuple((f"world:small/{name.replace('_', '/')}", float(weight)) for name, weight in weights.items())


# Words, and which of two objects is where, are learned last: prompts of these kinds come more often than the others.
PICTURES = _sources(
    general_picture=10, general_picture_position=9, general_picture_attribution=5, general_picture_two=5,
    general_picture_counting=4, text_picture=12,
)  # fmt: skip
STAGE1 = PICTURES + _sources(reasoning_direct=1)
STAGE2 = PICTURES + _sources(general_edit=16, text_edit=4)
QUESTIONS = _sources(
    general_question=10, general_question_place=4, general_question_relation=8, general_description=1, text_question=4
)
BACKBONE = QUESTIONS + _sources(reasoning_words=6)
STAGE3 = STAGE2 + _sources(reasoning_picture=4, reasoning_steps=6) + QUESTIONS
UNDERSTANDING = _sources(
    general_conversation=8, general_question_place=4, general_question_relation=4, text_question=5,
    general_description=1, reasoning_words=2,
)  # fmt: skip
DISTILLED_QUESTIONS = _sources(
    general_conversation=10, general_question_place=5, general_question_relation=5, general_description=0.5,
    text_question=2,
)  # fmt: skip
DISTILLED_PROMPTS = PICTURES + _sources(general_edit=24, text_edit=4, reasoning_picture=10, reasoning_steps=12)

# Of the parts that train all tasks together.
_SHARED = _sources(
    general_picture=6, general_edit=14, general_edit_move=6, general_edit_replace=4, reasoning_picture=5,
    reasoning_steps=6, general_description=0.5,
)  # fmt: skip
# What was still weak after the distillation: sizes, and edits that move or exchange.
TOGETHER = _SHARED + _sources(
    general_picture_single=8, general_picture_position=3, general_picture_attribution=4, general_picture_two=4,
    general_picture_counting=5, text_picture=8, text_edit=3, general_conversation=10, general_question_place=2,
    general_question_relation=6, text_question=2,
)  # fmt: skip
LETTERS = _sources(text_picture_1=5, text_picture_2=4, text_picture_3=2, text_picture_4=2, text_picture=2)
PLACES = _sources(general_question_place=3, general_question_relation=2)
# After letters and places, with many words and conversations, so that neither is lost again.
TOGETHER_2_AND_3 = _SHARED + _sources(
    general_picture_single=8, general_picture_position=4, general_picture_attribution=4, general_picture_two=4,
    general_picture_counting=6, text_picture=28, text_picture_2=4, text_picture_3=4, text_picture_4=4, text_edit=4,
    general_conversation=16, general_question_place=4, general_question_relation=8, text_question=3,
)  # fmt: skip
# What letters and places had cost: a size that is asked for, two objects and no third, and right numbers.
TOGETHER_4 = _SHARED + _sources(
    general_picture_single=18, general_picture_position=5, general_picture_attribution=7, general_picture_two=7,
    general_picture_counting=11, text_picture=17, text_picture_1=3, text_picture_2=2, text_picture_3=2,
    text_picture_4=2, text_edit=4, general_conversation=14, general_question_place=5, general_question_relation=9,
    text_question=2,
)  # fmt: skip
