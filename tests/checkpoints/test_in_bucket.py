"""Runs and models in a bucket: written so that a kill at any moment leaves what goes on, and read as from a disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from converters.engine import on_host
from internvlu_jax.checkpoints import loading, run_directory
from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.checkpoints.model_card import _losses
from internvlu_jax.checkpoints.model_directory import save_model
from internvlu_jax.checkpoints.run_checkpoints import RunCheckpoints, last_intact, saved_steps, step_to_resume
from internvlu_jax.checkpoints.seals import check_seal
from internvlu_jax.cli import main
from internvlu_jax.utils.buckets import BucketError, path_of
from tests.checkpoints.test_run_directory import RELEASED, assert_same, begin, make_run
from tests.helpers.bucket import Service, in_process
from tests.helpers.run_checkpoint import assert_restores, save
from tests.helpers.training import one_block

PLACE = "gs://bucket/run/checkpoints"


@pytest.fixture
def service(monkeypatch):
    with in_process(monkeypatch) as service:
        yield service


def moments(service: Service) -> Iterator[int]:
    """The bucket as it was after each thing that was done to it, which is told with its number."""
    history, objects = service.history, {}
    for number, (name, data) in enumerate(history):
        if data is None:
            del objects[name]
        else:
            objects[name] = (data, number + 1)
        service.objects = dict(objects)
        yield number


def upload(folder: Path, service: Service, name: str) -> None:
    """As `gcloud storage cp -r` does."""
    for path in folder.rglob("*"):
        if path.is_file():
            service.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def download(service: Service, name: str, folder: Path) -> None:
    for key in service.names(f"{name}/"):
        path = folder / key.removeprefix(f"{name}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(service.objects[key][0])


def test_what_is_kept_comes_back(service):
    with RunCheckpoints(PLACE, keep_last=1, keep_every=2) as saved:
        for step in (1, 2, 3):
            save(saved, step)
        with pytest.raises(CheckpointError, match=r"checkpoints/3 exists; a step is saved once"):
            save(saved, 3)
    assert saved_steps(path_of(PLACE)) == [2, 3]
    assert not service.names("run/checkpoints/1")
    with RunCheckpoints(PLACE, keep_last=1) as again:
        assert again.latest() == step_to_resume(path_of(PLACE)) == 3
        assert_restores(again, 2)
        assert_restores(again, 3)


def test_killed_at_any_moment(service):
    """After each object that a run writes or removes: the last step that counts is whole, and never an earlier one."""
    with RunCheckpoints(PLACE, keep_last=1) as saved:
        save(saved, 1)
        save(saved, 2)
    root, counted, partial = path_of(PLACE), [], 0
    for number in moments(service):
        for step in saved_steps(root):
            check_seal(root / str(step))
        counted.append(last_intact(root) or 0)
        if number and counted[-1] != counted[-2]:
            first = dict(service.objects)
            with RunCheckpoints(PLACE, keep_last=2) as saved:
                assert_restores(saved, counted[-1])
            service.objects = first
        elif service.names("run/checkpoints/2") and counted[-1] == 1:
            partial += 1
    assert counted == sorted(counted) and set(counted) == {0, 1, 2}
    assert partial > 10 and counted.count(0) > 10, "else kills within a save are not tried"


def test_what_a_killed_save_left_is_written_over(service):
    with RunCheckpoints(PLACE, keep_last=2) as saved:
        save(saved, 1)
        save(saved, 2)
        saved.wait()
    service.remove("run/checkpoints/2/checksums.json")
    service.put("run/checkpoints/2/optimizer/left", b"")
    with RunCheckpoints(PLACE, keep_last=2) as saved:
        assert not service.names("run/checkpoints/2/") and saved.latest() == 1
        save(saved, 2)
        saved.wait()
        assert_restores(saved, 2)


def test_a_damaged_step_is_removed_and_an_unanswered_one_is_not(service):
    with RunCheckpoints(PLACE, keep_last=3) as saved:
        for step in (1, 2):
            save(saved, step)
    service.remove("run/checkpoints/2/params/manifest.ocdbt")
    service.refuses = lambda method, name: 403 if name.startswith("run/checkpoints/2") else None
    before = service.names()
    for ask in (last_intact, step_to_resume):
        with pytest.raises(BucketError, match=r"checkpoints/2/checksums.json cannot be read: Forbidden"):
            ask(path_of(PLACE))
    assert service.names() == before
    service.refuses = lambda method, name: None
    assert last_intact(path_of(PLACE)) == 1 and service.names() == before
    assert step_to_resume(path_of(PLACE)) == 1 and not service.names("run/checkpoints/2")


def test_a_save_that_fails_leaves_the_older_ones(monkeypatch):
    """In a bucket that no other test has: threads of the save that failed may still write when this one is over."""
    failed = r"could not be written to gs://own/checkpoints, where older ones are intact: .*(Forbidden|403)"
    with in_process(monkeypatch, "own") as service:
        with pytest.raises(CheckpointError, match=failed), RunCheckpoints("gs://own/checkpoints", keep_last=2) as saved:
            save(saved, 1)
            saved.wait()
            service.refuses = lambda method, name: 403 if method == "POST" and "/2/" in name else None
            save(saved, 2)
            saved.wait()
        service.refuses = lambda method, name: None
        with RunCheckpoints("gs://own/checkpoints", keep_last=2) as saved:
            assert saved.latest() == 1
            assert_restores(saved, 1)
            save(saved, 3)
        assert saved_steps(path_of("gs://own/checkpoints")) == [1, 3]


@pytest.fixture(scope="module")
def model() -> loading.LoadedModel:
    return one_block(loading.load(RELEASED, place=on_host))


def test_a_run_is_the_same_model_in_a_bucket_on_a_disk_and_copied(service, model, tmp_path, capsys):
    trained, frozen = {"head": model.params["head"]}, {name: model.params[name] for name in ("vlm", "vae")}
    make_run(path_of("gs://bucket/run"), model, trained, frozen)
    assert run_directory.is_run("gs://bucket/run") and not run_directory.is_run("gs://bucket")
    loaded = loading.load("gs://bucket/run", place=on_host)
    assert loaded.config == model.config
    assert_same(loaded.params, model.params)
    assert_same(loaded.extras, model.extras)
    assert (loaded.assets / "processor/tokenizer.json").read_bytes() == (
        RELEASED / "processor/tokenizer.json"
    ).read_bytes()
    assert_same(loading.load(Path("gs://bucket/run/checkpoints/1"), place=on_host).params, model.params)
    download(service, "run", tmp_path / "copied")
    assert_same(loading.load(tmp_path / "copied", place=on_host).params, model.params)
    assert main(["info", "gs://bucket/run"]) == 0 and main(["info", str(tmp_path / "copied")]) == 0
    in_bucket, on_disk = capsys.readouterr().out.split("┏")[1:]
    assert in_bucket == on_disk and "head" in on_disk
    service.put("run/metrics.jsonl", b'{"step": 1, "loss": 2.5}\n')
    assert "| 1 | 2.5000 |" in _losses(path_of("gs://bucket/run"), 1)[1]
    assert main(["convert", "gs://bucket/run", str(tmp_path / "ours"), "--to", "orbax"]) == 0
    assert_same(loading.load(tmp_path / "ours", place=on_host).params, model.params)
    with pytest.raises(CheckpointError, match=r"gs://bucket/run holds a run, or part of one"):
        make_run(path_of("gs://bucket/run"), model, trained, frozen)


def test_a_start_that_was_killed_is_written_over(service, model):
    frozen = {"vae": model.params["vae"]}
    make_run(path_of("gs://bucket/run"), model, {"head": {"x": np.ones(2)}}, frozen)
    began = next(n for n, (name, _) in enumerate(service.history) if name.startswith("run/checkpoints/"))
    service.history = service.history[:began]
    for number in moments(service):
        assert run_directory.is_run("gs://bucket/run") == (number == began - 1), "its marker is written last"
    service.remove("run/start/internvlu_jax.json")
    service.put("run/start/arrays/left", b"")
    make_run(path_of("gs://bucket/run"), model, {"head": {"x": np.ones(2)}}, frozen)
    assert "run/start/arrays/left" not in service.names()
    like = {"vae": model.params["vae"]}
    assert_same(run_directory.restore_frozen("gs://bucket/run", like), frozen)


def test_a_start_that_nothing_was_saved_from_is_written_over(service, model):
    begin(path_of("gs://bucket/run"), model, {"vae": {"x": np.ones(2)}})
    began = len(service.history)
    begin(path_of("gs://bucket/run"), model, {"vae": {"x": np.zeros(2)}})
    for number in moments(service):
        if number >= began:
            whole = number == len(service.history) - 1
            assert run_directory.is_run("gs://bucket/run") == whole, "its marker is removed first and written last"
    assert not run_directory.restore_frozen("gs://bucket/run", {"vae": {"x": np.ones(2)}})["vae"]["x"].any()


def test_a_model_directory_is_read_from_a_bucket(service, model, tmp_path, capsys):
    save_model(tmp_path / "model", model.config, model.params, model.extras, model.assets)
    upload(tmp_path / "model", service, "models/1")
    loaded = loading.load("gs://bucket/models/1", place=on_host)
    assert loaded.config == model.config
    assert_same(loaded.params, model.params)
    assert main(["convert", str(RELEASED), "gs://bucket/out", "--to", "orbax"]) == 2
    assert "gs://bucket/out is in a bucket; expected a name on a disk" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "model")
    upload(RELEASED, service, "released")
    for name, expected in {
        "released": "gs://bucket/released is neither a run nor a model in the Orbax layout",
        "none": "there is no directory gs://bucket/none",
    }.items():
        with pytest.raises(ValueError, match=expected):
            loading.load(f"gs://bucket/{name}")
