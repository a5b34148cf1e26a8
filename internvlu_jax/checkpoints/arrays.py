"""Arrays on disk: model directories, and the checkpoints of training runs. This is the only file that knows Orbax.

A model, written once and whole:

    DIR/internvlu_jax.json   format and version
    DIR/released/            the small files of the released layout, byte for byte: configs, tokenizer, scheduler
    DIR/arrays/              {"params", "extras"}, written by Orbax

`extras` are tensors of the released checkpoint that no computation on single pictures uses; they are kept so that the
way back is bit-exact (see `converters`).

A run (see `run_directory`) saves every so many steps, in the background:

    CHECKPOINTS/STEP/        params (what is trained), ema (where one is kept), optimizer, data (JSON)

Every directory gets its name by one rename when all of it is written: what has its name is whole. Where a run has many
processes, all of them make the same calls, and all see one file system.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.config_files import read_config, write_config

MARKER = "internvlu_jax.json"
FORMAT = {"format": "internvlu_jax model", "version": 1}
TENSOR_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")


class CheckpointError(ValueError):
    """Arrays cannot be written, or cannot be read back."""


def is_model(directory: str | Path) -> bool:
    """Whether the directory is one that `save_model` wrote."""
    return (Path(directory) / MARKER).is_file()


@contextmanager
def new_directory(target: str | Path) -> Iterator[Path]:
    """A sibling directory to fill, which becomes `target` in one rename when the block ends without an exception.

    Raises:
        FileExistsError: `target` exists and is not an empty directory.
    """
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty directory; choose another name or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def copy_assets(source: str | Path, target: str | Path) -> None:
    """Copies everything of a released directory but its tensors."""
    source = Path(source)
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and not path.name.endswith(TENSOR_SUFFIXES):
            (Path(target) / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, Path(target) / relative)


def save_model(
    directory: str | Path,
    config: InternVLUConfig,
    params: dict[str, Any],
    extras: dict[str, Any],
    released: str | Path | None = None,
) -> None:
    """Writes a model directory; nothing appears under its name before it is whole.

    Args:
        released: a directory whose small files (tokenizer, configs) are kept; without it only the configs are written.

    Raises:
        FileExistsError: the directory exists and is not empty.
        CheckpointError: the arrays cannot be written.
    """
    with new_directory(directory) as partial:
        if released is not None:
            copy_assets(released, partial / "released")
        write_config(config, partial / "released", released)
        write_arrays(partial / "arrays", {"params": params, "extras": extras})
        (partial / MARKER).write_text(json.dumps(FORMAT) + "\n", encoding="utf-8")


def load_model(
    directory: str | Path, max_dtype: str | None = None, on_host: bool = False
) -> tuple[InternVLUConfig, dict[str, Any], dict[str, Any]]:
    """Reads a directory that `save_model` wrote: (config, params, extras).

    Args:
        max_dtype: wider parameters are cast to this dtype while they are read; None keeps what was written.
        on_host: parameters are numpy arrays instead of arrays on the default device.

    Raises:
        ValueError: not such a directory, or of a version that this code does not know.
    """
    root = checked(directory, FORMAT)
    config = read_config(root / "released")
    stored = array_shapes(root / "arrays")
    wanted = {"params": targets(stored["params"], max_dtype, on_host), "extras": targets(stored.get("extras", {}))}
    arrays = read_arrays(root / "arrays", wanted)
    return config, arrays["params"], arrays["extras"]


def stored_shapes(directory: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, extras) of a model directory as `jax.ShapeDtypeStruct`, without reading an array."""
    stored = array_shapes(checked(directory, FORMAT) / "arrays")
    return stored["params"], stored.get("extras", {})


def checked(directory: str | Path, expected: dict[str, Any]) -> Path:
    """The directory, absolute. Raises ValueError if its marker is not the expected one."""
    root = Path(directory).absolute()
    if not is_model(root):
        raise ValueError(f"{root} is not a model directory: it has no {MARKER}")
    found = read_json(root / MARKER)
    if found != expected:
        raise ValueError(f"{root / MARKER} says {found}; this code reads {expected}")
    return root


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes nested dicts of arrays. Raises CheckpointError if they cannot be written."""
    with _orbax(f"{path} cannot be written"), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, arrays)


def array_shapes(path: Path) -> dict[str, Any]:
    """What `write_arrays` wrote, as `jax.ShapeDtypeStruct`. Raises CheckpointError if it cannot be read."""
    with _orbax(f"{path} cannot be read"):
        # The handler and not a checkpointer, which looks for a file that the parts of a checkpoint do not have.
        tree = ocp.StandardCheckpointHandler().metadata(path).tree
        return jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), tree, is_leaf=lambda node: not isinstance(node, dict)
        )


def targets(shapes: Any, max_dtype: str | None = None, on_host: bool = True) -> Any:
    """What `read_arrays` is to make of arrays: numpy arrays, or arrays on the default device; none over `max_dtype`."""
    sharding = None if on_host else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, at_most(s.dtype, max_dtype), sharding=sharding), shapes)


def targets_like(tree: Any) -> Any:
    """What `read_arrays` is to make of arrays: such as those of `tree`, arrays or shapes, with the same shardings."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=getattr(a, "sharding", None)), tree)


def read_arrays(path: Path, wanted: Any) -> Any:
    """Reads what `write_arrays` wrote as `wanted` says. Raises CheckpointError if it cannot be read or does not fit."""
    with _orbax(f"{path} cannot be read"), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, wanted)


