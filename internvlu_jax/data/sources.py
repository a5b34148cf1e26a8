"""Records by number: listed beside their pictures (see `listed`), in Parquet, or in ArrayRecord shards.

A shard holds pictures too. An entry of it is the bytes of a safetensors file: `record` is the JSON text as bytes,
`file/<name>` the bytes of each picture's file under the name that the text has for it; other arrays become
`Record.stored`.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import re
import threading
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from converters.rules import DTYPES
from internvlu_jax.data.listed import PICTURES, Captions, JsonFile
from internvlu_jax.data.parquet import Parquet
from internvlu_jax.data.records import BrokenRecord, Open, Record, is_url, located, parse, read_json_text
from internvlu_jax.utils.files import new_directory

SCHEMES: Mapping[str, str] = {"world": "internvlu_jax.small_world.names:open_world"}
"""Sources that are no files, by what stands before the colon of their names, each with the function that opens one.

Modules are named and not imported, because they build on this one; a worker process finds them the same way.
"""

SHARD_SUFFIX = ".array_record"
_FILE = "file/"
_STORED_DTYPES = {**DTYPES, "U8": np.dtype(np.uint8), "I32": np.dtype(np.int32)}
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
_EACH_ALONE = "group_size:1,uncompressed"  # an entry is read without its neighbours; pictures are compressed already
_OPEN_SHARDS = 256  # each holds a file handle and the index of its entries


@runtime_checkable
class Source(Protocol):
    """Records by number, from several threads at once. Bad data raises BrokenRecord when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@runtime_checkable
class Stored(Source, Protocol):
    """A source on a disk. digest: says whether its records are still the same."""

    digest: str


def fingerprint(source: Source) -> list[int | str]:
    """[how many records, what tells them from others]; JSON. Of what is no file the name says all."""
    return [len(source), source.digest if isinstance(source, Stored) else ""]


def open_source(path: str | Path, allow_outside: bool = False) -> Source:
    """The records at `path`.

    Args:
        path: of JSON lines or an array of JSON, of Parquet, of a folder of pictures with captions or of shards; or a
            name that begins with one of `SCHEMES`.
        allow_outside: whether records may name pictures elsewhere than in the folder of their file.

    Raises:
        ValueError: there is nothing of that kind there, no record in it, or a shard is damaged.
    """
    check_source(path)
    scheme = _scheme(str(path))
    if scheme in SCHEMES:
        module, _, function = SCHEMES[scheme].partition(":")
        return getattr(importlib.import_module(module), function)(str(path))
    path = Path(path).expanduser().absolute()
    if path.is_dir():
        return _folder(path, allow_outside)
    return Parquet(path, allow_outside) if path.suffix == ".parquet" else JsonFile(path, allow_outside)


def check_source(path: str | Path) -> None:
    """Raises ValueError where there is nothing that `open_source` could open. Nothing is read."""
    name, scheme, path = str(path), _scheme(str(path)), Path(path).expanduser().absolute()
    if scheme in SCHEMES:
        return
    if is_url(name):
        raise ValueError(f"{name} is a URL; download what it names, and give the file or folder")
    if not path.exists() and scheme:
        known = ", ".join(f"{known}:" for known in SCHEMES)
        raise ValueError(f"{name}: there is no such file, and no kind of source {scheme + ':'!r}; expected {known}")
    if not path.exists():
        raise ValueError(
            f"{path}: there is no such file; expected JSON lines, an array of JSON, Parquet, or a directory of "
            f"*{SHARD_SUFFIX} or of pictures with captions"
        )
    if path.suffix == SHARD_SUFFIX and not path.is_dir():
        raise ValueError(f"{path} is one shard; name its directory, {path.parent}")


def is_precomputed(path: str | Path) -> bool:
    """Whether the first usable record of a source that `check_source` takes holds what was computed from it beforehand.

    Raises:
        ValueError: a shard is damaged.
    """
    directory = Path(path).expanduser()
    source = Shards(directory) if any(directory.glob(f"*{SHARD_SUFFIX}")) else ()
    for index in range(len(source)):
        with suppress(BrokenRecord):
            return bool(source[index].stored)
    return False


def _folder(path: Path, allow_outside: bool) -> Source:
    """Shards, or pictures with captions where there are none."""
    if not any(path.glob(f"*{SHARD_SUFFIX}")) and any(file.suffix.lower() in PICTURES for file in path.rglob("*")):
        return Captions(path, allow_outside)
    return Shards(path)


def _scheme(name: str) -> str:
    """What stands before a colon, "" where there is none or where it is part of a path."""
    match = re.match(r"([A-Za-z][\w+.-]*):", name)
    return match[1] if match else ""


