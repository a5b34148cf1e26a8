"""Checkpoints of training runs: whole or not there, exact, on any sharding; and the models that runs come to."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from internvlu_jax.checkpoints import loading, run_directory
from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.checkpoints.run_checkpoints import RunCheckpoints, saved_steps
from internvlu_jax.cli import main
from internvlu_jax.models import lora
from internvlu_jax.processing.tokenizer import Tokenizer
from tests.conftest import GOLDENS
from tests.helpers.run_checkpoint import assert_restores, save, state_of

ROOT = Path(__file__).parents[2]
RELEASED = GOLDENS / "base/checkpoint"
CONFIG = {"name": "x", "lora": None, "mesh": {"data": -1}, "data": {"sources": [{"path": "a", "weight": 1.0}]}}


def start_part(*args: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.helpers.run_checkpoint", *map(str, args)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_part(*args: object) -> str:
    part = start_part(*args)
    out, err = part.communicate(timeout=300)
    assert part.returncode == 0, err
    return out


# --- checkpoints


def test_what_is_saved_is_restored(tmp_path):
    with RunCheckpoints(tmp_path / "c", keep_last=2) as saved:
        assert saved.latest() is None
        save(saved, 3)
        saved.wait()
        assert saved.latest() == 3
        assert_restores(saved, 3)
    assert {p.name for p in (tmp_path / "c/3").iterdir() if p.is_dir()} == {"params", "ema", "optimizer", "data"}
    with RunCheckpoints(tmp_path / "c", keep_last=2) as again:
        assert_restores(again, 3)


def test_without_a_moving_average(tmp_path):
    with RunCheckpoints(tmp_path, keep_last=1) as saved:
        state = SimpleNamespace(**{**vars(state_of(1)), "ema": None})
        saved.save(1, state, {})
        trained, ema, _, data = saved.restore(1, state)
        assert ema is None and data == {} and not (tmp_path / "1/ema").exists()
        assert np.array_equal(trained["head"]["kernel"], state.trained["head"]["kernel"])


def test_numpy_and_shapes_without_a_sharding(tmp_path):
    with RunCheckpoints(tmp_path, keep_last=1) as saved:
        state = SimpleNamespace(**{name: jax.tree.map(np.asarray, tree) for name, tree in vars(state_of(1)).items()})
        save(saved, 1, state=state)
        assert_restores(saved, 1, like=state)
        assert isinstance(saved.restore(1, state)[0]["head"]["kernel"], np.ndarray)


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, None, [9]), (2, None, [8, 9]), (2, 3, [3, 6, 8, 9]), (1, 4, [4, 8, 9]), (20, None, list(range(1, 10)))],
)
def test_what_is_kept(tmp_path, keep_last, keep_every, kept):
    with RunCheckpoints(tmp_path, keep_last, keep_every) as saved:
        for step in range(1, 10):
            save(saved, step)
    assert saved_steps(tmp_path) == kept == sorted(int(p.name) for p in tmp_path.iterdir())


def test_state_may_be_donated_while_it_is_written(tmp_path):
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((256, 4096))
    with RunCheckpoints(tmp_path, keep_last=9) as saved:
        for step in range(4):
            saved.save(step, SimpleNamespace(trained={"x": x}, opt_state={"x": jnp.zeros(1)}, ema=None), {})
            for _ in range(5):
                x = add(x)
        like = SimpleNamespace(trained={"x": x}, opt_state={"x": jnp.zeros(1)}, ema=None)
        for step in range(4):
            assert np.all(saved.restore(step, like)[0]["x"] == 5 * step)


def test_killed_at_any_moment(tmp_path):
    """Each writer finds all that was saved before it was started, bit for bit, and nothing else."""
    (tmp_path / "c").mkdir()
    inside, outside, last = map(int, run_part("kills", tmp_path / "c", 15).split())
    assert inside >= 2 and outside >= 2, "the moments were not spread"
    assert last >= 2, "nothing was saved between the kills"


def test_other_shardings(tmp_path):
    run_part("shardings", tmp_path / "c")


def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    parts = [start_part("two", tmp_path / "run", port, number) for number in (0, 1)]
    for part in parts:
        _, err = part.communicate(timeout=120)
        assert part.returncode == 0, err
    assert saved_steps(tmp_path / "run/checkpoints") == [2, 3]
    with RunCheckpoints(tmp_path / "run/checkpoints", keep_last=2) as saved:
        assert_restores(saved, 3)


def test_disk_fills_up_while_writing(tmp_path):
    message = run_part("full", tmp_path / "c")
    assert str(tmp_path / "c") in message and "older ones are intact" in message and "File too large" in message


def test_disk_without_room(tmp_path, monkeypatch):
    with RunCheckpoints(tmp_path, keep_last=2) as saved:
        save(saved, 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
        with pytest.raises(CheckpointError, match=r"needs 0\.06 GiB in .*, where 0\.00 GiB are free\. Make room"):
            save(saved, 2)
        monkeypatch.undo()
        save(saved, 3)
    assert saved_steps(tmp_path) == [1, 3]


def test_an_error_in_the_block_is_not_replaced(tmp_path, monkeypatch):
    failures = [OSError("no space")]

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    with pytest.raises(KeyError) as caught, RunCheckpoints(tmp_path, keep_last=2) as saved:
        monkeypatch.setattr(saved._writer, "wait_until_finished", fail_once)
        raise KeyError("first")
    assert "no space" in caught.value.__notes__[0]


def test_restoring_what_does_not_fit_or_is_broken(tmp_path):
    with RunCheckpoints(tmp_path, keep_last=2) as saved:
        save(saved, 1)
        saved.wait()
        with pytest.raises(CheckpointError, match=r"/1 cannot be restored .*\(64, 48\)"):
            saved.restore(1, state_of(1, size=32))
        with pytest.raises(CheckpointError, match="/4 cannot be restored"):
            saved.restore(4, state_of(4))
        shutil.rmtree(tmp_path / "1/optimizer")
        with pytest.raises(CheckpointError, match="/1 cannot be restored"):
            saved.restore(1, state_of(1))


# --- work directories


@pytest.fixture(scope="module")
def model() -> loading.LoadedModel:
    return loading.load(RELEASED, place=np.asarray)


def make_run(
    workdir: Path, model: loading.LoadedModel, trained: dict, frozen: dict, ema: dict | None = None, **config
) -> Path:
    """A run that has saved one step."""
    tokenizer = Tokenizer.from_directory(RELEASED / "processor")
    run_directory.start_run(workdir, CONFIG | config, model.config, frozen, model.extras, tokenizer, RELEASED)
    with RunCheckpoints(workdir / "checkpoints", keep_last=1) as saved:
        saved.save(1, SimpleNamespace(trained=trained, opt_state={"count": np.zeros(1)}, ema=ema), {})
    return workdir


def assert_same(first: dict, second: dict) -> None:
    first, second = flatten_dict(first), flatten_dict(second)
    assert first.keys() == second.keys()
    for path, value in first.items():
        assert np.array_equal(np.asarray(value), np.asarray(second[path])), path


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_run_becomes_the_released_layout(tmp_path, model, capsys):
    """A run that changed nothing gives back the checkpoint that it started from, byte for byte."""
    frozen = {name: model.params[name] for name in ("vlm", "vae")}
    workdir = make_run(tmp_path / "run", model, {"head": model.params["head"]}, frozen)
    assert run_directory.is_run(workdir)
    assert main(["convert", str(workdir), str(tmp_path / "back"), "--to", "released"]) == 0
    assert contents(tmp_path / "back") == contents(RELEASED)
    assert main(["convert", str(workdir), str(tmp_path / "ours"), "--to", "orbax"]) == 0
    assert_same(loading.load(tmp_path / "ours").params, model.params)
    capsys.readouterr()
    assert main(["info", str(workdir)]) == 0
    assert "head" in capsys.readouterr().out


def test_parameters_trained_within_a_part_and_their_average(tmp_path, model):
    """What is trained is told apart by whole paths; the moving average stands for it where there is one."""
    flat = flatten_dict(model.params)
    chosen = {path: value for path, value in flat.items() if path[-1] == "kernel"}
    frozen = unflatten_dict({path: value for path, value in flat.items() if path not in chosen})
    average = {path: value + 1 for path, value in chosen.items()}
    workdir = make_run(tmp_path / "run", model, unflatten_dict(chosen), frozen, unflatten_dict(average))
    loaded = loading.load(workdir)
    assert isinstance(loaded.params["head"]["padding_token"], jax.Array)
    assert_same(loaded.params, unflatten_dict({**flat, **average}))
    narrow = loading.load(workdir, max_dtype="bfloat16").params
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}
    assert isinstance(jax.tree.leaves(loading.load(workdir, place=np.asarray).params)[0], np.ndarray)


def test_adapters_are_merged(tmp_path, model):
    params = lora.add(model.params, r"head/mmdit/blocks/image/(q|out)", 2, jax.random.key(0))
    flat = {path: value + 0.1 if path[-1] == "lora_b" else value for path, value in flatten_dict(params).items()}
    adapters = {path: value for path, value in flat.items() if lora.is_adapter("/".join(path))}
    settings = {"rank": 2, "alpha": 3.0, "pattern": ""}
    workdir = make_run(tmp_path / "run", model, unflatten_dict(adapters), model.params, lora=settings)
    merged = lora.merge(unflatten_dict(flat), 1.5)
    loaded = loading.load(workdir)
    assert_same(loaded.params, merged)
    assert not np.array_equal(
        *(tree["head"]["mmdit"]["blocks"]["image"]["q"]["kernel"] for tree in (merged, model.params))
    )
    narrow = jax.tree.map(lambda p: np.asarray(p).astype(jnp.bfloat16), merged)
    assert_same(loading.load(workdir, max_dtype="bfloat16").params, narrow)


def test_frozen_parameters_come_back(tmp_path, model):
    workdir = make_run(tmp_path / "run", model, {"head": model.params["head"]}, {"vae": model.params["vae"]})
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), model.params["vae"])
    frozen = run_directory.restore_frozen(workdir, {"vae": shapes})
    assert isinstance(jax.tree.leaves(frozen)[0], jax.Array)
    assert_same(frozen["vae"], model.params["vae"])


def test_a_run_from_a_preset_has_its_tokenizer(tmp_path, model):
    tokenizer = Tokenizer.from_directory(RELEASED / "processor")
    run_directory.start_run(tmp_path, CONFIG, model.config, {"vae": model.params["vae"]}, {}, tokenizer)
    again = Tokenizer.from_directory(run_directory.assets(tmp_path) / "processor")
    assert again.encode("a cat, two cats") == tokenizer.encode("a cat, two cats")


def test_a_start_that_was_killed_is_made_anew(tmp_path, model):
    (tmp_path / ".start.partial/arrays").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    assert not run_directory.is_run(tmp_path)
    make_run(tmp_path, model, {"head": model.params["head"]}, {"vae": model.params["vae"]})
    assert run_directory.is_run(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "start", "checkpoints"}


def test_differences_of_configurations(tmp_path, model):
    make_run(tmp_path, model, {"head": model.params["head"]}, {"vae": model.params["vae"]})
    sources = ({"path": "b", "weight": 1.0}, {"path": "c", "weight": 2.0})
    given = {"name": "x", "lora": {"rank": 2}, "mesh": {"data": 4}, "mesh2": 1, "data": {"sources": sources}}
    assert run_directory.config_differences(tmp_path, CONFIG) == []
    assert run_directory.config_differences(tmp_path, given, ("mesh", "data.sources.1")) == [
        "lora: null -> nothing",
        'data.sources.0.path: "a" -> "b"',
        "lora.rank: nothing -> 2",
        "mesh2: nothing -> 1",
    ]


def test_directories_that_are_no_runs(tmp_path, model):
    def fails(text: str, name: str = "run") -> None:
        with pytest.raises(ValueError, match=text):
            loading.load(tmp_path / name)

    workdir = make_run(tmp_path / "run", model, {"head": model.params["head"]}, {"vae": model.params["vae"]})
    with pytest.raises(CheckpointError, match="holds a run, or part of one"):
        make_run(workdir, model, {}, {})
    (workdir / "start").rename(tmp_path / "start")
    assert not run_directory.is_run(workdir)
    with pytest.raises(CheckpointError, match="holds a run, or part of one"):
        make_run(workdir, model, {}, {})
    fails("not a complete InternVL-U checkpoint")
    (tmp_path / "start").rename(workdir / "start")
    (workdir / "checkpoints/1").rename(tmp_path / "1")
    fails("checkpoints has no checkpoint; the run has not saved a step yet")
    assert main(["info", str(workdir)]) == 2
    (workdir / "checkpoints/2/params").mkdir(parents=True)
    fails("checkpoints/2/params cannot be read")
    shutil.rmtree(workdir / "start/arrays")
    fails("start/arrays cannot be read")
    (workdir / "config.json").write_text("{")
    fails("config.json cannot be read")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        run_directory.config_differences(workdir, CONFIG)
    (workdir / "start/internvlu_jax.json").write_text(json.dumps(run_directory.FORMAT | {"version": 2}))
    fails("'version': 2.*this code reads")
    fails("internvlu_jax run", "run/start")
