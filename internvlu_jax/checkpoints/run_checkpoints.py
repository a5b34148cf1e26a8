"""The checkpoints that a training run saves every so many steps, in the background.

    CHECKPOINTS/STEP/        params (what is trained), ema (where one is kept), optimizer, data (JSON)

Every directory gets its name by one rename when all of it is written: what has its name is whole. Where a run has many
processes, all of them make the same calls, and all see one file system.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from internvlu_jax.checkpoints.arrays import CheckpointError, orbax_errors, targets_like

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
        with orbax_errors(f"{path} cannot be restored (without that directory the run goes on from the one before it)"):
            restored = self._writer.restore(path, ocp.args.Composite(**items, data=ocp.args.JsonRestore()))
        return restored["params"], restored.get("ema"), restored["optimizer"], restored["data"]

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
            with orbax_errors(f"a checkpoint could not be written to {self._root}, where older ones are intact"):
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
