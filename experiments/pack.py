"""Packs JSON lines and their pictures into ArrayRecord shards, which a run reads faster than many small files.

    python -m experiments.pack pictures.jsonl shards --shard-size 1000 --max-broken 0.01

The files of the pictures are copied as they are. Each is decoded once, so that a run meets no broken one, and its size
is written down, so that a run need not look for it. Records that cannot be used are reported and left out.
"""

from __future__ import annotations

import io
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import track

from internvlu_jax.data.records import BrokenRecord, Record
from internvlu_jax.data.sources import Shards, Source, entry, open_source, write_shards


@dataclass(frozen=True)
class Arguments:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """JSON lines or an array of JSON, Parquet, or a folder of pictures with captions; see `internvlu_jax.data`."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """Where the shards go; it is made."""
    shard_size: int = 1000
    """Records of a shard."""
    max_broken: float = 0.01
    """Nothing is written when more than this share of the records cannot be used."""
    allow_outside: bool = False
    """Whether records may name pictures elsewhere than in the folder of their file."""
    threads: int = 8
    """That read and decode."""


def packed(record: Record) -> bytes:
    """The record as an entry of a shard, with its pictures' files and their sizes.

    Raises:
        BrokenRecord: one of the pictures cannot be used.
    """
    files, sizes = {}, {}
    for name, picture in record.pictures().items():
        try:
            files[name] = picture.read()
            height, width, _ = replace(picture, open=partial(io.BytesIO, files[name])).pixels().shape
        except ValueError as error:
            raise BrokenRecord(record.where, str(error)) from error
        sizes[name] = [height, width]
    return entry({**record.data, "sizes": sizes}, files)


def entries(source: Source, limit: int, threads: int, report: Callable[[BrokenRecord], None]) -> Iterator[bytes]:
    """Entries of all records, in order; those that cannot be used are reported and left out.

    Raises:
        ValueError: more than `limit` records cannot be used.
    """
    broken = 0
    with ThreadPoolExecutor(threads) as pool:
        tasks = (pool.submit(_packed_at, source, n) for n in range(len(source)))
        waiting = deque(islice(tasks, 2 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(islice(tasks, 1))
            if isinstance(result, bytes):
                yield result
                continue
            report(result)
            broken += 1
            if broken > limit:
                raise ValueError(
                    f"more than {limit} of the {len(source)} records cannot be used, the last of them {result}; mend "
                    "them, or allow a larger share by --max-broken"
                )


def _packed_at(source: Source, index: int) -> bytes | BrokenRecord:
    try:
        return packed(source[index])
    except BrokenRecord as error:
        return error


def pack(arguments: Arguments, console: Console) -> tuple[int, int]:
    """Writes the shards; returns the numbers of records that are in them and that were left out.

    Raises:
        ValueError, OSError, RuntimeError: an argument or the data cannot be used, or the disk is full.
    """
    if not 0 <= arguments.max_broken <= 1:
        raise ValueError(f"--max-broken is {arguments.max_broken}; expected a share from 0 to 1")
    if arguments.threads < 1:
        raise ValueError(f"--threads is {arguments.threads}; expected at least 1")
    source = open_source(arguments.source, arguments.allow_outside)
    if isinstance(source, Shards):
        raise ValueError(
            f"{arguments.source} has shards already; expected JSON lines, Parquet or pictures with captions"
        )
    report = partial(console.print, "left out", markup=False, highlight=False, soft_wrap=True)
    packed = entries(source, int(arguments.max_broken * len(source)), arguments.threads, report)
    shown = track(packed, "packing", total=len(source), console=console)
    written = write_shards(arguments.target, shown, arguments.shard_size)
    return written, len(source) - written


def main(args: list[str] | None = None) -> int:
    """Runs the script. A mistake of the user's is one line on standard error and exit status 2."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.pack", args=args, description=__doc__)
    try:
        written, left_out = pack(arguments, Console(stderr=True))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{written} records in {arguments.target}, {left_out} left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
