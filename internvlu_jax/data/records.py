"""One training example as it is stored, whatever it is stored in.

Three forms of JSON object:

    {"task": "t2i", "prompt": str, "image": file, "reasoning"?: str}
    {"task": "edit", "prompt": str, "source": [file, ...], "image": file, "reasoning"?: str}
    {"image"?: file or [file, ...], "conversations": [{"from": "human", "value": str}, {"from": "gpt", ...}, ...]}

The last is that of InternVL and LLaVA (`images` is taken for `image`, and "task": "understanding", null or empty text
may stand there); `messages` and a system turn are taken too, see `conversations`. An optional "sizes":
{file: [height, width]}, upright, spares reading the header of each picture. Further fields are left alone.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from internvlu_jax.data.conversations import FORMS, conversation, is_text, shown
from internvlu_jax.processing.chat import IMAGE_MARK
from internvlu_jax.processing.images import opened_picture, to_rgb, upright_size

_URL = re.compile(r"[A-Za-z][\w+.-]*://")
Task = Literal["t2i", "edit", "understanding"]
Open = Callable[[], BufferedReader | BytesIO]


class BrokenRecord(ValueError):
    """A record that cannot be used: where it is stored, and why."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


@dataclass(frozen=True, eq=False)
class PictureFile:
    """A picture that is not read yet.

    name: of the file, as the record has it. open: gives its bytes to read. known_size: upright (height, width), if
    somebody wrote it down. draw: gives the pixels of a picture that is drawn, without the way through its bytes.
    """

    name: str
    open: Open
    known_size: tuple[int, int] | None = None
    draw: Callable[[], UInt8[np.ndarray, "y x 3"]] | None = None

    def size(self) -> tuple[int, int]:
        """Upright (height, width), from the header alone. Raises ValueError naming the file."""
        return self.known_size or self._opened(upright_size)

    def pixels(self) -> UInt8[np.ndarray, "y x 3"]:
        """Upright RGB values. Raises ValueError naming the file."""
        return self._opened(to_rgb) if self.draw is None else self.draw()

    def read(self) -> bytes:
        """The file as it is. Raises ValueError naming it."""
        with self._file() as file:
            try:
                return file.read()
            except OSError as error:
                raise ValueError(f"{self.name}: {error}") from error

    def _opened(self, use: Callable[[Any], Any]) -> Any:
        with self._file() as file, opened_picture(file, self.name) as image:
            return use(image)

    def _file(self) -> BufferedReader | BytesIO:
        try:
            return self.open()
        except FileNotFoundError as error:
            raise ValueError(f"{self.name}: there is no such picture file ({error.filename})") from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise ValueError(f"{self.name}: {error}") from error


def drawn_picture(name: str, draw: Callable[[], UInt8[np.ndarray, "y x 3"]], size: tuple[int, int]) -> PictureFile:
    """A picture of (height, width) for sources that draw what they give; its bytes are those of a PNG."""

    def png() -> BytesIO:
        buffer = BytesIO()
        Image.fromarray(draw()).save(buffer, "png", compress_level=1)
        buffer.seek(0)
        return buffer

    return PictureFile(name, png, size, draw)


