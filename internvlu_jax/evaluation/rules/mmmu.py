"""MMMU: the letter, the option or the number that a reply ends on, read as the official parser reads it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from internvlu_jax.evaluation.scores import Score, percentages

_MARKS = tuple(",.!?;:'")
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",  # 1,234,567
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # 1.5e-3
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # 12, 1.5, .5
)


@dataclass(frozen=True)
class Choice:
    """guessed: nothing was found in the reply, and the letter was drawn."""

    letter: str
    guessed: bool = False


def guesses() -> random.Random:
    """The source of guesses of one run. The official script draws one after the other in the order of the questions,
    so the same questions in the same order guess the same."""
    return random.Random(42)


def choice(reply: str, options: Sequence[str], source: random.Random) -> Choice:
    """The letter that a reply stands for, the last one where there are several.

    Letters in brackets are looked for first; then letters alone between spaces, after punctuation at the reply's ends
    is gone; then, in replies of more than five words, the options' own text. Where nothing is found, one is drawn.
    """
    text = reply
    for mark in _MARKS:
        text = text.strip(mark)
    text = f" {text} "
    letters = ascii_uppercase[: len(options)]
    found = {letter: text.rfind(f"({letter})") for letter in letters if f"({letter})" in text}
    found = found or {letter: text.rfind(f" {letter} ") for letter in letters if f" {letter} " in text}
    if not found and len(text.split()) > 5:
        lower = text.lower()
        places = {letter: lower.rfind(option.lower()) for letter, option in zip(letters, options, strict=True)}
        found = {letter: place for letter, place in places.items() if place >= 0}
    if not found:
        return Choice(source.choice(list(letters)), guessed=True)
    return Choice(max(found, key=lambda letter: found[letter]))  # of two at one place the first


def normal(text: str) -> list[str | float]:
    """A number rounded to two decimals, or lower-case text; one letter alone stands with a space on either side, that
    it be not found within words."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def findings(reply: str) -> list[str | float]:
    """What a reply to an open question may mean: the tails of its lines behind words like "answer " or "is ", and the
    numbers in them; the whole reply where there are no such words."""
    lines = re.split(r"\.\s(?=[A-Z])|\n", reply.strip().strip(".").lower())
    tails = []
    for number, line in enumerate(lines):
        keys = (*_KEYS, "=") if number == len(lines) - 1 else _KEYS
        ends = [line.split(key)[-1].strip() for key in keys if key in line]
        shortest = _shortest(ends)
        if shortest and shortest not in _MARKS:
            tails.append(shortest)
    tails = tails or [reply.strip().strip(".").lower()]
    numbers = [number for tail in tails for pattern in _NUMBERS for number in re.findall(pattern, tail)]
    return list(dict.fromkeys(value for text in (*tails, *numbers) for value in normal(text)))


def _shortest(ends: Sequence[str]) -> str:
    """As the official loop has it: an empty end gives way to whatever comes after it."""
    shortest = ""
    for end in ends:
        if not shortest or len(end) < len(shortest):
            shortest = end
    return shortest


def right_open(reply: str, answers: str | Sequence[str]) -> bool:
    """Whether an answer is contained in one of the findings that are text, or is one that is a number."""
    answers = [answers] if isinstance(answers, str) else answers
    wanted = [value for answer in answers for value in normal(answer)]
    for found in findings(reply):
        if isinstance(found, float):
            if found in wanted:
                return True
        elif any(isinstance(value, str) and value in found for value in wanted):
            return True
    return False


def summary(verdicts: Iterable[tuple[str, bool]]) -> dict[str, Score]:
    """In percent: "overall", over all questions, and the subjects.

    Args:
        verdicts: the subject of each question, and whether the reply is right.

    Raises:
        ValueError: there is none.
    """
    return percentages(verdicts)
