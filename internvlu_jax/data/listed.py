"""Records that are listed beside their pictures: JSON lines, an array of JSON, and captions in a folder of pictures."""

from __future__ import annotations

import mmap
import os
import re
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path

from internvlu_jax.data.records import BrokenRecord, Open, Record, parse, read_json_text
from internvlu_jax.utils.files import foreign_kind
from internvlu_jax.utils.regular_files import open_file

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2")

# A string, so that what stands in it is no bracket; one that does not end; or a bracket or comma.
_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_BOM = b"\xef\xbb\xbf"


def picture_opener(folder: Path, allow_outside: bool) -> Callable[[str], Open]:
    """From the name of a picture, relative to a folder, to what opens it; elsewhere than in the folder only if told to.

    What is opened raises ValueError for a file outside: records that somebody else wrote could name any file.
    """
    root = os.path.realpath(folder)

    def opener(name: str) -> Open:
        def opened() -> BufferedReader:
            path = folder / name
            if not allow_outside and not Path(os.path.realpath(path)).is_relative_to(root):
                raise ValueError(
                    f"it lies outside of {folder}, the folder of its record; set data.allow_outside "
                    "(--data.allow-outside) if the records are to be trusted with files anywhere"
                )
            return open_file(path)

        return opened

    return opener


class JsonFile:
    """One JSON object a line, blank lines left out, or one array of them; names of pictures are relative to the file.

    digest: of all records. A record is named by its line, in an array by its number from 1.

    Raises:
        ValueError: the file is no text of JSON, or holds no record.
    """

    def __init__(self, path: Path, allow_outside: bool = False) -> None:
        self._path, self._opener = path, picture_opener(path.parent, allow_outside)
        with open_file(path) as file:
            start = file.read(256)
        kind = foreign_kind(start) if start.strip() else None
        if kind is not None:
            raise ValueError(f"{path} is {kind}; expected JSON lines or an array of JSON, in UTF-8")
        is_array = start.removeprefix(_BOM).lstrip().startswith(b"[")
        self._numbers, self._starts, self._stops = array("q"), array("q"), array("q")
        checksum = 0
        for number, begin, end, data in _elements(path) if is_array else _lines(path):
            self._numbers.append(number)
            self._starts.append(begin)
            self._stops.append(end)
            checksum = zlib.crc32(data.strip(), checksum)
        self.digest = f"{checksum:08x}"
        if not self._numbers:
            raise ValueError(f"{path}: no records; expected one JSON object a line, or an array of them")
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        start, stop = self._starts[index], self._stops[index]
        where = f"{self._path}:{self._numbers[index]}"
        return parse(read_json_text(os.pread(self._file, stop - start, start), where), where, self._opener)


Span = tuple[int, int, int, bytes]  # number from 1, first byte, byte after the last, what is between


def _lines(path: Path) -> Iterator[Span]:
    """Every line that is not blank."""
    stop = 0
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            start, stop = stop, stop + len(line)
            if line.strip():
                yield number, start, stop, line


def _elements(path: Path) -> Iterator[Span]:
    """Every element of an array. Where it is damaged, the rest of the file is one element, for its reader to refuse."""
    with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        number = 0
        for start, stop in _element_spans(text):
            data = text[start:stop]
            if data.strip():
                number += 1
                yield number, start, stop, data


def _element_spans(text: mmap.mmap) -> Iterator[tuple[int, int]]:
    depth = start = 0
    for match in _TOKENS.finditer(text):
        token = match[0]
        if token == b'"':
            break
        if token in (b"[", b"{"):
            depth += 1
            if depth == 1:
                start = match.end()
        elif token in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                yield start, match.start()
                start = match.end()
                break
        elif token == b"," and depth == 1:
            yield start, match.start()
            start = match.end()
    yield start, len(text)


class Captions:
    """Pictures with captions beside them, `a.png` with `a.txt`, in a folder and those in it: "t2i" records.

    digest: of the names and sizes of both.

    Raises:
        ValueError: there are no captions.
    """

    def __init__(self, folder: Path, allow_outside: bool = False) -> None:
        self._folder, self._opener = folder, picture_opener(folder, allow_outside)
        self._pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
        captions = [(path, path.with_suffix(".txt")) for path in self._pictures]
        sizes = [(str(path.relative_to(folder)), _size(path), _size(caption)) for path, caption in captions]
        if all(size is None for _, _, size in sizes):
            raise ValueError(
                f"{folder}: no captions; expected a text file beside each picture, a.txt beside a.png, or the name of "
                "a file of records"
            )
        self.digest = f"{zlib.crc32(repr(sizes).encode()):08x}"

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Record:
        path = self._pictures[index]
        caption = path.with_suffix(".txt")
        try:
            with open_file(caption) as file:
                text = file.read().decode("utf-8-sig").strip()
        except FileNotFoundError as error:
            raise BrokenRecord(str(path), f"there is no caption {caption.name} beside it") from error
        except UnicodeDecodeError as error:
            kind = foreign_kind(error.object)
            raise BrokenRecord(str(caption), f"it is {kind}" if kind else f"not UTF-8: {error}") from error
        except (OSError, ValueError) as error:
            raise BrokenRecord(str(caption), str(error)) from error
        name = str(path.relative_to(self._folder))
        return parse({"task": "t2i", "prompt": text, "image": name}, str(path), self._opener)


def _size(path: Path) -> int | None:
    """Bytes of a file, None if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None
