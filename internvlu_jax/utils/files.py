"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write a file or directory under; it becomes `path` when the block ends.

    Where the block fails, what it wrote is removed, and what stood at `path` stays. The name has the suffix of `path`,
    by which Pillow tells formats apart. Missing parents are made.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_directory(target: str | Path) -> Iterator[Path]:
    """A directory to fill, which becomes `target` when the block ends; see `written_whole`.

    Raises:
        FileExistsError: `target` exists and is not an empty directory.
    """
    check_free(target)
    with written_whole(target) as partial:
        partial.mkdir()
        yield partial
        if Path(target).exists():
            Path(target).rmdir()


def check_free(target: str | Path) -> None:
    """Raises FileExistsError unless `target` is free for a new directory: not there, or an empty directory."""
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty directory; choose another name or remove it")


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, *, allow_nan: bool = True) -> None:
    """Writes a JSON file, whole or not at all.

    Raises:
        ValueError: a number is not finite, and `allow_nan` is False.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=allow_nan) + "\n")


def read_json(path: str | Path) -> Any:
    """What a JSON file holds. Raises ValueError naming it, and what it is instead where that can be told."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        kind = foreign_kind(path)
        raise ValueError(f"{path} cannot be read: {f'it is {kind}' if kind else error}") from error


# What stands in place of a file that was meant, by its first bytes; in lower case, without leading blanks.
_FOREIGN = {
    b"version https://git-lfs": "a git-LFS pointer, not the file itself; fetch that with `git lfs pull`",
    b"<!doctype html": "an HTML page, as a server sends in place of a file; download the file again",
    b"<html": "an HTML page, as a server sends in place of a file; download the file again",
    b"<svg": "an SVG drawing; save it as PNG or JPEG",
    b"%pdf-": "a PDF document; save its page as PNG or JPEG",
    b"pk\x03\x04": "a zip archive, as PyTorch's pickles are; what it holds is not read",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
}
# By the brand in the first box of an ISO media file.
_BRANDS = {
    b"hei": "a HEIC picture, as phones take them; save it as PNG or JPEG",
    b"hev": "a HEIC picture, as phones take them; save it as PNG or JPEG",
    b"mif": "a HEIC picture, as phones take them; save it as PNG or JPEG",
    b"avi": "an AVIF picture; save it as PNG or JPEG",
}


def foreign_kind(file: str | Path | bytes) -> str | None:
    """What a file is that is not what was expected: "empty", "a git-LFS pointer, ...". None where that cannot be told.

    Args:
        file: its path, or its first bytes.
    """
    if not isinstance(file, bytes):
        with Path(file).open("rb") as opened:
            file = opened.read(256)
    if not file:
        return "empty"
    if file[4:8] == b"ftyp":
        return _BRANDS.get(file[8:11], "a video or another ISO media file")
    start = file.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for first, kind in _FOREIGN.items() if start.startswith(first)), None)
