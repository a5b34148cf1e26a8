"""What every training loop shares: it goes on only under the settings it began with, and a signal lets it save first.

`run_steps` is the whole of a small loop on one process: the autoencoder's and the distillation's. In WORKDIR:

    config.json      its settings          metrics.jsonl    one object a step
    checkpoints/     what it changes (see `checkpoints.run_checkpoints.RunCheckpoints`)

One process at a time has a work directory (`sole_run`).
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils

from internvlu_jax.checkpoints import run_directory
from internvlu_jax.checkpoints.run_checkpoints import RunCheckpoints, from_first, saved_steps, step_to_resume
from internvlu_jax.config import ConfigError
from internvlu_jax.training.reporting import Records
from internvlu_jax.utils.buckets import in_bucket
from internvlu_jax.utils.files import write_json
from internvlu_jax.utils.locks import locked

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal ended a loop before it had a result; what it has done is saved, and the same call goes on."""

    def __init__(self, workdir: Path, step: int) -> None:
        super().__init__(f"stopped at step {step}; `{workdir}` can go on")


class NotFiniteError(RuntimeError):
    """A loss or a gradient is not a finite number."""


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C where nothing is in hand that would have to be saved."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C raise `Interrupted`; for what comes before the first step, see `interruption`.

    Of several processes none can leave alone, for the others would wait: JAX tells them of SIGTERM, and Ctrl-C is
    passed on as that. A second one ends this process, as KeyboardInterrupt.
    """
    several, came = jax.process_count() > 1, set[int]()

    def end(number: int, frame: FrameType | None) -> None:
        if not several:
            raise Interrupted
        if came:
            raise KeyboardInterrupt
        came.add(number)
        signal.raise_signal(signal.SIGTERM)

    with _handled(end, (signal.SIGINT,) if several else _SIGNALS):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Within, a handler has some signals; only the main thread may take them, elsewhere they do as before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former or signal.SIG_DFL)  # None is a handler that Python did not set


@contextmanager
def sole_run(workdir: Path) -> Iterator[None]:
    """Within, no other run has a work directory; of several processes the first holds it for all.

    In a bucket nothing can be held: what ends a process cannot be told from what keeps it from the network.

    Raises:
        ValueError: another run has it; says which process that is.
    """
    with ExitStack() as stack:
        if not in_bucket(workdir):
            from_first(lambda: stack.enter_context(locked(workdir)) or 0)
        yield


@contextmanager
def interruption() -> Iterator[Callable[[int], bool]]:
    """Within, SIGTERM and Ctrl-C are noted and end nothing; a second Ctrl-C does, as KeyboardInterrupt.

    Yields whether one came; of several processes, in `interruptible`, whether all of them are to stop after this step,
    whichever one it came to. Only the main thread may take signals: elsewhere they do what they did before, and none is
    ever noted here.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    came: set[int] = set()

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.add(number)

    with _handled(note, _SIGNALS):
        yield lambda step: bool(came)


def check_settings(workdir: Path, settings: Mapping[str, Any], may_change: Iterable[str] = ()) -> None:
    """Raises ConfigError if the loop in `workdir` began under other settings; names the values that differ.

    Args:
        settings: as JSON. may_change: as for `run_directory.config_differences`.
    """
    differences = run_directory.config_differences(workdir, dict(settings), may_change)
    if differences:
        raise ConfigError(
            f"{workdir} holds a run of another configuration: {'; '.join(differences)}. "
            "Give the same values to go on with it, or another --workdir"
        )


class LoopState(NamedTuple):
    """What a small loop changes, as `RunCheckpoints` saves it; `ema` is None where none is kept."""

    trained: dict[str, Any]
    opt_state: Any
    ema: dict[str, Any] | None = None


@runtime_checkable
class Position(Protocol):
    """A loader of data, as far as resuming goes."""

    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