class Shards:
    """A directory of shards that `write_shards` wrote, in the order of their names.

    digest: of their names and sizes; what is in them may be terabytes.
    """

    def __init__(self, directory: Path) -> None:
        self._files = sorted(directory.glob(f"*{SHARD_SUFFIX}"))
        if not self._files:
            raise ValueError(
                f"{directory}: no *{SHARD_SUFFIX} files, as experiments.pack writes, and no pictures with captions"
            )
        self._shard = lru_cache(_OPEN_SHARDS)(_Shard)
        with ThreadPoolExecutor() as pool:
            self._ends = list(itertools.accumulate(pool.map(lambda path: len(self._shard(path)), self._files)))
        if not self._ends[-1]:
            raise ValueError(f"{directory}: its shards hold no records")
        sizes = [(path.name, path.stat().st_size) for path in self._files]
        self.digest = f"{zlib.crc32(json.dumps(sizes).encode()):08x}"

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        shard, number = located(index, self._ends)
        path = self._files[shard]
        where = f"{path}:{number + 1}"
        try:
            data = self._shard(path).read(number)
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError is the reader's word for damage
            raise BrokenRecord(where, f"cannot be read: {error}") from error
        return _record(data, where)


class _Shard:
    """An open shard, one reading at a time: a reader seeks."""

    def __init__(self, path: Path) -> None:
        self._reader = ArrayRecordReader(str(path), options=_RANDOM_ACCESS)
        self._lock = threading.Lock()
        if not self._reader.ok():  # it would pass for an empty one
            raise ValueError(f"{path} is not an ArrayRecord file, or it is damaged; copy it again or remove it")

    def __len__(self) -> int:
        return self._reader.num_records()

    def read(self, number: int) -> bytes:
        with self._lock:
            return self._reader.read([number])[0]


def _record(entry: bytes, where: str) -> Record:
    arrays = _arrays(entry, where)
    text = arrays.pop("record", None)
    if text is None:
        raise BrokenRecord(where, f"no array record (there are {sorted(arrays)}); expected an entry of write_shards")
    files = {name.removeprefix(_FILE): arrays.pop(name) for name in list(arrays) if name.startswith(_FILE)}

    def opener(name: str) -> Open:
        if name in files:
            return partial(io.BytesIO, files[name].data)
        if arrays:  # what the picture would be needed for was computed beforehand
            return partial(_absent, name)
        raise ValueError(f"the picture {name} is not in the shard (there are {sorted(files)}); pack the records again")

    return replace(parse(read_json_text(text.tobytes(), where), where, opener), stored=arrays)


def _arrays(entry: bytes, where: str) -> dict[str, np.ndarray]:
    try:
        tensors = deserialize(entry)
    except SafetensorError as error:
        raise BrokenRecord(where, f"not safetensors: {error}") from error
    unknown = [f"{name} ({tensor['dtype']})" for name, tensor in tensors if tensor["dtype"] not in _STORED_DTYPES]
    if unknown:
        raise BrokenRecord(where, f"holds {', '.join(unknown)}; expected arrays of {', '.join(_STORED_DTYPES)}")
    return {
        name: np.frombuffer(tensor["data"], _STORED_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in tensors
    }


def _absent(name: str) -> Any:
    raise ValueError("its pixels are not in the shard, only what was computed from them")


def entry(
    record: Mapping[str, Any], files: Mapping[str, bytes] | None = None, arrays: Mapping[str, np.ndarray] | None = None
) -> bytes:
    """One entry of a shard.

    Args:
        record: the JSON object, see `Record.data`; what JSON cannot say, as a date in a row of Parquet, is written as
            text.
        files: bytes of its pictures' files, by the names that the object has for them.
        arrays: computed beforehand: uint8, int32, float32, float16 or bfloat16. With any of them pictures may lack.
    """
    whole = {
        "record": json.dumps(record, default=str).encode(),
        **{_FILE + name: data for name, data in (files or {}).items()},
    }
    # `save` writes the memory of an array as it lies
    stored = {name: np.asarray(array, order="C") for name, array in (arrays or {}).items()}
    return save({name: np.frombuffer(data, np.uint8) for name, data in whole.items()} | stored)


def write_shards(directory: str | Path, entries: Iterable[bytes], per_shard: int) -> int:
    """Writes entries (see `entry`) as shards of `per_shard` each; the directory appears when it is whole.

    Returns:
        How many there were.

    Raises:
        FileExistsError: the directory exists and is not empty.
        ValueError: there are no entries, or `per_shard` is below 1.
        RuntimeError: the writer's word for a disk that is full or fails.
    """
    if per_shard < 1:
        raise ValueError(f"shards of {per_shard} records; expected at least 1")
    written = 0
    with new_directory(directory) as partial_directory:
        remaining = iter(entries)
        for number, first in enumerate(remaining):
            shard = itertools.chain([first], itertools.islice(remaining, per_shard - 1))
            written += _write_shard(partial_directory / f"{number:05d}{SHARD_SUFFIX}", shard)
        if not written:
            raise ValueError(f"{directory}: there is no record to write")
    return written


def _write_shard(path: Path, entries: Iterable[bytes]) -> int:
    writer = ArrayRecordWriter(str(path), _EACH_ALONE)
    count = 0
    for data in entries:
        writer.write(data)
        count += 1
    writer.close()
    return count
