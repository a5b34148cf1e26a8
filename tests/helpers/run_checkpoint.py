"""What `test_run_checkpoints` runs in processes of their own: `python -m tests.helpers.run_checkpoint PART ...`."""

import os
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
if sys.argv[1:2] in (["shardings"], ["spread"], ["two"]):
    _count = 2 if sys.argv[1] == "two" else 8
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={_count}"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from internvlu_jax.checkpoints import run_directory
from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.checkpoints.run_checkpoints import RunCheckpoints
from internvlu_jax.presets import debug_config


class Moments(NamedTuple):
    """Such as optax keeps."""

    count: object
    mu: dict


def state_of(step: int, size: int = 64) -> SimpleNamespace:
    """A state that only its step decides, on the default device."""

    def array(name: int, *shape: int) -> np.ndarray:
        return np.random.default_rng([step, name]).standard_normal(shape, np.float32)

    trained = {"head": {"kernel": array(0, size, 48), "bias": array(1, 5).astype(jnp.bfloat16)}}
    moments = (Moments(np.int32(step), {"head": {"kernel": array(2, size, 48)}}), ())
    tree = SimpleNamespace(trained=trained, opt_state=moments, ema={"head": {"kernel": array(3, size, 48)}})
    return SimpleNamespace(**{name: jax.tree.map(jnp.asarray, value) for name, value in vars(tree).items()})


def assert_restores(saved: RunCheckpoints, step: int, size: int = 64, like: SimpleNamespace | None = None) -> None:
    """Bit for bit what `state_of` gives, where `like` is."""
    expected = state_of(step, size)
    trained, ema, optimizer, data = saved.restore(step, like or expected)
    assert data == {"position": 7 * step, "pending": {"a": [step]}}
    saved_trees = (expected.trained, expected.ema, expected.opt_state)
    assert jax.tree.structure((trained, ema, optimizer)) == jax.tree.structure(saved_trees)
    for got, want in zip(jax.tree.leaves((trained, ema, optimizer)), jax.tree.leaves(saved_trees), strict=True):
        assert got.dtype == want.dtype and np.array_equal(np.asarray(got), np.asarray(want))


def save(saved: RunCheckpoints, step: int, size: int = 64, state: SimpleNamespace | None = None) -> None:
    saved.save(step, state or state_of(step, size), {"position": 7 * step, "pending": {"a": [step]}})


KILL_SIZE = 8000  # 5 MB a checkpoint


def _write_until_killed(directory: Path) -> None:
    """Checks all that the killed ones before it left, then saves on and on."""
    saved = RunCheckpoints(directory, keep_last=2, keep_every=7)
    assert all(path.name.isdecimal() for path in directory.iterdir()), list(directory.iterdir())
    steps = sorted(int(path.name) for path in directory.iterdir())
    for step in steps:
        assert_restores(saved, step, KILL_SIZE)
    step = saved.latest() or 0
    assert step == max(steps, default=0)
    (directory.parent / "ready.partial").write_text(str(step))
    (directory.parent / "ready.partial").rename(directory.parent / "ready")
    while True:
        step += 1
        save(saved, step, KILL_SIZE)
        if step % 2:
            saved.wait()
            time.sleep(random.random() * 0.2)


def _under_way(directory: Path) -> bool:
    return any(not path.name.isdecimal() for path in directory.iterdir())


def _last(directory: Path) -> int:
    return max((int(path.name) for path in directory.iterdir() if path.name.isdecimal()), default=0)


def kills(directory: str, times: str) -> None:
    """Prints in how many kills a save was under way, in how many not, and the last step."""
    root, ready = Path(directory), Path(directory).parent / "ready"
    inside = outside = last = 0
    for number in range(int(times)):
        child = os.fork()  # the imports are made once; no device has been touched
        if child == 0:
            try:
                _write_until_killed(root)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        while not ready.exists():
            assert os.waitpid(child, os.WNOHANG)[0] == 0, "the writer failed"
            time.sleep(0.01)
        assert int(ready.read_text()) >= last, "a checkpoint got lost"
        time.sleep(random.random() * 0.4)
        before = int(ready.read_text())
        for _ in range(20_000):  # a third of the kills as it comes, a third aimed at saves, a third after one
            saved = not _under_way(root) and _last(root) > before
            if number % 3 == 0 or (_under_way(root) if number % 3 == 1 else saved):
                break
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the writer failed"
        ready.unlink()
        under_way = _under_way(root)
        inside, outside = inside + under_way, outside + (not under_way)
        last = _last(root)
    print(inside, outside, last)


