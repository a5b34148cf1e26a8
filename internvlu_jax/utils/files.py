"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from internvlu_jax.utils.buckets import BucketError, filled, in_bucket, path_of
from internvlu_jax.utils.locks import new_locked_directory, remove_unlocked_directory
from internvlu_jax.utils.regular_files import NotAFileError, open_file

_NAME_BYTES = 255  # the longest name that the usual file systems take
_SUFFIX = 16  # characters of the longest that may say what a file is


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write a file or directory under; it becomes `path` when the block ends.

    Where the block fails, what it wrote is removed, and what stood at `path` stays. The name has the suffix of `path`,
    by which Pillow tells formats apart, and is no other's, in no container either. Missing parents are made. A file in
    a bucket is written to a temporary folder, and uploaded.
    """
    path = path_of(path).absolute()
    if in_bucket(path):
        with filled(path.parent) as folder:
            yield folder / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    start, end = _partial_name(path)
    partial = path.with_name(f"{start}{uuid.uuid4().hex[:12]}{end}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
        raise


def _partial_name(path: Path) -> tuple[str, str]:
    """How the names begin and end under which `path` is written, as short as a name with both has to be."""
    suffix = path.suffix if len(path.suffix) <= _SUFFIX else ""
    room = _NAME_BYTES - len(os.fsencode(suffix)) - len("..partial-") - 12
    return f".{os.fsencode(path.stem)[:room].decode('utf-8', 'ignore')}.partial-", suffix


@contextmanager
def new_directory(target: str | Path) -> Iterator[Path]:
    """A directory to fill, which becomes `target`, or what that links to, when the block ends; see `written_whole`.

    What processes that were killed had begun of the same directory is removed first.

    Raises:
        FileExistsError: see `check_free`.
    """
    check_free(target)
    target = Path(target).resolve()
    _remove_leftovers(target)
    with ExitStack() as held, written_whole(target) as partial:
        held.callback(os.close, new_locked_directory(partial))  # until it has its name, or is removed
        yield partial
        if target.exists():
            target.rmdir()


def _remove_leftovers(target: Path) -> None:
    """Directories that were to become `target`, and that no living process has locked."""
    begun, _ = _partial_name(target)
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        if path.name.startswith(begun):
            remove_unlocked_directory(path)


def check_free(target: str | Path) -> None:
    """Raises unless `target` can be a new directory.

    Raises:
        FileExistsError: there is something, other than an empty directory; or that is the current one or a mount
            point, neither of which can be replaced.
        ValueError: see `check_writable`.
    """
    check_writable(target)
    check_writable(target := Path(target).resolve())  # where a link leads
    if not target.exists():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise FileExistsError(f"{target} exists and is not an empty directory; choose another name or remove it")
    kind = "the current directory" if target.samefile(".") else "a mount point" if os.path.ismount(target) else None
    if kind is not None:
        raise FileExistsError(f"{target} is {kind}, and is not replaced; choose a new name, such as {target / 'model'}")


def check_writable(path: str | Path) -> None:
    """Raises ValueError if nothing can be written under a name; before the work of it. Parents may be missing."""
    path = path_of(path).absolute()
    if in_bucket(path):
        raise ValueError(f"{path} is in a bucket; expected a name on a disk, from where `gcloud storage cp -r` copies")
    for part in path.parts:
        if len(os.fsencode(part)) > _NAME_BYTES:
            raise ValueError(
                f"{part[:40]}...: a name of {len(os.fsencode(part))} bytes; expected {_NAME_BYTES} at most"
            )
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir():
        raise ValueError(f"{path}: {parent} is a file; expected a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: nothing can be written in {parent}; expected a directory that is yours to write in")


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
    path, data = path_of(path), b""
    try:
        if in_bucket(path):
            data = path.read_bytes()
        else:
            with open_file(path) as file:
                data = file.read()
        return json.loads(data.decode("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except (NotAFileError, BucketError):
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is {foreign_kind(data[:256]) or f'not valid JSON: {error}'}") from error


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ValueError naming it, also if it holds another value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


# What stands in place of a file that was meant, by its first bytes; in lower case, without leading blanks.
_FOREIGN = {
    b"version https://git-lfs": "a git-LFS pointer, not the file itself; fetch that with `git lfs pull`",
    b"<!doctype html": "an HTML page, as a server sends in place of a file; download the file again",
    b"<html": "an HTML page, as a server sends in place of a file; download the file again",
    b"<svg": "an SVG drawing; save it as PNG or JPEG",
    b"%pdf-": "a PDF document; save its page as PNG or JPEG",
    b"%!ps": "a PostScript program; save its page as PNG or JPEG",
    b"\xc5\xd0\xd3\xc6": "a PostScript program; save its page as PNG or JPEG",
    b"pk\x03\x04": "a zip archive, as PyTorch's pickles are; what it holds is not read",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"par1": "a Parquet file; give it a name that ends in .parquet",
    b"\xff\xfe": "text in UTF-16; save it as UTF-8",
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
    b"{\0": "text in UTF-16; save it as UTF-8",
    b"[\0": "text in UTF-16; save it as UTF-8",
    b"\0{": "text in UTF-16; save it as UTF-8",
    b"\0[": "text in UTF-16; save it as UTF-8",
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
        with open_file(file) as opened:
            file = opened.read(256)
    if not file:
        return "empty"
    if file[4:8] == b"ftyp":
        return _BRANDS.get(file[8:11], "a video or another ISO media file")
    start = file.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for first, kind in _FOREIGN.items() if start.startswith(first)), None)
