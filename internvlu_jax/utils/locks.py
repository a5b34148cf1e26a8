"""Directories that one process at a time works in.

The lock is the kernel's (`flock`), so it ends with the process that holds it, however that ends, and holds between
containers that share a file system of one host. Where a file system has none, nothing is locked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from internvlu_jax.utils.buckets import in_bucket, path_of

_WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


@contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Within, no other process is in such a block for the same directory, which is made if it is not there.

    Raises:
        ValueError: one is; says which process, on which host and since when. Or it is in a bucket, which has no locks.
    """
    directory = path_of(directory)
    if in_bucket(directory):
        raise ValueError(f"{directory} is in a bucket, where nothing can be held; expected a directory on a disk")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ".lock"
    file = _taken(path)
    if file is None:
        raise ValueError(f"{directory} is in use by {_holder(path)}; wait for it or end it, or take another directory")
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {platform.node()} since {time.strftime('%F %T')}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for this file finds that it has no name any more
        os.close(file)


def _taken(path: Path) -> int | None:
    """The locked file of that name, open; None if another process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if _lock(file) is False:
            os.close(file)
            return None
        if _is(path, file):
            return file
        os.close(file)  # whoever had it removed it in between


def new_locked_directory(path: Path) -> int:
    """Makes a directory under a name that is no other process's, and locks it; the open file that holds it.

    Who calls `remove_unlocked_directory` between the two removes it, and it is made again.
    """
    while True:
        path.mkdir(exist_ok=True)
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if _lock(file) is not False and _is(path, file):
            return file
        os.close(file)
        time.sleep(0.001)  # for who has it, to remove it


def remove_unlocked_directory(path: Path) -> None:
    """Removes a directory, unless somebody has locked it, or it cannot be told, opened or removed."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        if _lock(file) and _is(path, file):  # else another of that name, made since
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(file)


def _lock(file: int) -> bool | None:
    """Locks an open file or directory until it is closed; False if another has locked it, None if that cannot be."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT:
            raise
        return None
    return True


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
