"""Files that end: what is opened here is no pipe or device, from which one would read for ever, or wait."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a pipe; write what comes out of it to a file first",
    stat.S_IFSOCK: "a socket; expected a file",
    stat.S_IFCHR: "a device; expected a file",
    stat.S_IFBLK: "a device; expected a file",
}


class NotAFileError(ValueError):
    """What is there is no regular file: names it, and says what it is."""


def open_file(path: str | Path) -> BufferedReader:
    """A file to read.

    Raises:
        OSError: it cannot be opened, or is a directory.
        NotAFileError: it is a pipe, a socket or a device.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # to open a pipe would wait for somebody to write
    opened = os.fdopen(number, "rb")
    kind = _KINDS.get(stat.S_IFMT(os.fstat(opened.fileno()).st_mode))
    if kind is not None:
        opened.close()
        raise NotAFileError(f"{path} is {kind}")
    return opened
