"""Checksums of the files of a directory, by which a disk or a copy that gives back other bytes is noticed.

The arrays that Orbax writes carry none of their own: of the bits of a checkpoint some can be turned without an error,
and other numbers are read. A directory's `checksums.json` has the length and the CRC-32 of each file below it:

    {"params/d/4f1c...": [65536, "0a1b2c3d"], ...}

In a bucket there are lengths alone, and null: the service itself verifies what an object holds. There `checksums.json`
is what makes a directory whole: it is written last, and removed first.
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.utils.buckets import in_bucket, object_sizes, remove_objects
from internvlu_jax.utils.files import read_json, write_json

NAME = "checksums.json"
_PIECE = 16 * 2**20  # bytes that are read at once; zlib lets other threads run meanwhile
_THREADS = 8


def seal(directory: Path, part: str = "") -> None:
    """Writes down the checksums of all files that are in a directory now, or in a part of it alone."""
    if in_bucket(directory):
        write_json(directory / NAME, {name: [size, None] for name, size in object_sizes(directory).items()})
        return
    files = sorted(path for path in (directory / part).rglob("*") if path.is_file())
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(_checksum, files)
        write_json(directory / NAME, {str(f.relative_to(directory)): s for f, s in zip(files, sums, strict=True)})


def has_part(directory: Path, part: str) -> bool:
    """Whether a directory was sealed with files in a part of it, which may be gone since."""
    stored = read_json(directory / NAME) if (directory / NAME).exists() else {}
    return isinstance(stored, dict) and any(name.startswith(f"{part}/") for name in stored)


def is_whole(directory: Path) -> bool:
    """Whether all of a directory is written: always on a disk, where it gets its name when it is."""
    return not in_bucket(directory) or (directory / NAME).is_file()


def remove(directory: Path) -> None:
    """Removes a directory of a bucket, so that what is half removed is never taken for whole."""
    (directory / NAME).unlink(missing_ok=True)
    remove_objects(directory)


def check_seal(directory: Path, part: str = "") -> None:
    """Reads the files of a directory, or of a part of it, and does nothing where it has no checksums, as of before.

    Raises:
        CheckpointError: one of them is not as it was when `seal` read it; names all that are not.
        BucketError: it lies in a bucket that gives no answer.
    """
    if not (directory / NAME).exists():
        return
    whole = directory / part
    stored = read_json(directory / NAME)
    if not (isinstance(stored, dict) and all(_is_entry(entry) for entry in stored.values())):
        raise CheckpointError(f"{directory / NAME} is damaged; expected the length and checksum of each file")
    names = [name for name in stored if (directory / name).is_relative_to(whole)]
    found = _found_in(directory, names)
    wrong = [name for name, entry in zip(names, found, strict=True) if not _is_same(entry, stored[name])]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{whole} cannot be read: not as written ({NAME}) are {', '.join(wrong[:3])}{more}. Copy it again, or look "
            "at the disk"
        )


def _is_entry(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and type(entry[1]) in (str, type(None))


def _is_same(found: list[int | str | None] | None, stored: list[int | str | None]) -> bool:
    """Whether two entries agree: of the lengths, and of the checksums where both have one."""
    return found is not None and found[0] == stored[0] and (found[1] == stored[1] or None in (found[1], stored[1]))


def _found_in(directory: Path, names: list[str]) -> list[list[int | str | None] | None]:
    if in_bucket(directory):
        sizes = object_sizes(directory)
        return [[sizes[name], None] if name in sizes else None for name in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_found, [directory / name for name in names]))


def _checksum(path: Path) -> list[int | str | None]:
    length = checksum = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            length, checksum = length + len(piece), zlib.crc32(piece, checksum)
    return [length, f"{checksum:08x}"]


def _found(path: Path) -> list[int | str | None] | None:
    """The entry of a file as it is now; None if it cannot be read at all."""
    try:
        return _checksum(path)
    except OSError:
        return None
