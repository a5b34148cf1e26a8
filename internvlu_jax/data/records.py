"""One training example as it is stored, whatever it is stored in.

Three forms of JSON object:

    {"task": "t2i", "prompt": str, "image": file, "reasoning"?: str}
    {"task": "edit", "prompt": str, "source": [file, ...], "image": file, "reasoning"?: str}
    {"image"?: file or [file, ...], "conversations": [{"from": "human", "value": str}, {"from": "gpt", ...}, ...]}

The last is that of InternVL and LLaVA (`images` is taken for `image`, and "task": "understanding" may stand there). An
optional "sizes": {file: [height, width]} spares reading the header of each picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from internvlu_jax.processing.images import to_rgb

TASKS = ("t2i", "edit", "understanding")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


class BrokenRecord(ValueError):
    """A record that cannot be used: where it is stored, and why."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


@dataclass(frozen=True)
class PictureFile:
    """A picture that is not read yet.

    name: for messages. read: its file's bytes. known_size: upright (height, width), if somebody wrote it down.
    """

    name: str
    read: Callable[[], bytes]
    known_size: tuple[int, int] | None = None

    def size(self) -> tuple[int, int]:
        """Upright (height, width), from the header alone. Raises ValueError naming the file."""
        if self.known_size is not None:
            return self.known_size
        with self._open() as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _TURNED
        return (width, height) if turned else (height, width)

    def pixels(self) -> UInt8[np.ndarray, "y x 3"]:
        """Upright RGB values. Raises ValueError naming the file."""
        with self._open() as image:
            try:
                return to_rgb(image)
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from error

    def _open(self) -> Image.Image:
        try:
            return Image.open(io.BytesIO(self.read()))
        except Image.UnidentifiedImageError as error:
            raise ValueError(f"{self.name}: not a picture in a format that is known here") from error
        except (OSError, ValueError, KeyError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.name}: {error}") from error


def picture_of(name: str, pixels: UInt8[np.ndarray, "y x 3"]) -> PictureFile:
    """A picture that is in memory, for sources that draw what they give."""

    def read() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png", compress_level=1)
        return buffer.getvalue()

    return PictureFile(name, read, (pixels.shape[0], pixels.shape[1]))


@dataclass(frozen=True)
class Record:
    """An example of one of the three forms.

    prompt, image, reasoning: what is asked to be drawn, the picture, and the words before it.
    sources: pictures that are edited, or that a conversation is about.
    turns: (human, answer) of a conversation.
    stored: arrays computed beforehand (`experiments.precompute`), by name.
    """

    task: str
    where: str
    prompt: str = ""
    reasoning: str | None = None
    image: PictureFile | None = None
    sources: tuple[PictureFile, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    stored: Mapping[str, np.ndarray] = field(default_factory=dict)


def parse(data: Any, where: str, reader: Callable[[str], Callable[[], bytes]]) -> Record:
    """The record that a JSON object describes.

    Args:
        where: file and line, for messages.
        reader: from the name of a picture to a function that reads its bytes.

    Raises:
        BrokenRecord: the object has none of the three forms; names the field.
    """
    fields = _Fields(data, where, reader)
    task = data.get("task", "understanding" if "conversations" in data else None)
    if task == "t2i":
        return Record("t2i", where, fields.text("prompt"), fields.optional_text("reasoning"), fields.picture("image"))
    if task == "edit":
        sources = fields.pictures("source")
        if not sources:
            raise BrokenRecord(where, "source is empty; expected the file of a picture or a list of them")
        prompt, reasoning = fields.text("prompt"), fields.optional_text("reasoning")
        return Record("edit", where, prompt, reasoning, fields.picture("image"), sources)
    if task == "understanding":
        name = "images" if "images" in data else "image"
        return Record(
            "understanding", where, sources=fields.pictures(name) if data.get(name) else (), turns=fields.turns()
        )
    raise BrokenRecord(where, f"task is {task!r}; expected {', '.join(map(repr, TASKS))}, or a field conversations")


class _Fields:
    """Fields of one JSON object, checked as they are taken."""

    def __init__(self, data: Any, where: str, reader: Callable[[str], Callable[[], bytes]]) -> None:
        if not isinstance(data, dict):
            raise BrokenRecord(where, f"a JSON {type(data).__name__}; expected an object")
        self._data, self._where, self._reader = data, where, reader

    def text(self, name: str) -> str:
        value = self._data.get(name)
        if not isinstance(value, str) or not value.strip():
            raise BrokenRecord(self._where, f"{name} is {_shown(value)}; expected text")
        return value

    def optional_text(self, name: str) -> str | None:
        return self.text(name) if self._data.get(name) is not None else None

    def picture(self, name: str) -> PictureFile:
        return self._picture(name, self._data.get(name))

    def pictures(self, name: str) -> tuple[PictureFile, ...]:
        value = self._data.get(name)
        return tuple(self._picture(name, one) for one in (value if isinstance(value, list) else [value]))

    def _picture(self, name: str, value: Any) -> PictureFile:
        if not isinstance(value, str) or not value:
            raise BrokenRecord(self._where, f"{name} is {_shown(value)}; expected the file of a picture")
        return PictureFile(value, self._reader(value), self._size(value))

    def _size(self, name: str) -> tuple[int, int] | None:
        sizes = self._data.get("sizes")
        if sizes is None:
            return None
        size = sizes.get(name) if isinstance(sizes, dict) else None
        if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
            raise BrokenRecord(self._where, f"sizes has {_shown(size)} for {name}; expected [height, width]")
        return size[0], size[1]

    def turns(self) -> tuple[tuple[str, str], ...]:
        said = self._data.get("conversations")
        if not isinstance(said, list) or not said or len(said) % 2:
            raise BrokenRecord(self._where, "conversations is no list of pairs of a human's and a gpt's turn")
        values = []
        for n, turn in enumerate(said):
            wanted = ("human", "gpt")[n % 2]
            if not isinstance(turn, dict) or turn.get("from") != wanted or not isinstance(turn.get("value"), str):
                raise BrokenRecord(
                    self._where, f"turn {n} of conversations is {_shown(turn)}; expected from {wanted!r}"
                )
            values.append(turn["value"])
        return tuple(zip(values[::2], values[1::2], strict=True))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