@dataclass(frozen=True, eq=False)
class Record:
    """An example of one of the three forms.

    where: file and line (or number in its shard, from 1), for messages.
    prompt, image, reasoning: what is asked to be drawn, the picture, and the words before it.
    sources: pictures that are edited, or that a conversation is about.
    turns: (human, answer) of a conversation. system: its own text in place of the model's.
    stored: arrays computed beforehand (`experiments.precompute`), by name.
    data: the JSON object, for those who write the record elsewhere.
    """

    task: Task
    where: str
    prompt: str = ""
    reasoning: str | None = None
    image: PictureFile | None = None
    sources: tuple[PictureFile, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    stored: Mapping[str, np.ndarray] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def pictures(self) -> dict[str, PictureFile]:
        """All its pictures, by the name that the record has for them."""
        return {picture.name: picture for picture in (*self.sources, *([self.image] if self.image else []))}


def parse(data: Any, where: str, opener: Callable[[str], Open]) -> Record:
    """The record that a JSON object describes.

    Args:
        data: what `json.loads` gave.
        where: file and line, for messages.
        opener: from the name of a picture to a function that opens it.

    Raises:
        BrokenRecord: the object has none of the three forms; names the field, its value and what is expected.
    """
    if not isinstance(data, dict):
        raise BrokenRecord(where, f"the line holds {shown(data)}; expected a JSON object")
    fields = _Fields(data, where, opener)
    task = data.get("task")
    if task in (None, "") and any(field in data for field in FORMS):
        task = "understanding"
    if task == "understanding":
        return fields.conversation()
    if task not in ("t2i", "edit"):
        raise fields.broken("task", '"t2i", "edit" or "understanding"')
    return Record(
        task,
        where,
        prompt=fields.text("prompt"),
        reasoning=fields.reasoning(),
        image=fields.picture("image"),
        sources=fields.pictures("source") if task == "edit" else (),
        data=data,
    )


def is_url(name: str) -> bool:
    """Whether a name is that of something on a network."""
    return _URL.match(name) is not None


def located(index: int, ends: Sequence[int]) -> tuple[int, int]:
    """(part, number in it) of a record in parts of which the first ends before record `ends[0]`, and so on.

    Raises:
        IndexError: there is no such record.
    """
    if not 0 <= index < ends[-1]:
        raise IndexError(f"record {index} of {ends[-1]}")
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


def read_json_text(data: bytes, where: str) -> Any:
    """What JSON in UTF-8 says. Raises BrokenRecord if it is neither."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BrokenRecord(where, f"not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BrokenRecord(where, f"not valid JSON: {error}") from None


class _Fields:
    """The fields of one JSON object, checked as they are taken."""

    def __init__(self, data: Mapping[str, Any], where: str, opener: Callable[[str], Open]) -> None:
        self._data, self._where, self._opener = data, where, opener

    def broken(self, name: str, expected: str) -> BrokenRecord:
        found = shown(self._data[name]) if name in self._data else f"missing (there are {shown(list(self._data))})"
        return BrokenRecord(self._where, f"{name} is {found}; expected {expected}")

    def text(self, name: str) -> str:
        if not is_text(self._data.get(name)):
            raise self.broken(name, "text, in valid Unicode")
        return self._data[name]

    def reasoning(self) -> str | None:
        """Text; tables of records often have null or nothing where there is none."""
        if self._data.get("reasoning") in (None, ""):
            return None
        if IMAGE_MARK in (text := self.text("reasoning")):
            raise self.broken("reasoning", f"words without {IMAGE_MARK}")
        return text

    def picture(self, name: str) -> PictureFile:
        if not is_text(self._data.get(name)):
            raise self.broken(name, "the name of a picture file")
        return self._file(self._data[name])

    def pictures(self, name: str) -> tuple[PictureFile, ...]:
        value = self._data.get(name)
        files = value if isinstance(value, list) else [value]
        if not files or not all(map(is_text, files)):
            raise self.broken(name, "the name of a picture file or a list of them")
        return tuple(map(self._file, files))

    def conversation(self) -> Record:
        """The record of a conversation."""
        try:
            said = conversation(self._data)
        except ValueError as error:
            raise BrokenRecord(self._where, str(error)) from error
        sources = self._seen(said.pictures)
        marks = sum(human.count(IMAGE_MARK) for human, _ in said.turns)
        if marks > len(sources):
            raise BrokenRecord(
                self._where,
                f"its questions have {marks} {IMAGE_MARK} marks for {len(sources)} picture(s); expected at most one "
                "for each file in image",
            )
        return Record(
            "understanding", self._where, sources=sources, turns=said.turns, system=said.system, data=self._data
        )

    def _seen(self, named: tuple[str, ...]) -> tuple[PictureFile, ...]:
        """The pictures of a conversation, which can do without: tables have nothing, or empty text, there."""
        if self._data.get("video") not in (None, ""):
            raise self.broken("video", "pictures only; leave records of videos out")
        names = [name for name in ("image", "images") if self._data.get(name) not in (None, [], "", [""])]
        if len(names) + bool(named) > 1:
            raise self.broken(names[-1], "either image or images, or names among the words")
        return self.pictures(names[0]) if names else tuple(map(self._file, named))

    def _file(self, name: str) -> PictureFile:
        if is_url(name) or name.startswith("data:"):
            raise BrokenRecord(
                self._where, f"{shown(name)} is a URL; expected the name of a file: download the picture"
            )
        try:
            return PictureFile(name, self._opener(name), self._size(name))
        except ValueError as error:
            raise error if isinstance(error, BrokenRecord) else BrokenRecord(self._where, str(error)) from error

    def _size(self, name: str) -> tuple[int, int] | None:
        sizes = self._data.get("sizes")
        if sizes is None:
            return None
        size = sizes.get(name) if isinstance(sizes, dict) else None
        if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
            raise BrokenRecord(self._where, f"sizes is {shown(sizes)}; expected [height, width] for {name}")
        return size[0], size[1]
