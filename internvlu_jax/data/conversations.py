"""What is said in a record: `conversations` of InternVL and LLaVA, or `messages` as chat interfaces have them.

    [{"from": "system", "value": str}, {"from": "human", "value": str}, {"from": "gpt", "value": str}, ...]
    [{"role": "system", "content": str}, {"role": "user", "content": str}, {"role": "assistant", "content": str}, ...]

The system turn may be absent. `content` may be a list of {"type": "text", "text": str} and {"type": "image"}, the
latter with the name of its file under "image" or without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from internvlu_jax.processing.chat import IMAGE_MARK

FORMS = {"conversations": ("from", "value"), "messages": ("role", "content")}
"""Fields with their keys for who speaks and what."""

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "system": "system"}
_NAMES = {"conversations": ("human", "gpt"), "messages": ("user", "assistant")}


@dataclass(frozen=True)
class Conversation:
    """system: the text in place of the model's own, None where there is none. turns: (human, answer). pictures: names
    of files that stand among the words."""

    system: str | None
    turns: tuple[tuple[str, str], ...]
    pictures: tuple[str, ...] = ()


def conversation(data: Mapping[str, Any]) -> Conversation:
    """The conversation of a record. Raises ValueError with the field, its value and what is expected."""
    found = [field for field in FORMS if data.get(field) is not None]
    if len(found) > 1:
        raise ValueError("it has conversations and messages; expected one of them")
    field = found[0] if found else "conversations"
    who, what = FORMS[field]
    human, gpt = _NAMES[field]
    said = data.get(field)
    if not isinstance(said, list) or not said:
        shown_said = shown(said) if field in data else "missing"
        raise ValueError(
            f'{field} is {shown_said}; expected a list of {{"{who}": "{human}" or "{gpt}", "{what}": text}}'
        )
    pictures: list[str] = []
    spoken = [_spoken(turn, who, what, pictures) for turn in said]
    system = None
    if spoken[0][0] == "system" and isinstance(spoken[0][1], str):
        system, start = spoken[0][1].strip() or None, 1
    else:
        start = 0
    texts = []
    for n, (speaker, text) in enumerate(spoken[start:], start):
        expected = ("human", "gpt")[(n - start) % 2]
        if speaker != expected or not is_text(text):
            raise ValueError(
                f'{field}[{n}] is {shown(said[n])}; expected {{"{who}": "{(human, gpt)[(n - start) % 2]}", "{what}": '
                f"text}}, {human} and {gpt} in turn, after one system turn at most"
            )
        if expected == "gpt" and IMAGE_MARK in text:
            raise ValueError(
                f"{field}[{n}] is an answer with {IMAGE_MARK} in it; expected marks in questions alone, for nothing is "
                "drawn within a conversation"
            )
        texts.append(text)
    if len(texts) % 2 or not texts:
        raise ValueError(f"{field} has {len(texts)} turn(s); expected an answer to the last")
    return Conversation(system, tuple(zip(texts[::2], texts[1::2], strict=True)), tuple(pictures))


def _spoken(turn: Any, who: str, what: str, pictures: list[str]) -> tuple[str | None, Any]:
    """(speaker, text) of a turn; names of pictures among its parts go to `pictures`. (None, None) for what is none."""
    if not isinstance(turn, dict) or not isinstance(turn.get(who), str):
        return None, None
    content = turn.get(what)
    if isinstance(content, list):
        parts = [_part(part, pictures) for part in content]
        content = None if None in parts else "".join(part for part in parts if part)
    return _SPEAKERS.get(turn[who]), content


def _part(part: Any, pictures: list[str]) -> str | None:
    if not isinstance(part, dict):
        return None
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if part.get("type") != "image":
        return None
    name = part.get("image")
    if isinstance(name, str) and name:
        pictures.append(name)
    elif name is not None:
        return None
    return f"{IMAGE_MARK}\n"


def is_text(value: Any) -> bool:
    """Whether it is a string with something in it, and no half of a surrogate pair: JSON can hold those."""
    return isinstance(value, str) and bool(value.strip()) and value == value.encode("utf-8", "replace").decode()


def shown(value: Any) -> str:
    """A value in messages, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
