"""The folder of a run: what is in it already, and files that appear whole or not at all.

`run.json` has the settings, `failures.json` the items that failed, with reasons. A hidden folder `.run/K-of-N` belongs
to host K: its answers, and a place where files are written before they get their names.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from internvlu_jax.evaluation.settings import differing
from internvlu_jax.evaluation.task import ANSWERS, Item
from internvlu_jax.utils.files import check_writable, read_json, write_json, write_text
from internvlu_jax.utils.locks import locked

RUN = "run.json"
_OWN = ".run"
_FAILURES = "failures.json"
_JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}


class RunFolder:
    """Of one host, within `opened`."""

    def __init__(self, path: Path, host: int, hosts: int) -> None:
        self.path = path
        self._own = path / _OWN / f"{host}-of-{hosts}"
        self._scratch = self._own / "partial"
        shutil.rmtree(self._scratch, ignore_errors=True)  # of a run that was killed
        self._scratch.mkdir(parents=True)
        self._whole_lines()
        self.look_again()

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Writes the settings, or compares them with those that are there.

        Raises:
            ValueError: the folder's run has others.
        """
        file, now = self.path / RUN, json.loads(json.dumps(settings))
        if not file.exists():
            return write_json(file, now)
        different = differing(now, read_json(file))
        if different:
            raise ValueError(f"{self.path} has a run with other settings: {'; '.join(different)}. Choose another --out")

    def look_again(self) -> None:
        """Sees the answers that other hosts have added; `has` knows those of the last look and this host's."""
        self._answered = {row["id"] for row in self.answers()}

    def has(self, item: Item) -> bool:
        """Whether nothing is left to do for an item."""
        made = item.id in self._answered if item.path is None else (self.path / item.path).exists()
        return made and all((self.path / name).exists() for name in item.beside)

    def answers(self) -> list[dict[str, Any]]:
        """Of all hosts, by number. A line that a killed run left unfinished is none."""
        rows = [json.loads(line) for file in (self.path / _OWN).glob(f"*/{ANSWERS}") for line in _complete(file)]
        return sorted({row["number"]: row for row in rows}.values(), key=lambda row: row["number"])

    def keep_answers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds answers to this host's."""
        new = [json.dumps(row, ensure_ascii=False) for row in rows if row["id"] not in self._answered]
        with (self._own / ANSWERS).open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in new)
        self._answered.update(row["id"] for row in rows)

    def keep_picture(self, name: str, picture: Image.Image) -> None:
        """A picture under its name in the folder, in the format of that name, unless it is there."""
        self._keep(name, lambda path: picture.save(path, **_JPEG if path.suffix.lower() in (".jpg", ".jpeg") else {}))

    def keep_text(self, name: str, text: str) -> None:
        """Likewise of text."""
        self._keep(name, lambda path: path.write_text(text, encoding="utf-8"))

    def keep_failures(self, failures: Mapping[str, str], there: Collection[str] = ()) -> None:
        """Writes why items failed, by id; what failed before and not now is removed.

        there: ids of what no host has to make any more, whichever noted that it failed.
        """
        file = self._own / _FAILURES
        if failures:
            write_json(file, failures)
        else:
            file.unlink(missing_ok=True)
        parts = sorted((self.path / _OWN).glob(f"*/{_FAILURES}"))
        every = {k: v for part in parts for k, v in read_json(part).items() if k not in there}
        if every:
            write_json(self.path / _FAILURES, every)
        else:
            (self.path / _FAILURES).unlink(missing_ok=True)

    def merge_answers(self) -> None:
        """Writes the answers of all hosts, in the order of the items."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.answers()]
        write_text(self.path / ANSWERS, "".join(lines))

    def _keep(self, name: str, write: Callable[[Path], Any]) -> None:
        path = self.path / name
        if path.exists():
            return
        partial = self._scratch / f"{uuid.uuid4().hex}{path.suffix}"
        write(partial)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(path)

    def _whole_lines(self) -> None:
        """Takes an unfinished line from the end of this host's answers, so that the next begins on its own."""
        file = self._own / ANSWERS
        if file.exists() and not file.read_bytes().endswith(b"\n"):
            write_text(file, "".join(f"{line}\n" for line in _complete(file)))


@contextmanager
def opened(path: Path, host: int, hosts: int) -> Iterator[RunFolder]:
    """The folder of a run, for one process of a host.

    Raises:
        ValueError: it holds something else, cannot be written in, or another process has this host's part.
    """
    check_folder(path)
    with locked(path / _OWN / f"{host}-of-{hosts}"):
        yield RunFolder(path, host, hosts)


def check_folder(path: Path) -> None:
    """Raises ValueError unless a run can begin or go on there; before anything is loaded."""
    check_writable(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out {path} is a file; expected a folder")
    begun = (path / RUN).exists() or (path / _OWN).exists()
    if path.exists() and not begun and any(path.iterdir()):
        raise ValueError(f"--out {path} has files and no {RUN}; expected an empty folder, or that of a run to go on")


def benchmark_of(path: Path) -> str:
    """The name of the benchmark that a folder has a run of.

    Raises:
        ValueError: it has none.
    """
    if not (path / RUN).is_file():
        raise ValueError(f"{path} has no {RUN}; expected the folder of a run")
    return str(read_json(path / RUN)["benchmark"])


def _complete(file: Path) -> list[str]:
    """Lines that end; those that are whole have no other line break in them."""
    data = file.read_bytes()
    return data[: data.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]
