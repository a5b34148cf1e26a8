"""The files that benchmarks come in: rows of JSON, tables and Parquet, checked to be of the benchmark asked for."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from internvlu_jax.evaluation.task import ANSWERS, NeedsJudge, Picture
from internvlu_jax.processing.images import load_image, opened_picture, to_rgb
from internvlu_jax.utils.files import read_json
from internvlu_jax.utils.regular_files import open_file

Row = dict[str, Any]


def json_lines(path: Path) -> list[Row]:
    """One JSON object a line; empty lines count for nothing.

    Raises:
        ValueError: a line is no JSON object, or the file cannot be read as text.
    """
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):  # JSON may hold other ends of lines, as U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number} is no JSON object")
        rows.append(row)
    return rows


def json_list(path: Path) -> list[Row]:
    """One array of JSON objects.

    Raises:
        ValueError: the file is none.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is no array of JSON objects")
    return rows


def table(path: Path, delimiter: str = ",") -> list[Row]:
    """The rows of a table whose first line names its columns."""
    return list(csv.DictReader(_text(path).splitlines(keepends=True), delimiter=delimiter))


def parquet(path: Path, split: str | None = None) -> Iterator[Row]:
    """The rows of a Parquet file, or of all in a folder and its folders, by name. Pictures stay as they are kept there.

    split: of the files of a folder those whose names begin with it, where there are such.

    Raises:
        ValueError: there is none, one is damaged, or pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet as tables
    except ImportError as error:
        raise ValueError(
            f"{path}: Parquet needs pyarrow, which is not installed: pip install 'internvlu-jax[parquet]'"
        ) from error
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    files = [file for file in files if split and file.name.startswith(split)] or files
    if not files:
        raise ValueError(f"{path}: no *.parquet in this folder")
    for file in files:
        try:
            with tables.ParquetFile(file) as opened:
                for batch in opened.iter_batches(batch_size=16):
                    yield from batch.to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{file} cannot be read as Parquet: {error}") from error


def kept(picture: Any, name: str) -> Picture:
    """A picture of a Parquet row, which keeps it as {"bytes", "path"}. name: of it, for errors.

    Raises:
        ValueError: it has no bytes. What is returned raises it where they are no picture.
    """
    if not isinstance(picture, Mapping) or not picture.get("bytes"):
        raise ValueError(f"{name}: no picture; expected its bytes in the table")
    return partial(_opened, picture["bytes"], name)


def shown(folder: Path, name: str) -> Picture:
    """A picture that a row names.

    Raises:
        ValueError: it is not there. What is returned raises it where it is no picture.
    """
    path = folder / name
    if not path.is_file():
        raise ValueError(f"the picture {name} is not in {folder}")
    return partial(load_image, path)


def expect(rows: Iterable[Row], fields: Sequence[str], path: Path, benchmark: str) -> Iterator[Row]:
    """The rows, each looked at as it comes.

    Raises:
        ValueError: there is none, or one lacks a field: the file is another benchmark's.
    """
    number = 0
    for number, row in enumerate(rows, start=1):
        missing = [field for field in fields if row.get(field) is None]
        if missing:
            raise ValueError(
                f"{path}: row {number} has no {', '.join(missing)}, so this is no file of {benchmark}; "
                f"expected {', '.join(fields)}, found {', '.join(map(str, row))}"
            )
        yield row
    if not number:
        raise ValueError(f"{path}: no rows; expected those of {benchmark}")


def answers(folder: Path) -> list[Row]:
    """What a run was answered, in the order of its items.

    Raises:
        ValueError: there are no answers, or a line is none.
    """
    file = folder / ANSWERS
    if not file.is_file():
        raise ValueError(f"{file} is not there; expected the folder of a run that writes answers")
    rows = list(expect(json_lines(file), ("number", "id", "text"), file, "a run of ours"))
    return sorted(rows, key=lambda row: int(row["number"]))


def judged(path: Path, command: str) -> Path:
    """A file that a judge writes.

    Raises:
        NeedsJudge: it is not there; says what writes it.
    """
    if not path.is_file():
        raise NeedsJudge(f"{path} is not there yet; in the benchmark's own repository:\n{command}")
    return path


def _text(path: Path) -> str:
    try:
        with open_file(path) as file:
            return file.read().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error


def _opened(data: bytes, name: str) -> Image.Image:
    with opened_picture(BytesIO(data), name) as picture:
        return Image.fromarray(to_rgb(picture))
