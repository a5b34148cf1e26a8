"""Whether an answer in words is the right one."""

from __future__ import annotations

import re

from internvlu_jax.small_world.tasks.captions import NUMBERS

_LEADING = re.compile(r"^(there (is|are)|it is|it's|its|the|an?)\s+")
_DIGITS = {"zero": "0", **{word: str(n) for n, word in enumerate(NUMBERS) if n}}


def right(expected: str, said: str, reading: bool = False) -> bool:
    """Whether the answer says the same, apart from case, punctuation, articles and how numbers are written.

    Args:
        reading: the question was what is written, where "TEN" is not "10".
    """
    if reading:
        return _bare(said) == _bare(expected)
    answer, expected = plain(said), plain(expected)
    return (answer.split(" ")[0] if expected in ("yes", "no") else answer) == expected


def plain(text: str) -> str:
    """ "It is a circle." -> "circle", "Three" -> "3", "grey" -> "gray"."""
    text = _bare(text)
    while (shorter := _LEADING.sub("", text)) != text:
        text = shorter
    return " ".join(_DIGITS.get(word, word) for word in text.split()).replace("grey", "gray")


def _bare(text: str) -> str:
    return re.sub(r"[^\w\s]", "", text.strip().lower()).strip()