def check_loop(workdir: Path, settings: Mapping[str, Any], may_change: Iterable[str] = ()) -> None:
    """As `check_settings`, for the small loop that saved in `workdir`; does nothing where none did.

    Raises:
        ConfigError: the settings differ, or there are checkpoints without settings.
    """
    if not saved_steps(workdir / "checkpoints"):
        return
    if not has_settings(workdir):
        raise ConfigError(
            f"{workdir} holds checkpoints of unknown settings: it has no config.json. Take another work directory, or "
            "remove its checkpoints"
        )
    check_settings(workdir, settings, may_change)


def has_settings(workdir: Path) -> bool:
    """Whether a loop that was begun in `workdir` left its settings there."""
    return (workdir / "config.json").is_file()


def run_steps(
    workdir: Path,
    settings: Mapping[str, Any],
    init: Callable[[], LoopState],
    step: Callable[[LoopState, int], tuple[LoopState, Mapping[str, Any]]],
    *,
    steps: int,
    save_every: int,
    data: Mapping[str, Position] = {},
    may_change: Iterable[str] = (),
    quiet: bool = False,
    speed: Callable[[], str] = str,
    must_be_finite: bool = True,
) -> LoopState:
    """Runs the steps of a small loop, or goes on where it was stopped; returns the state after the last.

    Args:
        settings: everything that the result depends on, as JSON.
        init: the state before the first step, also what a saved one is restored like.
        step: from the state and the number of the step, from 0, to the state and its metrics: scalars on the device.
        data: loaders whose positions are saved with the state, by name.
        may_change: settings that may differ when the loop goes on.
        speed: words that the live line ends with.
        must_be_finite: whether a metric that is not ends the loop; else the step takes care of that itself.

    Raises:
        ConfigError: the loop began under other settings; before `init`.
        ValueError: another process is at work in `workdir`.
        NotFiniteError: a metric of a step is not a finite number. What is saved is from before.
        Stopped: SIGTERM or Ctrl-C came, even in the last step; the step in hand is saved.
    """
    check_loop(workdir, settings, may_change)
    with _alone(workdir):
        state: Any = init()
        with RunCheckpoints(workdir / "checkpoints", keep_last=2) as saved:
            done = step_to_resume(workdir / "checkpoints") or 0
            if done:
                trained, ema, opt_state, positions = saved.restore(done, state)
                state = LoopState(trained, opt_state, ema)
                for name, loader in data.items():
                    loader.restore(positions[name])
            else:
                write_json(workdir / "config.json", dict(settings))
            with (
                closing(Records(workdir, steps, done, write=True, show=not quiet)) as records,
                interruption() as is_interrupted,
            ):
                record = partial(_record, workdir, records, speed, must_be_finite)
                waiting: tuple[int, Mapping[str, Any]] | None = None
                for number in range(done, steps):
                    state, metrics = step(state, number)
                    # The step before this one is read while this one runs: the device need not wait for the host.
                    record(waiting)
                    waiting = (number + 1, metrics)
                    stops = is_interrupted(number + 1)
                    if stops or (number + 1) % save_every == 0 or number + 1 == steps:
                        record(waiting)
                        waiting = None
                        saved.save(number + 1, state, {name: d.state() for name, d in data.items()})
                    if stops:
                        saved.wait()
                        raise Stopped(workdir, number + 1)
        return state


@contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Within, nobody else is at work in a directory; what ends the loop before its first step is `Stopped`, too."""
    try:
        with interruptible(), sole_run(workdir):
            yield
    except Interrupted:
        raise Stopped(workdir, max(saved_steps(workdir / "checkpoints"), default=0)) from None


def _record(
    workdir: Path,
    records: Records,
    speed: Callable[[], str],
    must_be_finite: bool,
    ended: tuple[int, Mapping[str, Any]] | None,
) -> None:
    """Writes the metrics of a step that has ended; raises NotFiniteError."""
    if ended is None:
        return
    step, metrics = ended
    read = jax.device_get(dict(metrics))  # all of them in flight at once
    values = {name: np.asarray(value).item() for name, value in read.items()}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if must_be_finite and bad:
        raise NotFiniteError(
            f"{workdir}, step {step}: {', '.join(bad)} is not finite. What is saved is from before; "
            "look at the data of that step, or begin elsewhere with a lower learning rate"
        )
    records.write(step, values, speed())
