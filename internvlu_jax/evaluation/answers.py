"""Whether an answer in words is the right one."""

from __future__ import annotations

import re

from internvlu_jax.data.world.captions import NUMBERS
from internvlu_jax.data.world.questions import Question

_LEADING = re.compile(r"^(there (is|are)|it is|it's|the|an?)\s+")


def right(question: Question, answer: str) -> bool:
    """Whether the answer says the same, apart from case, punctuation, articles and how numbers are written."""
    said, wanted = plain(answer), plain(question.answer)
    if wanted in ("yes", "no"):
        return said.split(" ")[0] == wanted
    return said == wanted


def plain(text: str) -> str:
    """ "It is a circle." -> "circle", "Three" -> "3", "grey" -> "gray"."""
    text = re.sub(r"[^\w\s]", "", text.strip().lower())
    while (shorter := _LEADING.sub("", text)) != text:
        text = shorter
    words = [str(NUMBERS.index(word)) if word in NUMBERS[1:] else word for word in text.split()]
    return " ".join(words).replace("grey", "gray")
