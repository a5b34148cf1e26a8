"""Records in a Parquet file, one a row, with pictures in it or beside it.

Columns are the fields of a record (see `records`). A picture is the name of a file, its bytes, or both as
{"bytes", "path"}, as the sets of Hugging Face have them. Rows lie in groups that are read whole, so records in another
order than theirs cost a group each: shards of `experiments.pack` are for training.
"""

from __future__ import annotations

import itertools
import threading
import zlib
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

from internvlu_jax.data.listed import picture_opener
from internvlu_jax.data.records import BrokenRecord, Open, Record, located, parse
from internvlu_jax.utils.regular_files import open_file

_FIELDS = ("task", "prompt", "reasoning", "image", "images", "source", "conversations", "messages", "video")
_PICTURES = ("image", "images", "source")


class Parquet:
    """The rows of a file. digest: of its name's end, its size and the sizes of its groups.

    Raises:
        ValueError: pyarrow is not installed, or the file is damaged, has no rows or none of the fields of a record.
    """

    def __init__(self, path: Path, allow_outside: bool = False) -> None:
        try:
            import pyarrow
            import pyarrow.parquet as tables
        except ImportError as error:
            raise ValueError(
                f"{path}: Parquet needs pyarrow, which is not installed: pip install 'internvlu-jax[parquet]'"
            ) from error
        self._path, self._opener = path, picture_opener(path.parent, allow_outside)
        # What is damaged decides what pyarrow raises: of text that is no UTF-8, say, what Python's decoder does.
        self._errors = (OSError, ValueError, OverflowError, pyarrow.ArrowException)
        with open_file(path):
            pass  # else it says what stands there
        try:
            self._file = tables.ParquetFile(path)
            metadata = self._file.metadata
            self._columns = [name for name in self._file.schema_arrow.names if name in _FIELDS]
            sizes = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        except self._errors as error:
            raise ValueError(f"{path} cannot be read as Parquet: {error}") from error
        if min(sizes, default=0) < 0 or sum(sizes) != metadata.num_rows:
            raise ValueError(f"{path} is damaged: groups of {sizes} rows, and {metadata.num_rows} in all")
        self._ends = list(itertools.accumulate(sizes))
        if not self._ends or not self._ends[-1]:
            raise ValueError(f"{path}: no rows; expected a record in each")
        if not self._columns:
            raise ValueError(
                f"{path}: none of its columns {self._file.schema_arrow.names} is among {', '.join(_FIELDS)}"
            )
        self.digest = f"{zlib.crc32(repr((path.stat().st_size, sizes)).encode()):08x}"
        self._group = lru_cache(2)(partial(self._file.read_row_group, columns=self._columns))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        group, number = located(index, self._ends)
        where = f"{self._path}:{index + 1}"
        try:
            with self._lock:
                rows = self._group(group)
            row = rows.slice(number, 1).to_pylist()[0]
        except self._errors as error:
            raise BrokenRecord(where, f"cannot be read: {error}") from error
        return self._record({name: value for name, value in row.items() if value is not None}, where)

    def _record(self, row: dict[str, Any], where: str) -> Record:
        files: dict[str, bytes] = {}
        for column in _PICTURES:
            value = row.get(column)
            if isinstance(value, list):
                row[column] = [_named(item, f"{column}-{n}", files) for n, item in enumerate(value)]
            elif value is not None:
                row[column] = _named(value, column, files)

        def opener(name: str) -> Open:
            return partial(BytesIO, files[name]) if name in files else self._opener(name)

        return parse(row, where, opener)


def _named(picture: Any, name: str, files: dict[str, bytes]) -> Any:
    """The name of a picture; one that is in the row is put among the files, under a name that none of them has."""
    if isinstance(picture, bytes):
        picture = {"bytes": picture}
    if not isinstance(picture, dict):
        return picture
    path, data = picture.get("path"), picture.get("bytes")
    if data is None:
        return path
    name = path if path and path not in files else name
    files[name] = data
    return name
