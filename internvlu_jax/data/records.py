"""One training example as it is stored, whatever it is stored in.

Three forms of JSON object:

    {"task": "t2i", "prompt": str, "image": file, "reasoning"?: str}
    {"task": "edit", "prompt": str, "source": [file, ...], "image": file, "reasoning"?: str}
    {"image"?: file or [file, ...], "conversations": [{"from": "human", "value": str}, {"from": "gpt", ...}, ...]}

The last is that of InternVL and LLaVA (`images` is taken for `image`, and "task": "understanding" may stand there). An
optional "sizes": {file: [height, width]}, upright, spares reading the header of each picture. Further fields are left
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from internvlu_jax.processing.chat import IMAGE_MARK
from internvlu_jax.processing.images import opened_picture, to_rgb, upright_size

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
    turns: (human, answer) of a conversation.
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
        raise BrokenRecord(where, f"the line holds {_shown(data)}; expected a JSON object")
    fields = _Fields(data, where, opener)
    task = data.get("task", "understanding" if "conversations" in data else None)
    if task == "understanding":
        record = Record(task, where, sources=fields.seen(), turns=fields.turns(), data=data)
        _check_marks(record)
        return record
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


def _check_marks(record: Record) -> None:
    marks = sum(human.count(IMAGE_MARK) for human, _ in record.turns)
    if marks > len(record.sources):
        raise BrokenRecord(
            record.where,
            f"conversations has {marks} {IMAGE_MARK} marks for {len(record.sources)} picture(s); expected at most one "
            "for each file in image",
        )


class _Fields:
    """The fields of one JSON object, checked as they are taken."""

    def __init__(self, data: Mapping[str, Any], where: str, opener: Callable[[str], Open]) -> None:
        self._data, self._where, self._opener = data, where, opener

    def broken(self, name: str, expected: str) -> BrokenRecord:
        shown = _shown(self._data[name]) if name in self._data else f"missing (there are {_shown(list(self._data))})"
        return BrokenRecord(self._where, f"{name} is {shown}; expected {expected}")

    def text(self, name: str) -> str:
        if not _is_text(self._data.get(name)):
            raise self.broken(name, "text, in valid Unicode")
        return self._data[name]

    def reasoning(self) -> str | None:
        """Text; tables of records often have null or nothing where there is none."""
        return self.text("reasoning") if self._data.get("reasoning") not in (None, "") else None

    def picture(self, name: str) -> PictureFile:
        if not _is_text(self._data.get(name)):
            raise self.broken(name, "the name of a picture file")
        return self._file(self._data[name])

    def pictures(self, name: str) -> tuple[PictureFile, ...]:
        value = self._data.get(name)
        files = value if isinstance(value, list) else [value]
        if not files or not all(map(_is_text, files)):
            raise self.broken(name, "the name of a picture file or a list of them")
        return tuple(map(self._file, files))

    def seen(self) -> tuple[PictureFile, ...]:
        """The pictures of a conversation, which can do without."""
        if self._data.get("video") is not None:
            raise self.broken("video", "pictures only; leave records of videos out")
        names = [name for name in ("image", "images") if self._data.get(name) not in (None, [])]
        if len(names) == 2:
            raise self.broken("images", "either image or images")
        return self.pictures(names[0]) if names else ()

    def turns(self) -> tuple[tuple[str, str], ...]:
        said = self._data.get("conversations")
        if not isinstance(said, list) or not said:
            raise self.broken("conversations", 'a list of {"from": "human" or "gpt", "value": text}')
        values = [self._turn(n, turn) for n, turn in enumerate(said)]
        if len(values) % 2:
            raise BrokenRecord(self._where, f"conversations has {len(values)} turn(s); expected an answer to the last")
        return tuple(zip(values[::2], values[1::2], strict=True))

    def _turn(self, n: int, turn: Any) -> str:
        speaker, value = (turn.get("from"), turn.get("value", "")) if isinstance(turn, dict) else (None, "")
        if speaker == "system":
            raise BrokenRecord(
                self._where,
                f"conversations[{n}] is a system turn; expected human and gpt alone, for the system text is the "
                "model's own: drop the turn, or move what matters into the first question",
            )
        turn_of = ("human", "gpt")[n % 2]
        if speaker != turn_of or not _is_text(value):
            raise BrokenRecord(
                self._where,
                f'conversations[{n}] is {_shown(turn)}; expected {{"from": "{turn_of}", "value": text}}, human and gpt '
                "in turn",
            )
        return value

    def _file(self, name: str) -> PictureFile:
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
            raise BrokenRecord(self._where, f"sizes is {_shown(sizes)}; expected [height, width] for {name}")
        return size[0], size[1]


def _is_text(value: Any) -> bool:
    """Whether it is a string with something in it, and no half of a surrogate pair: JSON can hold those."""
    return isinstance(value, str) and bool(value.strip()) and value == value.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
