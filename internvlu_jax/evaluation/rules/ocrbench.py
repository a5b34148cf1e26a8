"""OCRBench: whether a reply contains one of the answers; ten kinds of text in five groups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from internvlu_jax.evaluation.scores import Score, percentages

FORMULAS = "Handwritten Mathematical Expression Recognition"
_RECOGNITION = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
)
_OTHERS = ("Scene Text-centric VQA", "Doc-oriented VQA", "Key Information Extraction", FORMULAS)
GROUPS = {**dict.fromkeys(_RECOGNITION, "Text Recognition"), **{name: name for name in _OTHERS}}
"""Which group a kind counts in."""


def right(reply: str, answers: Sequence[str], kind: str) -> bool:
    """Whether the reply contains an answer: in lower case, line breaks as spaces. Formulas keep their case and lose all
    spaces and line breaks. An empty answer is in every reply.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in GROUPS:
        raise ValueError(f"kind {kind!r}; expected one of {', '.join(GROUPS)}")

    def plain(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if kind == FORMULAS else text.lower()

    return any(plain(answer) in plain(reply) for answer in answers)


def summary(verdicts: Iterable[tuple[str, bool]]) -> dict[str, Score]:
    """In percent: "overall", which for all 1000 questions is the official sum of right ones / 10, and the groups.

    Args:
        verdicts: the kind of each question, and whether the reply is right.

    Raises:
        ValueError: there is none.
    """
    return percentages(((GROUPS[kind], verdict) for kind, verdict in verdicts), dict.fromkeys(GROUPS.values()))
