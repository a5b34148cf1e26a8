"""The checkpoints that a training run saves every so many steps, in the background.

    CHECKPOINTS/STEP/        params (what is trained), ema (where one is kept), optimizer, data (JSON), checksums.json

Every directory gets its name by one rename when all of it is written: what has its name is whole, and what a disk does
to it later is noticed by its checksums (`seals`). In a bucket it is written under its name, and counts from when it has
checksums.json. Where a run has many processes, all of them make the same calls, and all see one file system, or bucket.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from internvlu_jax.checkpoints.arrays import CheckpointError, orbax_errors, targets_like
from internvlu_jax.checkpoints.seals import check_seal, has_part, is_whole, remove, seal
from internvlu_jax.utils.buckets import BucketError, in_bucket, path_of

log = logging.getLogger("internvlu_jax.checkpoints")
_WRITTEN, _REMOVED = ".written-", ".removed-"
_TEMPORARY = ".orbax-checkpoint-tmp"
_DAMAGED = "damaged-"
# What Orbax writes beside the arrays, and other writers in the meantime.
_SPARE_BYTES = 64 * 2**20
_LOOKS = 50  # at what a failed save has left, a tenth of a second apart
_PATIENCE = 60.0  # seconds that a save which is under way is given when an error ends one of several processes


def saved_steps(directory: Path) -> list[int]:
    """The steps of which there are checkpoints, in order."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    steps = sorted(int(name) for name in names if name.isdecimal())
    return [step for step in steps if is_whole(directory / str(step))]


def model_part(saved: Path) -> str:
    """The part of a checkpoint that is the model: the moving average where the run keeps one."""
    return "ema" if (saved / "ema").is_dir() or has_part(saved, "ema") else "params"


def last_intact(directory: Path, part: Callable[[Path], str] = lambda saved: "") -> int | None:
    """The last step that is as it was written, None if there is no checkpoint; one line says which are not.

    Args:
        part: of a checkpoint, that is looked at; "" is all of it.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
        BucketError: they lie in a bucket that gives no answer.
    """
    damages: list[str] = []
    for step in reversed(saved_steps(directory)):
        saved = directory / str(step)
        try:
            check_seal(saved, part(saved))
        except BucketError:
            raise
        except ValueError as error:
            damages.append(str(error))
            continue
        if damages:
            log.warning("step %d is taken, for those after it are damaged: %s", step, "; ".join(damages))
        return step
    if damages:
        raise CheckpointError(f"every checkpoint is damaged: {'; '.join(damages)}")
    return None


def step_to_resume(directory: Path) -> int | None:
    """As `last_intact`, for the run that goes on from there; later steps are put aside under the name damaged-STEP.

    In a bucket, where nothing is renamed, they are removed. All processes call it; the first one looks.
    """

    def look() -> int:
        step = last_intact(directory)
        if step is None:
            return -1
        for later in (saved for saved in saved_steps(directory) if saved > step):
            if in_bucket(directory):
                remove(directory / str(later))
                continue
            aside = directory / f"{_DAMAGED}{later}"
            shutil.rmtree(aside, ignore_errors=True)
            (directory / str(later)).rename(aside)
        return step

    step = from_first(look)
    return None if step < 0 else step


def from_first(function: Callable[[], int]) -> int:
    """What a function gives on the first process, which alone calls it; all processes call this.

    Raises:
        ValueError, OSError: the function did, on the first process; the others then raise a ValueError that points
            there.
    """
    if jax.process_count() == 1:
        return function()
    value, failure = 0, None
    if jax.process_index() == 0:
        try:
            value = function()
        except (ValueError, OSError) as error:
            failure = error
    value, failed = (int(n) for n in multihost_utils.broadcast_one_to_all(np.array([value, failure is not None])))
    if failed:
        raise failure or ValueError("the first process has ended; its message says why")
    return value


def barrier(name: str) -> None:
    """Returns when all processes have called it."""
    multihost_utils.sync_global_devices(name)


