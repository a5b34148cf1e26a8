"""Names of files and directories, on a disk or in a bucket: `gs://BUCKET/NAME`.

A bucket has objects and no directories: a directory is what the names of objects begin with. Objects appear whole or
not at all, and cannot be renamed or appended to. The service is reached through fsspec and gcsfs, which know by
themselves who is signed in.
"""

from __future__ import annotations

import atexit
import functools
import logging
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, cast

_SCHEME = re.compile(r"([A-Za-z][\w+.-]+):/+")  # pathlib has made one slash of the two
_OF_CLIENTS = ("gcsfs", "google", "aiohttp", "requests")  # packages whose errors share no class


class BucketError(ValueError):
    """A bucket cannot be read or written."""


def path_of(name: str | Path) -> Path:
    """The path of a name; one in a bucket is a `BucketPath`, which has the methods of `Path` that are needed here.

    Args:
        name: "gs://BUCKET/NAME", also as `pathlib` spells it, "gs:/BUCKET/NAME"; everything else is on a disk.

    Raises:
        ValueError: it is a URL of another kind, names no bucket, or the package `gcsfs` is not installed.
    """
    if isinstance(name, BucketPath):
        return name
    found = _SCHEME.match(str(name))
    if found is None:
        return Path(name)
    rest = str(name)[found.end() :]
    if found[1] != "gs" or not rest:
        raise ValueError(f"{found[1]}://{rest}: expected a directory on a disk, or gs://BUCKET/NAME")
    _service()
    return cast(Path, BucketPath(f"gs:/{rest}"))


def in_bucket(path: Path) -> bool:
    """Whether a path, which `path_of` gave, lies in a bucket."""
    return isinstance(path, BucketPath)


class BucketPath(PurePosixPath):
    """A directory or an object of a bucket. All methods raise BucketError where the service gives no answer.

    Nothing is remembered: what others wrote is seen at once.
    """

    def __str__(self) -> str:
        return super().__str__().replace("gs:/", "gs://", 1)

    def __fspath__(self) -> str:
        return str(self)

    def absolute(self) -> BucketPath:
        return self

    def expanduser(self) -> BucketPath:
        return self

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        with _answered(self, "read"), suppress(FileNotFoundError):
            return _service().info(str(self))["type"] == "file"
        return False

    def is_dir(self) -> bool:
        return any(True for _ in self.iterdir())

    def iterdir(self) -> Iterator[BucketPath]:
        """What lies directly in a directory; nothing where there is none."""
        entries: list[dict[str, Any]] = []
        with _answered(self, "read"), suppress(FileNotFoundError):
            entries = _service().ls(str(self), detail=True)
        own = str(self).removeprefix("gs://")
        yield from (self / PurePosixPath(entry["name"]).name for entry in entries if entry["name"].rstrip("/") != own)

    def read_bytes(self) -> bytes:
        """Raises FileNotFoundError if there is no such object."""
        with _answered(self, "read"):
            return _service().cat_file(str(self))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """The object that was there is replaced."""
        with _answered(self, "written"):
            _service().pipe_file(str(self), data)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a directory is there when something is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        with _answered(self, "removed"):
            try:
                _service().rm_file(str(self))
            except FileNotFoundError:
                if not missing_ok:
                    raise


@functools.cache
def _service() -> Any:
    """The client of the service. Raises ValueError if its package is not installed."""
    import fsspec

    try:
        service = fsspec.filesystem("gcs", use_listings_cache=False)
    except ImportError as error:
        raise ValueError("gs:// needs gcsfs, which is not installed: pip install 'internvlu-jax[gcs]'") from error
    logger = logging.getLogger("gcsfs")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)  # it writes a traceback of every error, which is raised as well
    return service


@contextmanager
def _answered(path: PurePath, what: str) -> Iterator[None]:
    """What clients raise becomes a BucketError, but for FileNotFoundError where that is an answer."""
    try:
        yield
    except Exception as error:
        absent = isinstance(error, FileNotFoundError)
        if (absent and what != "written") or not (isinstance(error, OSError | ValueError) or is_of_client(error)):
            raise
        said = f"there is no bucket {path.parts[1]}" if absent else " ".join(str(error).split())
        raise BucketError(f"{path} cannot be {what}: {said or type(error).__name__}. {_ADVICE}") from error


_ADVICE = (
    "Check the name of the bucket, the network, and who is signed in: `gcloud auth application-default login`, or the "
    "service account of the machine, with the role Storage Object User"
)


def is_of_client(error: Exception) -> bool:
    """Whether an error is one of those classes that a client of a bucket's service has of its own."""
    return type(error).__module__.partition(".")[0] in _OF_CLIENTS


def object_sizes(directory: Path) -> dict[str, int]:
    """The bytes of all objects below a directory of a bucket, by the names that they have from there on."""
    with _answered(directory, "read"):
        found = _service().find(str(directory), detail=True)
    own = str(directory).removeprefix("gs://") + "/"
    return {name.removeprefix(own): entry["size"] for name, entry in sorted(found.items()) if entry["type"] == "file"}


def remove_objects(directory: Path) -> None:
    """Removes all that is below a directory of a bucket."""
    with _answered(directory, "removed"), suppress(FileNotFoundError):
        _service().rm(str(directory), recursive=True)


def check_bucket(directory: Path) -> None:
    """Raises BucketError unless objects can be written and removed in a directory of a bucket, by doing so."""
    trial = str(directory / f".trial-{uuid.uuid4().hex[:12]}")
    with _answered(directory, "written"):
        _service().pipe_file(trial, b"")
        _service().rm_file(trial)


def on_disk(directory: Path) -> Path:
    """A directory of small files, or where it lies in a bucket a copy of it, which stays until the process ends."""
    if not in_bucket(directory):
        return directory
    copy = Path(tempfile.mkdtemp(prefix="internvlu-jax-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for name in object_sizes(directory):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((directory / name).read_bytes())
    return copy


@contextmanager
def filled(directory: Path) -> Iterator[Path]:
    """A directory to write small files in, which are in `directory` when the block ends: itself, if on a disk."""
    if not in_bucket(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="internvlu-jax-") as folder:
        yield Path(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                (directory / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
