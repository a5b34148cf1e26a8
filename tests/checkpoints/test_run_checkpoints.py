"""Checkpoints of training runs: whole or not there, exact, on any sharding."""

import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from internvlu_jax.checkpoints import run_checkpoints
from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.checkpoints.run_checkpoints import RunCheckpoints, from_first, saved_steps
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


def test_reading_removes_nothing(tmp_path):
    """A run that was killed before it removed an old step may be asked for that one."""
    tree = {"x": jnp.arange(3.0)}
    state = SimpleNamespace(trained=tree, opt_state={"n": jnp.zeros(1)}, ema=None)
    with RunCheckpoints(tmp_path / "c", keep_last=3) as saved:
        for step in (1, 2, 3):
            saved.save(step, state, {})
    with RunCheckpoints(tmp_path / "c", keep_last=2) as saved:
        np.testing.assert_array_equal(saved.restore(1, state)[0]["x"], tree["x"])
        assert saved_steps(tmp_path / "c") == [1, 2, 3]
    assert saved_steps(tmp_path / "c") == [2, 3]


def test_killed_at_any_moment(tmp_path):
    """Each writer finds all that was saved before it was started, bit for bit, and nothing else."""
    (tmp_path / "c").mkdir()
    inside, outside, last = map(int, run_part("kills", tmp_path / "c", 15).split())
    assert inside >= 2 and outside >= 2, "the moments were not spread"
    assert last >= 2, "nothing was saved between the kills"


def test_other_shardings(tmp_path):
    run_part("shardings", tmp_path / "c")


@pytest.mark.slow
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


def test_a_mistake_in_code_is_no_checkpoint_error(tmp_path, monkeypatch):
    def mistaken(*args, **kwargs):
        raise TypeError("of ours")

    with RunCheckpoints(tmp_path, keep_last=2) as saved:
        save(saved, 1)
        saved.wait()
        for name, call in (("save", lambda: save(saved, 2)), ("restore", lambda: saved.restore(1, state_of(1)))):
            monkeypatch.setattr(saved._writer, name, mistaken)
            with pytest.raises(TypeError, match="of ours"):
                call()


# --- several processes, of which one fails


def together(monkeypatch, index: int) -> list:
    """As one of two processes; what it broadcasts."""
    sent: list = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda values: sent.append(values.tolist()) or values)
    monkeypatch.setattr(multihost_utils, "sync_global_devices", lambda name: pytest.fail(f"waits for others at {name}"))
    return sent


@pytest.mark.parametrize("index", [0, 1])
def test_of_several_processes_one_that_fails_waits_for_none(tmp_path, monkeypatch, caplog, index):
    with pytest.raises(KeyError, match="here alone"), RunCheckpoints(tmp_path, keep_last=2) as saved:
        save(saved, 1)
        saved.wait()
        together(monkeypatch, index)
        raise KeyError("here alone")
    assert saved_steps(tmp_path) == [1] and not caplog.messages


@pytest.mark.parametrize("ends", [True, False])
def test_a_save_under_way_has_a_while_to_end(tmp_path, monkeypatch, caplog, ends):
    written, slept = [], threading.Event()
    with pytest.raises(KeyError), RunCheckpoints(tmp_path, keep_last=2) as saved:
        together(monkeypatch, 1)
        monkeypatch.setattr(run_checkpoints, "_PATIENCE", 5.0 if ends else 0.1)
        write = lambda: slept.wait(0.5 if ends else 60) or written.append(1)  # noqa: E731
        monkeypatch.setattr(saved._writer, "wait_until_finished", write)
        raise KeyError("here alone")
    assert written == [1] * ends
    assert "KeyError: 'here alone'; at most" in caplog.text  # told before the wait
    slept.set()


def test_what_fails_on_the_first_process_is_told_to_the_others(monkeypatch):
    def full():
        raise OSError("no space")

    sent = together(monkeypatch, 0)
    with pytest.raises(OSError, match="no space"):
        from_first(full)
    assert sent == [[0, 1]]
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda values: np.array([0, 1]))
    with pytest.raises(ValueError, match="the first process has ended; its message says why"):
        from_first(pytest.fail)
