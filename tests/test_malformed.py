"""Damaged files of every kind that users bring end in ValueError or OSError that names them, soon and within 1 GB.

`python -m tests.helpers.malformed 30000` is the longer run.
"""

import numpy as np
import pytest

from tests.helpers.damage import damaged
from tests.helpers.malformed import main, memory, run
from tests.helpers.malformed_readers import READERS, Reader


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name, tmp_path):
    count = run(name, 60, 0, tmp_path / "files")
    assert not count.faults, count.faults
    assert count.taken + count.refused == 60


@pytest.mark.parametrize("name", READERS)
def test_sound_files_are_read(name, tmp_path):
    READERS[name].make(tmp_path)
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            READERS[name].read(tmp_path, path.relative_to(tmp_path).as_posix())


def test_what_breaks_the_rule_is_found(tmp_path, monkeypatch):
    """A reader of another exception, one that names nothing, one that hangs and one that takes memory."""

    def hangs():
        while True:
            pass

    def fills():
        np.ones((memory("VmHWM") - memory("VmRSS") + 2 * 10**8) // 8).sum()

    def names_nothing():
        raise ValueError("damaged")

    monkeypatch.setattr("tests.helpers.malformed.BYTES", 10**8)
    said = {"hangs": "took over", "fills": "GB", "names_nothing": "names no file", "other": "KeyError"}
    readers = {"hangs": hangs, "fills": fills, "names_nothing": names_nothing, "other": lambda: {}["a"]}
    for name, read in readers.items():
        reader = Reader(lambda folder: (folder / "file.json").write_text("{}"), lambda folder, _, read=read: read())
        monkeypatch.setitem(READERS, name, reader)
        monkeypatch.setattr("tests.helpers.malformed.SECONDS", 0.2 if name == "hangs" else 30)
        assert said[name] in run(name, 1, 0, tmp_path / name).faults[0]


def test_damage_is_the_same_each_time():
    data = b'{"a": [1, 2, {"b": null}], "c": "a longer text", "d": [{"e": 3.5}, {"f": true}]}'
    first, again = ([damaged(data, np.random.default_rng((0, n))) for n in range(50)] for _ in range(2))
    assert first == again and len(set(first)) > 40


@pytest.mark.slow
def test_30_000_damaged_files():
    assert main(30_000) == 0
