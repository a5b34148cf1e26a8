"""How a picture was drawn, kept in its PNG file: one chunk of text, a JSON object."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

_KEYWORD = "internvlu-jax"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST = 2**20  # bytes of the chunk
# Of an iTXt chunk: keyword, not compressed, no language, no translated keyword.
_HEAD = _KEYWORD.encode() + b"\0\0\0\0\0"


def with_settings(settings: dict[str, Any]) -> PngInfo:
    """What `Image.save` takes as `pnginfo`."""
    info = PngInfo()
    # In ASCII: the name of a file may hold bytes that are no text, which JSON's escapes keep and UTF-8 cannot hold.
    info.add_itxt(_KEYWORD, json.dumps(settings))
    return info


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings that a PNG file was saved with.

    Raises:
        ValueError: it is no such file, or what it holds is damaged; names it.
    """
    text = _text(Path(path))
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its settings are damaged: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: its settings are damaged: expected a JSON object")
    return settings


def found_sources(path: Path, named: Any, sums: Any) -> list[str]:
    """The files of the sources that a picture was drawn from: where they are named from, or beside the picture.

    Args:
        path: of the picture. named: files as they were given, of which the current directory may have others by now.
        sums: CRC-32 of each, None where the picture is older than that is kept.

    Raises:
        ValueError: a source is not there, or is another picture now; or what was kept is damaged.
    """
    sums = [None] * len(named) if sums is None and isinstance(named, list) else sums
    if not (isinstance(named, list) and isinstance(sums, list) and len(named) == len(sums)):
        raise ValueError(f"{path}: its settings are damaged: sources {named!r}, {sums!r}")
    return [str(_source(path, str(name), crc)) for name, crc in zip(named, sums, strict=True)]


def _source(path: Path, name: str, crc: int | None) -> Path:
    there = [file for file in (Path(name), path.parent / name) if file.is_file()]
    for file in there:
        if crc is None or zlib.crc32(file.read_bytes()) == crc:
            return file
    what = f"{there[0]} is another picture now" if there else f"{name} is neither here nor beside it"
    raise ValueError(f"{path}: its source {what}; give its sources with --image")


def _text(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path}: no such picture file")
    with path.open("rb") as file:
        if file.read(len(_SIGNATURE)) == _SIGNATURE:
            while len(head := file.read(8)) == 8:
                length, kind = struct.unpack(">I4s", head)
                if kind in (b"IDAT", b"IEND"):
                    break
                body = file.read(length) if kind == b"iTXt" and length <= _LARGEST else b""
                if body.startswith(_HEAD):
                    return body.removeprefix(_HEAD)
                file.seek(length - len(body) + 4, 1)
    raise ValueError(f"{path} does not say how it was drawn; expected a PNG that internvlu-jax wrote")
