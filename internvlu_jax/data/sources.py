"""Records by number: JSON lines with pictures beside them, or ArrayRecord shards that hold all of it.

A shard's entries are safetensors: `record` is the JSON text as bytes, `file/<name>` the bytes of each picture's file,
and what other arrays there are go to `Record.stored`.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from safetensors import SafetensorError
from safetensors.numpy import load, save

from internvlu_jax.data.records import BrokenRecord, Record, parse

SHARD_SUFFIX = ".array_record"
_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class Source(Protocol):
    """Records by number. Reading one raises BrokenRecord and nothing else for what is wrong with it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


def open_source(path: str | Path) -> Source:
    """The records at `path`: a .jsonl file, or a directory of shards.

    Raises:
        ValueError: there is nothing of that kind there, or no record in it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return Shards(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; expected JSON lines, or a directory of *{SHARD_SUFFIX}")
    return JsonLines(path)


class JsonLines:
    """One JSON object a line; names of pictures are relative to the file."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._spans = _line_spans(self._path)
        if not self._spans:
            raise ValueError(f"{path}: no records; expected one JSON object a line")
        self._file = os.open(self._path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Record:
        number, start, length = self._spans[index]
        where = f"{self._path}:{number}"
        return parse(_json(os.pread(self._file, length, start), where), where, self._reader)

    def _reader(self, name: str) -> Any:
        return (self._path.parent / name).read_bytes

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def _line_spans(path: Path) -> list[tuple[int, int, int]]:
    """(number, start, length) of every line that is not blank; numbers count from 1."""
    spans, start = [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                spans.append((number, start, len(line)))
            start += len(line)
    return spans


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise BrokenRecord(where, f"not valid JSON: {error}") from None


class Shards:
    """A directory of shards that `write_shards` wrote."""

    def __init__(self, directory: Path) -> None:
        self._files = sorted(directory.glob(f"*{SHARD_SUFFIX}"))
        if not self._files:
            raise ValueError(f"{directory}: no *{SHARD_SUFFIX} files; expected a directory that experiments.pack wrote")
        self._own = threading.local()  # a reader seeks, so each thread has its own
        counts = [self._reader(n).num_records() for n in range(len(self._files))]
        self._ends = list(itertools.accumulate(counts))
        if not self._ends[-1]:
            raise ValueError(f"{directory}: its shards hold no records")

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        shard = bisect.bisect_right(self._ends, index)
        offset = index - (self._ends[shard - 1] if shard else 0)
        where = f"{self._files[shard]}:{offset + 1}"
        try:
            arrays = load(self._reader(shard).read([offset])[0])
            text = arrays.pop("record").tobytes()
        except (SafetensorError, KeyError, ValueError, RuntimeError, IndexError) as error:
            raise BrokenRecord(where, f"unreadable: {error}") from None
        files = {name: array for name, array in arrays.items() if name.startswith("file/")}

        def reader(name: str) -> Any:
            if f"file/{name}" not in files:
                raise BrokenRecord(where, f"the picture {name} is not in the shard")
            return files[f"file/{name}"].tobytes

        record = parse(_json(text, where), where, reader)
        stored = {name: array for name, array in arrays.items() if name not in files}
        return Record(**{**vars(record), "stored": stored})

    def _reader(self, shard: int) -> ArrayRecordReader:
        readers = self._own.__dict__.setdefault("readers", {})
        if shard not in readers:
            readers[shard] = ArrayRecordReader(str(self._files[shard]), options=_RANDOM_ACCESS)
        return readers[shard]


def entry(record: Mapping[str, Any], files: Mapping[str, bytes], arrays: Mapping[str, np.ndarray]) -> bytes:
    """One entry of a shard: the JSON object, its pictures' files by name, and arrays computed beforehand."""
    text = json.dumps(record, ensure_ascii=False).encode()
    whole = {"record": text, **{f"file/{name}": data for name, data in files.items()}}
    return save({name: np.frombuffer(data, np.uint8) for name, data in whole.items()} | dict(arrays))


def write_shards(directory: str | Path, entries: Iterable[bytes], per_shard: int) -> int:
    """Writes entries (`entry`) as shards; the directory appears under its name when it is whole. Returns their number.

    Raises:
        FileExistsError: the directory exists.
        ValueError: there are no entries.
    """
    directory = Path(directory).absolute()
    if directory.exists():
        raise FileExistsError(f"{directory} exists; choose another name or remove it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}.partial-{os.getpid()}"
    partial.mkdir()
    written = 0
    try:
        remaining = iter(entries)
        for number in itertools.count():
            count = _write_shard(partial / f"{number:05d}{SHARD_SUFFIX}", itertools.islice(remaining, per_shard))
            written += count
            if count < per_shard:
                break
        if not written:
            raise ValueError(f"nothing to write to {directory}")
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return written


def _write_shard(path: Path, entries: Iterable[bytes]) -> int:
    """The number of entries; without any there is no file."""
    writer, count = None, 0
    for data in entries:
        writer = writer or ArrayRecordWriter(str(path), "group_size:1")  # each entry can be read on its own
        writer.write(data)
        count += 1
    if writer is not None:
        writer.close()
    return count
