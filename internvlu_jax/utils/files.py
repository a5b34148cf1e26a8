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
    """What a JSON file holds. Raises ValueError naming it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
