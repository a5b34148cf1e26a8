"""Checksums of the files of a directory, by which a disk or a copy that gives back other bytes is noticed.

The arrays that Orbax writes carry none of their own: of the bits of a checkpoint some can be turned without an error,
and other numbers are read. A directory's `checksums.json` has the length and the CRC-32 of each file below it:

    {"params/d/4f1c...": [65536, "0a1b2c3d"], ...}
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.utils.files import read_json, write_json

NAME = "checksums.json"
_PIECE = 16 * 2**20  # bytes that are read at once; zlib lets other threads run meanwhile
_THREADS = 8


def seal(directory: Path, part: str = "") -> None:
    """Writes down the checksums of all files that are in a directory now, or in a part of it alone."""
    files = sorted(path for path in (directory / part).rglob("*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(_checksum, files)
        write_json(directory / NAME, {str(f.relative_to(directory)): s for f, s in zip(files, sums, strict=True)})


def check_seal(directory: Path, part: str = "") -> None:
    """Reads the files of a directory, or of a part of it, and does nothing where it has no checksums, as of before.

    Raises:
        CheckpointError: one of them is not as it was when `seal` read it; names all that are not.
    """
    if not (directory / NAME).exists():
        return
    whole = directory / part
    stored = read_json(directory / NAME)
    if not (isinstance(stored, dict) and all(_is_entry(entry) for entry in stored.values())):
        raise CheckpointError(f"{directory / NAME} is damaged; expected the length and checksum of each file")
    names = [name for name in stored if (directory / name).is_relative_to(whole)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(_found, [directory / name for name in names]))
    wrong = [name for name, entry in zip(names, found, strict=True) if entry != stored[name]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{whole} cannot be read: not as written ({NAME}) are {', '.join(wrong[:3])}{more}. Copy it again, or look "
            "at the disk"
        )


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and type(entry[1]) is str


def _checksum(path: Path) -> list[int | str]:
    length = checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            length, checksum = length + len(piece), zlib.crc32(piece, checksum)
    return [length, f"{checksum:08x}"]


def _found(path: Path) -> list[int | str] | None:
    """The entry of a file as it is now; None if it cannot be read at all."""
    try:
        return _checksum(path)
    except OSError:
        return None
