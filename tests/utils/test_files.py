"""Files are there whole or not at all."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from internvlu_jax.utils.files import (
    check_free,
    check_writable,
    new_directory,
    read_json,
    read_object,
    write_json,
    write_text,
    written_whole,
)
from internvlu_jax.utils.locks import remove_unlocked_directory
from internvlu_jax.utils.sheets import save_sheet

ROOT = Path(__file__).parents[2]


def test_a_file_becomes_its_name_when_it_is_whole(tmp_path):
    with written_whole(tmp_path / "deep/a.png") as partial:
        partial.write_text("x")
        assert partial.suffix == ".png" and not (tmp_path / "deep/a.png").exists()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.png"]
    write_text(tmp_path / "deep/a.png", "y")
    assert (tmp_path / "deep/a.png").read_text() == "y"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), written_whole(tmp_path / "a.txt") as partial:
        partial.write_text("half")
        raise error
    with pytest.raises(error), written_whole(tmp_path / "directory") as partial:
        partial.mkdir()
        (partial / "file").write_text("half")
        raise error
    with pytest.raises(error), written_whole(tmp_path / "b.txt"):
        raise error
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "old"}


def test_two_writers_of_one_name(tmp_path):
    with written_whole(tmp_path / "a") as first, written_whole(tmp_path / "a") as second:
        first.write_text("1")
        second.write_text("2")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "1")]


def test_a_sheet_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def half(self, path, *args, **kwargs):
        path.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match="disk full"):
        save_sheet(Image.new("RGB", (4, 4)), tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


def test_new_directory(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with new_directory(tmp_path / name) as partial:
            (partial / "file").write_text("x")
        assert [p.name for p in (tmp_path / name).iterdir()] == ["file"]
    for name in ("new", "new/file"):
        with pytest.raises(FileExistsError, match="not an empty directory"), new_directory(tmp_path / name):
            pass
    with pytest.raises(OSError, match="full"), new_directory(tmp_path / "other") as partial:
        (partial / "file").write_text("x")
        raise OSError("full")
    assert {p.name for p in tmp_path.iterdir()} == {"new", "empty"}


def test_a_new_directory_behind_a_link(tmp_path):
    """To an empty one, or to a name that is free: it becomes what the link leads to."""
    (tmp_path / "real").mkdir()
    for name, leads in (("a", "real"), ("b", "deep/none")):
        (tmp_path / name).symlink_to(leads)
        with new_directory(tmp_path / name) as partial:
            (partial / "file").write_text("x")
        assert (tmp_path / name).is_symlink() and (tmp_path / leads / "file").read_text() == "x"
    assert {p.name for p in tmp_path.iterdir()} == {"real", "deep", "a", "b"}


def test_a_directory_that_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch):
    """That in which one is, and what is mounted."""
    for name in ("here", "mounted"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mounted")
    for name in (".", "../here", tmp_path / "link"):
        with pytest.raises(FileExistsError, match=r"is the current directory, .*; choose a new name, such as .*model"):
            check_free(name)
    with pytest.raises(
        FileExistsError, match=r"mounted is a mount point, .*; choose a new name, such as .*/mounted/mo"
    ):
        check_free("../mounted")
    check_free("../mounted/new")
    with pytest.raises(FileExistsError), new_directory("."):
        raise AssertionError("the work")


def test_what_killed_writers_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    code = (
        "import sys, time; from internvlu_jax.utils.files import new_directory\n"
        "with new_directory(sys.argv[1]) as partial:\n"
        "    (partial / 'file').write_text('half'); print(partial, flush=True); time.sleep(99)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / name], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for name in ("a", "a", "ab")
    ]
    try:
        killed, living, other = (Path(writer.stdout.readline().strip()) for writer in writers)
        for writer in (writers[0], writers[2]):
            writer.kill()
            writer.wait()
        with new_directory(tmp_path / "a") as partial:
            (partial / "file").write_text("whole")
            assert not killed.exists()
            assert living.exists() and other.exists(), "of somebody who is at work, and of another name"
        assert (tmp_path / "a/file").read_text() == "whole"
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


@pytest.mark.parametrize("moment", ["mkdir", "open", "flock", "replace"])
def test_who_writes_the_same_directory_removes_nothing_of_those_at_work(tmp_path, monkeypatch, moment):
    """Whichever step of theirs it comes before."""
    owner = {"mkdir": Path, "open": os, "flock": fcntl, "replace": Path}[moment]
    step, others = getattr(owner, moment), []

    def interrupted(*args, **kwargs):
        if not others:
            others.append(moment)
            with new_directory(tmp_path / "a"):
                pass
            (tmp_path / "a").rmdir()
        return step(*args, **kwargs)

    monkeypatch.setattr(owner, moment, interrupted)
    with new_directory(tmp_path / "a") as partial:
        (partial / "file").write_text("whole")
    assert others and [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a/file").read_text() == "whole"


def test_who_looks_for_leftovers_removes_no_directory_made_since_under_the_name(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    flock = fcntl.flock

    def late(file, how):
        (tmp_path / "a").rename(tmp_path / "b")
        (tmp_path / "a").mkdir()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    remove_unlocked_directory(tmp_path / "a")
    assert (tmp_path / "a").exists()
    remove_unlocked_directory(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    remove_unlocked_directory(tmp_path / "link")
    assert (tmp_path / "link").exists()


def test_names_do_not_collide_in_containers(tmp_path):
    """Where processes have the same numbers."""
    code = (
        "import os, sys\nos.getpid = lambda: 1\nfrom internvlu_jax.utils.files import written_whole\n"
        "with written_whole(sys.argv[1]) as partial:\n    print(partial.name); partial.write_text('x')\n"
    )
    names = [
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / "a"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert len(set(names)) == 2


def test_names_of_any_length_are_written_under_names_that_can_be(tmp_path, monkeypatch):
    """Also where another machine, or container, has the same processes at the same time."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    for name in ("a" * 255, "a" * 251 + ".png", "é" * 125 + ".png", "." + "b" * 254, "a." + "c" * 253):
        with written_whole(tmp_path / name) as first, written_whole(tmp_path / name) as second:
            assert first.name != second.name
            first.write_text("1")
            second.write_text("2")
        assert (tmp_path / name).read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 5


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "new/deep/a", tmp_path / "file", "a"):
        check_writable(path)
    for path, said in (
        ("file/a", "file is a file"),
        ("x" * 256, "name of 256 bytes"),
        ("é" * 128 + "/a", "of 256 bytes"),
    ):
        with pytest.raises(ValueError, match=said):
            check_writable(tmp_path / path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"new/a: nothing can be written in .*; expected a directory that is yours"):
        check_writable(tmp_path / "new/a")


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, float("nan")]})
    assert (tmp_path / "a.json").read_text().endswith("\n") and json.loads((tmp_path / "a.json").read_text())["a"][
        0
    ] == 1
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "b.json", {"a": float("nan")}, allow_nan=False)
    with pytest.raises(ValueError, match=r"b\.json cannot be read"):
        read_json(tmp_path / "b.json")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", " is empty"), (b"{", " is not valid JSON: "), (b"\xff{", " is not valid JSON: "),
        (b"version https://git-lfs.github.com/spec/v1", " is a git-LFS pointer"), (b"[" * 10**5, " is not valid JSON"),
        (b"[1]", ": expected a JSON object, found list"), (b"null", ": expected a JSON object, found NoneType"),
    ],
)  # fmt: skip
def test_what_is_no_json_object(content, said, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a\.json{said}"):
        read_object(tmp_path / "a.json")