@contextmanager
def _orbax(failed: str) -> Iterator[None]:
    """Whatever Orbax raises becomes a `CheckpointError` that says what failed and why."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > 400:
            reason = f"{reason[:200]} ... {reason[-200:]}"  # the cause stands at the end
        raise CheckpointError(f"{failed}: {reason}") from error


def at_most(dtype: Any, max_dtype: str | None) -> np.dtype:
    """`dtype`, or `max_dtype` if that is narrower."""
    dtype = jnp.dtype(dtype)
    return dtype if max_dtype is None or dtype.itemsize <= jnp.dtype(max_dtype).itemsize else jnp.dtype(max_dtype)


_REMOVED = ".removed-"
_TEMPORARY = ".orbax-checkpoint-tmp"
# What Orbax writes beside the arrays, and other writers in the meantime.
_SPARE_BYTES = 64 * 2**20


def saved_steps(directory: Path) -> list[int]:
    """The steps of which there are checkpoints, in order."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def barrier(name: str) -> None:
    """Returns when all processes have called it."""
    multihost_utils.sync_global_devices(name)


def check_space(directory: Path, arrays: Any) -> None:
    """Raises CheckpointError if a tree of arrays has no room on the disk of a directory."""
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays)) + _SPARE_BYTES
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint needs {needed / 2**30:.2f} GiB in {directory}, where {free / 2**30:.2f} GiB are free. Make "
            "room (keep_last and keep_every say how many are kept) and run the same command again"
        )


@runtime_checkable
class RunState(Protocol):
    """What changes from step to step: trees of arrays, on any devices.

    trained, ema: parameters, as nested dicts; ema is None where none is kept. opt_state: any tree.
    """

    trained: Any
    opt_state: Any
    ema: Any


class RunCheckpoints:
    """The checkpoints of one run, in a directory of their own. All processes make the same calls in the same order.

    A save goes on in the background, and an error in it is raised by the next call. The last `keep_last` checkpoints
    stay, and those of steps that are multiples of `keep_every`. A `with` block ends when all is written.
    """

    def __init__(self, directory: str | Path, keep_last: int, keep_every: int | None = None) -> None:
        self._root = Path(directory).absolute()
        self._keep_last, self._keep_every = keep_last, keep_every
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        if jax.process_index() == 0:
            self._root.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
        barrier("RunCheckpoints: begun")

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except CheckpointError as late:
            if error is None:
                raise
            error.add_note(str(late))  # what ended the block matters more

    def latest(self) -> int | None:
        """The last step that is saved."""
        return max(saved_steps(self._root), default=None)

    def save(self, step: int, state: RunState, data: dict[str, Any]) -> None:
        """Copies the state, and writes it in the background once the save before it has ended.

        Args:
            data: the position in the data, as JSON; the same on all processes.

        Raises:
            CheckpointError: the disk has no room for it, or this save or the one before it failed. Older checkpoints
                are intact.
        """
        self.wait()
        arrays = {"params": state.trained, "optimizer": state.opt_state}
        if state.ema is not None:
            arrays["ema"] = state.ema
        check_space(self._root, arrays)
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        with self._writing():
            self._writer.save(self._root / str(step), ocp.args.Composite(**items, data=ocp.args.JsonSave(data)))

    def wait(self) -> None:
        """Returns when what is being written is written, and what is not kept is removed.

        Raises:
            CheckpointError: it could not be written. Older checkpoints are intact.
        """
        with self._writing():
            self._writer.wait_until_finished()
        if jax.process_index() == 0:
            self._remove_old()
        barrier("RunCheckpoints: waited")

    def restore(self, step: int, like: RunState) -> tuple[Any, Any, Any, dict[str, Any]]:
        """(trained, ema, optimizer state, position in the data) of a step, placed with the shardings of `like`.

        Args:
            like: arrays, or `jax.ShapeDtypeStruct` with shardings; the mesh need not be that which wrote.

        Raises:
            CheckpointError: there is no such checkpoint, or it does not fit or cannot be read.
        """
        trees = {"params": like.trained, "optimizer": like.opt_state}
        if like.ema is not None:
            trees["ema"] = like.ema
        items: dict[str, Any] = {name: ocp.args.StandardRestore(targets_like(tree)) for name, tree in trees.items()}
        path = self._root / str(step)
        with _orbax(f"{path} cannot be restored (without that directory the run goes on from the one before it)"):
            found = self._writer.restore(path, ocp.args.Composite(**items, data=ocp.args.JsonRestore()))
        return found["params"], found.get("ema"), found["optimizer"], found["data"]

    def close(self) -> None:
        """Waits, and ends the threads.

        Raises:
            CheckpointError: as `wait`.
        """
        try:
            self.wait()
        finally:
            self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with _orbax(f"a checkpoint could not be written to {self._root}, where older ones are intact"):
                yield
        except CheckpointError:
            if jax.process_index() == 0:
                self._remove_leftovers()
            raise

    def _remove_old(self) -> None:
        for step in saved_steps(self._root)[: -self._keep_last]:
            if not self._keep_every or step % self._keep_every:
                # By way of another name, so that what is half removed is never taken for a checkpoint.
                removed = (self._root / str(step)).rename(self._root / f"{_REMOVED}{step}")
                shutil.rmtree(removed, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for path in self._root.iterdir():
            if path.name.startswith(_REMOVED) or _TEMPORARY in path.name:
                shutil.rmtree(path, ignore_errors=True)