def check_space(directory: Path, arrays: Any) -> None:
    """Raises CheckpointError if a tree of arrays has no room on the disk of a directory; a bucket has room."""
    if in_bucket(directory):
        return
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
    stay, and those of steps that are multiples of `keep_every`. A `with` block ends when all is written; of several
    processes one that leaves it by an error waits for no other.
    """

    def __init__(self, directory: str | Path, keep_last: int, keep_every: int | None = None) -> None:
        self._root = path_of(directory).absolute()
        self._keep_last, self._keep_every = keep_last, keep_every
        self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._finisher = ThreadPoolExecutor(1)
        self._finished: Future[None] | None = None
        if jax.process_index() == 0:
            self._root.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
        barrier("RunCheckpoints: begun")

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None and jax.process_count() > 1:
            self._leave(error)
            return
        try:
            self.close()
        except CheckpointError as late:
            if error is None:
                raise
            error.add_note(str(late))  # what ended the block matters more

    def _leave(self, error: BaseException) -> None:
        """Ends where the others may be in a step, and never come to a barrier.

        The background of all of them goes on: a save that is under way has a while to end. One that does not gets no
        name, and is removed by the next run.
        """
        written = self._finisher.submit(self._writer.wait_until_finished)  # after what the first process does then
        if wait_for([written], 0.2).not_done:
            log.error("%s: %s; at most %.0f s for the save under way", type(error).__name__, error, _PATIENCE)
            wait_for([written], _PATIENCE)
        self._finisher.shutdown(wait=False, cancel_futures=True)

    def latest(self) -> int | None:
        """The last step that is saved."""
        return max(saved_steps(self._root), default=None)

    def save(self, step: int, state: RunState, data: dict[str, Any]) -> None:
        """Copies the state, and writes it in the background once the save before it has ended.

        Args:
            data: the position in the data, as JSON; the same on all processes.

        Raises:
            CheckpointError: the disk has no room for it, the step is saved already, or this save or the one before it
                failed. Older checkpoints are intact.
        """
        self.wait()
        arrays = {"params": state.trained, "optimizer": state.opt_state}
        if state.ema is not None:
            arrays["ema"] = state.ema
        check_space(self._root, arrays)
        final = self._root / str(step)
        if final.exists():
            raise CheckpointError(f"{final} exists; a step is saved once")
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        with self._writing():
            written = final if in_bucket(final) else self._root / f"{_WRITTEN}{step}"
            self._writer.save(written, ocp.args.Composite(**items, data=ocp.args.JsonSave(data)))
            if jax.process_index() == 0:
                self._finished = self._finisher.submit(self._finish, written, final)

    def _finish(self, written: Path, final: Path) -> None:
        """In the background, on the first process: what Orbax has written gets its checksums, and then its name."""
        self._writer.wait_until_finished()
        seal(written)
        if written != final:
            written.rename(final)

    def wait(self) -> None:
        """Returns when what is being written is written, and what is not kept is removed.

        Raises:
            CheckpointError: it could not be written. Older checkpoints are intact.
        """
        self._wait_written()
        if jax.process_index() == 0:
            self._remove_old()
        barrier("RunCheckpoints: waited")

    def _wait_written(self) -> None:
        with self._writing():
            finished, self._finished = self._finished, None
            if finished is not None:
                finished.result()
            self._writer.wait_until_finished()

    def restore(self, step: int, like: RunState) -> tuple[Any, Any, Any, dict[str, Any]]:
        """(trained, ema, optimizer state, position in the data) of a step, placed with the shardings of `like`.

        What is being saved is waited for; nothing is removed, for it may be what is asked for.

        Args:
            like: arrays, or `jax.ShapeDtypeStruct` with shardings; the mesh need not be that which wrote.

        Raises:
            CheckpointError: there is no such checkpoint, or it does not fit or cannot be read; or as `wait`.
        """
        self._wait_written()
        barrier("RunCheckpoints: written")
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
            self._finisher.shutdown()
            self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with orbax_errors(f"a checkpoint could not be written to {self._root}, where older ones are intact"):
                yield
        except CheckpointError:
            if jax.process_index() == 0:
                for _ in range(_LOOKS):  # for other parts of the checkpoint are written on by threads of Orbax's
                    self._remove_leftovers()
                    time.sleep(0.1)
                    if not any(self._leftovers()):
                        break
            raise

    def _remove_old(self) -> None:
        for step in saved_steps(self._root)[: -self._keep_last]:
            if not self._keep_every or step % self._keep_every:
                if in_bucket(self._root):
                    remove(self._root / str(step))
                    continue
                # By way of another name, so that what is half removed is never taken for a checkpoint.
                removed = (self._root / str(step)).rename(self._root / f"{_REMOVED}{step}")
                shutil.rmtree(removed, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for path in list(self._leftovers()):
            if in_bucket(path):
                remove(path)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def _leftovers(self) -> Iterator[Path]:
        """What was not written to its end, or not removed to its end."""
        for path in self._root.iterdir():
            unfinished = path.name.startswith((_WRITTEN, _REMOVED)) or _TEMPORARY in path.name
            if path.name.isdecimal() and not is_whole(path) if in_bucket(path) else unfinished:
                yield path