def full(directory: str) -> None:
    """A file may not grow over 64 kB while the second checkpoint is written."""
    with RunCheckpoints(directory, keep_last=1) as saved:
        save(saved, 1)
        saved.wait()
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
        try:
            save(saved, 2, KILL_SIZE)
            saved.wait()
        except CheckpointError as error:
            print(error)
        assert [path.name for path in Path(directory).iterdir()] == ["1"]
        assert_restores(saved, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        save(saved, 3)
    assert [path.name for path in Path(directory).iterdir()] == ["3"]


def _placed(state: SimpleNamespace, mesh: jax.sharding.Mesh, spec: PartitionSpec) -> SimpleNamespace:
    """Kernels sharded by `spec`, everything else replicated."""

    def place(leaf: jax.Array) -> jax.Array:
        sharding = NamedSharding(mesh, spec if leaf.ndim == 2 else PartitionSpec())
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index, leaf=leaf: np.asarray(leaf)[index])

    return SimpleNamespace(**{name: jax.tree.map(place, tree) for name, tree in vars(state).items()})


def shardings(directory: str) -> None:
    """Written on one mesh, read on others and on one device."""
    rows = jax.make_mesh((8,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    both = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with RunCheckpoints(directory, keep_last=3) as saved:
        save(saved, 1, state=_placed(state_of(1), rows, PartitionSpec("a")))
        saved.wait()
        for like in (_placed(state_of(0), both, PartitionSpec("b", "a")), state_of(0)):
            shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), vars(like))
            assert_restores(saved, 1, like=SimpleNamespace(**shapes))
            kernel = saved.restore(1, like)[0]["head"]["kernel"]
            assert kernel.sharding == like.trained["head"]["kernel"].sharding


def spread(directory: str) -> None:
    """As eight devices write them: a run of adapters on a mesh, one of the head under pmap, and a model on the mesh."""
    from internvlu_jax.checkpoints.model_directory import save_model
    from internvlu_jax.models import lora
    from internvlu_jax.parallel.config import MeshConfig
    from internvlu_jax.parallel.executors import PmapExecutor, make_executor
    from internvlu_jax.utils.tree import split
    from tests.checkpoints.test_run_directory import RELEASED, loading, make_run, on_host
    from tests.helpers.parallel_training import write_arrays_whole

    write_arrays_whole()
    model, root = loading.load(RELEASED, place=on_host), Path(directory)
    mesh, pmap = make_executor("mesh", MeshConfig(1, 8, 1)), PmapExecutor(jax.devices()[4:])
    on_mesh, of_pmap = ({"head": e.savable(e.place(model.params["head"]))} for e in (mesh, pmap))
    save_model(root / "model", model.config, {**model.params, **on_mesh}, model.extras, model.assets)
    _, rest = split(model.params, lambda path: path.startswith("head/"))
    make_run(root / "pmap", model, of_pmap, rest)
    adapters, _ = split(lora.add(model.params, "head/mmdit/blocks/image/q", 8, jax.random.key(0)), _is_adapter)
    adapters = mesh.savable(mesh.place(adapters))
    make_run(root / "mesh", model, adapters, {**rest, **on_mesh}, lora={"rank": 8, "alpha": 3.0, "pattern": ""})


def _is_adapter(path: str) -> bool:
    return "/lora_" in path


def two(directory: str, port: str, number: str) -> None:
    """One of two processes that start a run and write a checkpoint of arrays that neither has whole."""
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    mesh = jax.make_mesh((4,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    first = _placed(state_of(5), mesh, PartitionSpec("a"))
    assert not first.trained["head"]["kernel"].is_fully_addressable
    tokenizer = SimpleNamespace(save=lambda where: Path(where).mkdir(parents=True, exist_ok=True))
    extras = {"vlm": {"unused": np.arange(3)}}
    run_directory.start_run(directory, {"lora": None}, debug_config(), first.ema, extras, tokenizer)
    frozen = run_directory.restore_frozen(directory, first.ema)
    same = jax.jit(lambda x, y: jnp.all(x == y))
    assert same(frozen["head"]["kernel"], first.ema["head"]["kernel"])
    with RunCheckpoints(Path(directory) / "checkpoints", keep_last=2) as saved:
        for step in (1, 2, 3):
            save(saved, step, state=_placed(state_of(step), mesh, PartitionSpec("a")))
        saved.wait()
        assert saved.latest() == 3
        trained = saved.restore(2, first)[0]
        expected = _placed(state_of(2), mesh, PartitionSpec("a")).trained
        assert all(same(x, y) for x, y in zip(jax.tree.leaves(trained), jax.tree.leaves(expected), strict=True))


if __name__ == "__main__":
    {"kills": kills, "full": full, "shardings": shardings, "spread": spread, "two": two}[sys.argv[1]](*sys.argv[2:])
