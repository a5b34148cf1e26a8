"""What the worker does, one picture or one answer each, and what comes of it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from PIL import Image

MODEL = "internvl-u"
"""The name that clients ask for."""

Settings = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Call:
    """One picture, or one answer to one message.

    settings: further arguments of the pipeline's call. streamed: the text is reported as it is written.
    """

    mode: str
    prompt: str
    pictures: tuple[Image.Image, ...]
    seed: int
    settings: Settings = ()
    streamed: bool = False

    @property
    def kind(self) -> Hashable | None:
        """Equal for calls that can be one; None for what runs alone."""
        if self.streamed:
            return None
        sizes = () if self.mode == "text" else tuple(picture.size for picture in self.pictures)
        return self.mode, self.settings, sizes


@dataclass(frozen=True)
class Conversation:
    """One answer to several messages, or to one whose text is reported as it is written; runs alone."""

    messages: tuple[dict[str, Any], ...]
    seed: int
    settings: Settings = ()
    kind: None = None


Job = Call | Conversation


@dataclass(frozen=True)
class Drawn:
    """text: what was reasoned before, if anything."""

    picture: Image.Image
    text: str | None
    seed: int


@dataclass(frozen=True)
class Answer:
    """written: tokens of it. read: those of all messages, None where they were counted before. ended: by itself."""

    text: str
    written: int
    ended: bool
    seed: int
    read: int | None = None


@dataclass(frozen=True)
class Step:
    """Of the sampler: number `step` of `total` is done."""

    step: int
    total: int


Event = str | Step
"""What is reported of a job under way: a piece of its text, or a step."""
