"""Messages of a chat, as OpenAI's and Hugging Face's interfaces have them, to turns.

    [{"role": "system", "content": str}, {"role": "user", "content": str or parts},
     {"role": "assistant", "content": str}, ..., {"role": "user", ...}]

Parts are {"type": "text", "text": str} and {"type": "image", "image": picture}, in the order in which they are seen; a
picture is what `images.as_picture` takes. The system message may be absent. The last message is the user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from internvlu_jax.processing import chat

_EXPECTED = '{"role": "system", "user" or "assistant", "content": text, or parts of a user\'s message}'


@dataclass(frozen=True)
class Turns:
    """system: None where the model's own holds. asked: messages of the user with a mark for each picture. answers: to
    all of them but the last. pictures: of each message of the user, not yet read."""

    system: str | None
    asked: tuple[str, ...]
    answers: tuple[str, ...]
    pictures: tuple[tuple[Any, ...], ...]


def turns(messages: Any) -> Turns:
    """The turns of a chat.

    Raises:
        ValueError: it is none, or a text holds tokens that the model keeps for itself; names the message.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise ValueError(f"messages is {messages!r}; expected a list of {_EXPECTED}")
    system = None
    asked: list[str] = []
    answers: list[str] = []
    pictures: list[tuple[Any, ...]] = []
    for n, message in enumerate(messages):
        try:
            role, text, own = _said(message)
            if role == "system" and n == 0:
                system = chat.check_system_text(text.strip()) or None
            elif role == "user" and len(asked) == len(answers):
                asked.append(_user_message(text, own))
                pictures.append(own)
            elif role == "assistant" and len(asked) == len(answers) + 1:
                answers.append(chat.check_written_text(text, "answer"))
            else:
                raise ValueError(
                    f"role is {role!r}; expected user and assistant in turn, after one system message at most"
                )
        except ValueError as error:
            raise ValueError(f"messages[{n}]: {error}") from error
    if len(asked) != len(answers) + 1:
        raise ValueError("the last of the messages is not the user's; expected one to answer")
    return Turns(system, tuple(asked), tuple(answers), tuple(pictures))


def _user_message(text: str, pictures: tuple[Any, ...]) -> str:
    message = chat.user_message(text, len(pictures))
    if not message:
        raise ValueError("it is empty; expected a text or a picture")
    return message


def _said(message: Any) -> tuple[str, str, tuple[Any, ...]]:
    """(role, text with marks, pictures) of one message."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"it is a {type(message).__name__} without a role; expected {_EXPECTED}")
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        return role, content, ()
    if not isinstance(content, list | tuple):
        raise ValueError(f"content is a {type(content).__name__}; expected a text or a list of parts")
    texts: list[str] = []
    pictures: list[Any] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "image" and part.get("image") is not None and role == "user":
            pictures.append(part["image"])
            texts.append(f"{chat.IMAGE_MARK}\n")
        else:
            raise ValueError(
                f'it has a part of type {kind!r}; expected {{"type": "text", "text": text}}, or of the user '
                '{"type": "image", "image": picture}'
            )
    return role, "".join(texts), tuple(pictures)
