"""Names on a disk and in a bucket, and what is done with those in a bucket."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from internvlu_jax.utils.buckets import (
    BucketError,
    check_bucket,
    filled,
    in_bucket,
    object_sizes,
    on_disk,
    path_of,
    remove_objects,
)  # fmt: skip
from internvlu_jax.utils.files import check_free, check_writable, read_json, read_object, write_json, written_whole
from tests.helpers.bucket import in_process


@pytest.fixture
def service(monkeypatch):
    with in_process(monkeypatch) as service:
        yield service


@pytest.mark.parametrize("name", ["runs/1", "/runs/1", "ORG/NAME", ".", "a:b/c", "gs:bucket", Path("x")])
def test_names_on_a_disk_are_as_before(name):
    assert type(path_of(name)) is type(Path(name)) and path_of(name) == Path(name) and not in_bucket(path_of(name))


@pytest.mark.parametrize("name", ["gs://bucket/run", "gs://bucket/run/", Path("gs://bucket/run")])
def test_a_name_in_a_bucket_keeps_its_spelling(service, name):
    path = path_of(name)
    assert in_bucket(path) and str(path) == os.fspath(path) == "gs://bucket/run"
    assert path == path_of(path) == path.absolute() == path.expanduser()
    assert [str(p) for p in (path / "checkpoints/2", path.parent)] == ["gs://bucket/run/checkpoints/2", "gs://bucket"]
    assert (path.name, str((path / "a/b").parents[1])) == ("run", "gs://bucket/run")
    assert (path / "a/b").relative_to(path).as_posix() == "a/b"


@pytest.mark.parametrize("name", ["s3://bucket/run", "gs://", "https://host/x", Path("hf://x/y")])
def test_names_of_other_stores_are_refused(name):
    with pytest.raises(ValueError, match=r"://.*: expected a directory on a disk, or gs://BUCKET/NAME"):
        path_of(name)


def test_a_missing_package_is_named():
    code = (
        "import sys; sys.modules['gcsfs'] = None\n"
        "from internvlu_jax.utils.buckets import path_of\n"
        "try: path_of('gs://bucket/run')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "gs:// needs gcsfs, which is not installed: pip install 'internvlu-jax[gcs]'\n", done.stderr


def test_objects(service):
    root = path_of("gs://bucket/run")
    assert not (root.exists() or root.is_dir() or root.is_file() or list(root.iterdir()) or object_sizes(root))
    for name in ("a.json", "d/b", "d/e/c"):
        (root / name).write_bytes(name.encode())
    path_of("gs://bucket/run2/x").write_bytes(b"")  # whose name begins with that of the other directory
    assert sorted(p.name for p in root.iterdir()) == ["a.json", "d"]
    assert [root.is_dir(), root.is_file(), (root / "d").is_dir(), (root / "d/b").is_file()] == [True, False, True, True]
    assert not (root / "d/b").is_dir() and (root / "d/b").exists()
    assert object_sizes(root) == {"a.json": 6, "d/b": 3, "d/e/c": 5}
    assert (root / "d/e/c").read_bytes() == b"d/e/c"
    with pytest.raises(FileNotFoundError):
        (root / "nothing").read_bytes()
    with pytest.raises(FileNotFoundError):
        (root / "nothing").unlink()
    (root / "nothing").unlink(missing_ok=True)
    remove_objects(root / "nothing")
    remove_objects(root / "d")
    assert service.names() == ["run/a.json", "run2/x"]
    check_bucket(root)
    assert service.names() == ["run/a.json", "run2/x"]


def test_files_are_written_and_read_in_a_bucket_too(service, tmp_path):
    path = path_of("gs://bucket/run/config.json")
    write_json(path, {"a": 1})
    assert read_object(path) == {"a": 1} and service.objects["run/config.json"][0] == b'{\n  "a": 1\n}\n'
    with pytest.raises(RuntimeError), written_whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert read_object(str(path)) == {"a": 1}
    path.write_bytes(b"{")
    with pytest.raises(ValueError, match=r"gs://bucket/run/config.json is not valid JSON"):
        read_json(path)
    with pytest.raises(ValueError, match=r"gs://bucket/run/none.json cannot be read"):
        read_json(path.with_name("none.json"))
    with filled(path.parent / "small") as folder:
        (folder / "d").mkdir()
        (folder / "d/x").write_text("y")
    copy = on_disk(path.parent / "small")
    assert [p.read_text() for p in copy.rglob("*") if p.is_file()] == ["y"] and service.names("run/small/d/x")
    assert on_disk(tmp_path) == tmp_path
    with filled(tmp_path) as folder:
        assert folder == tmp_path


@pytest.mark.parametrize("check", [check_writable, check_free])
def test_what_goes_to_a_disk_alone_makes_no_directory_of_that_name(service, check):
    with pytest.raises(ValueError, match=r"gs://bucket/out is in a bucket; expected a name on a disk"):
        check(Path("gs://bucket/out"))


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.is_file(), lambda p: p.is_dir(), lambda p: p.read_bytes(), lambda p: p.write_bytes(b""), read_json,
        lambda p: p.unlink(missing_ok=True), object_sizes, remove_objects, check_bucket, lambda p: write_json(p, {}),
    ],
)  # fmt: skip
def test_no_answer_is_not_an_answer(service, call):
    """What cannot be asked is not taken for absent."""
    path = path_of("gs://bucket/run/a")
    path.write_bytes(b"1")
    service.refuses = lambda method, name: 403
    expected = r"gs://bucket/run/a cannot be (read|written|removed): Forbidden.*gcloud auth application-default login"
    with pytest.raises(BucketError, match=expected):
        call(path)
    service.refuses = lambda method, name: None
    assert path.read_bytes() == b"1"


def test_a_bucket_that_is_not_there(service):
    with pytest.raises(
        BucketError, match=r"gs://other/run cannot be written: there is no bucket other. Check the name"
    ):
        check_bucket(path_of("gs://other/run"))
    assert not path_of("gs://other/run").exists()
