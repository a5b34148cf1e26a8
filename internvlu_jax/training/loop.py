"""A whole run: set up, resume, step, record, save; ends by itself, on a signal, or where a number is not finite.

What is on disk at any moment lets the same command go on: the checkpoint holds parameters, optimizer state and the
position in the data, all of the same step, and random numbers are keyed by the seed and the step alone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internvlu_jax.checkpoints import run_directory
from internvlu_jax.checkpoints.run_checkpoints import RunCheckpoints, saved_steps, step_to_resume
from internvlu_jax.config import ConfigError
from internvlu_jax.data.batch import Batch
from internvlu_jax.data.examples import DataError
from internvlu_jax.data.loader import check_named
from internvlu_jax.data.prefetch import Prefetcher
from internvlu_jax.data.sources import check_source
from internvlu_jax.parallel.executors import Executor, make_executor
from internvlu_jax.parallel.placement import placement_of
from internvlu_jax.parallel.together import next_step
from internvlu_jax.training import overview, setup
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.reporting import Records, check_tracker
from internvlu_jax.training.resuming import (
    Interrupted,
    NotFiniteError,
    check_settings,
    interruptible,
    interruption,
    sole_run,
)
from internvlu_jax.training.samples import sample_sheet
from internvlu_jax.training.setup import InitialModel
from internvlu_jax.training.step import Step, TrainState, not_finite
from internvlu_jax.training.throughput import Operations, Rate, Waiting, peak_operations
from internvlu_jax.training.validation import Validation
from internvlu_jax.utils.buckets import check_bucket, in_bucket, path_of
from internvlu_jax.utils.files import check_writable, write_text
from internvlu_jax.utils.sheets import save_sheet
from internvlu_jax.utils.tree import in_dtype, merge

# What may change between the calls that make up one run: how long, on what machine, and what is kept and shown.
_MAY_CHANGE = (
    "steps", "executor", "mesh", "save_every", "keep_last", "keep_every", "validation", "report", "sample_every",
    "sample_prompts", "sample_steps", "data.threads", "data.prefetch", "data.max_broken", "data.allow_outside",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """steps: that are done and saved. metrics: of the last step of this call, None if it made none. stopped: by SIGTERM
    or Ctrl-C."""

    steps: int
    metrics: dict[str, float] | None
    stopped: bool


def train(cfg: TrainConfig, workdir: str | Path, quiet: bool = False, command: str | None = None) -> Outcome:
    """Runs or resumes `cfg` in `workdir`.

    Args:
        command: by which a user began the run, which is written down beside its configuration.

    Raises:
        ConfigError, ValueError: the configuration, data, mesh or work directory cannot be used, or another process is
            at work in it; before compilation.
        NotFiniteError: a step is not finite; names the step and the part. What is saved is from before.
    """
    workdir = path_of(workdir).absolute()
    check_workdir(cfg, workdir)
    check_tracker(cfg.report)
    try:
        with interruptible(), sole_run(workdir):
            return _train(cfg, workdir, quiet, command)
    except Interrupted:  # before the first step of this call
        return Outcome(max(saved_steps(workdir / "checkpoints"), default=0), None, stopped=True)


def _train(cfg: TrainConfig, workdir: Path, quiet: bool, command: str | None) -> Outcome:
    executor = make_executor(cfg.executor, cfg.mesh)
    for rows in {cfg.data.batch_size, cfg.data.packed_rows or cfg.data.batch_size}:
        executor.rows(rows)
    last = step_to_resume(workdir / "checkpoints")
    check_named(cfg.data)
    for path, _ in (*cfg.data.sources, *cfg.validation.sources):  # before gigabytes of weights are read
        check_source(path)
    initial = setup.initial_model(cfg, None if last is None else workdir)
    step = setup.make_step(cfg, initial, executor.shards)
    setup.check_computed(cfg, step.factors)
    setup.warn_of_sizes(cfg, initial.config)
    model = dataclasses.replace(initial, params=None)  # for all of the run, which does not look at them again
    validation = Validation(cfg, model, executor, step.objective) if cfg.validation.sources else None
    with (
        setup.make_loader(cfg, model, executor) as loader,
        RunCheckpoints(workdir / "checkpoints", cfg.keep_last, cfg.keep_every) as saved,
    ):
        if last is None:
            state = setup.first_state(cfg, initial, step, executor)
            _write_start(cfg, workdir, model, executor.savable(state), command)
        else:
            state, position = setup.saved_state(cfg, model, step, executor, workdir, saved, last)
            loader.restore(position)
        del initial  # gigabytes, of which the state has its own
        if not quiet and jax.process_index() == 0:
            overview.show(executor.savable(state), step.factors, executor.device_count)
        executor.compile(step)
        return _Run(cfg, workdir, model, step, executor, loader, validation, saved, quiet).go(state, last or 0)


def check_workdir(cfg: TrainConfig, workdir: Path) -> None:
    """Raises ConfigError if `cfg` can neither begin in a directory nor go on with the run that is there."""
    if os.path.isfile(workdir):
        raise ConfigError(f"--workdir {workdir} is a file; expected a directory")
    if in_bucket(workdir):
        check_bucket(workdir)
    else:
        check_writable(workdir / "checkpoints")
    if run_directory.is_run(workdir):
        check_settings(workdir, dataclasses.asdict(cfg), _MAY_CHANGE)


def _write_start(
    cfg: TrainConfig, workdir: Path, initial: InitialModel, state: TrainState, command: str | None
) -> None:
    if command is not None and jax.process_index() == 0:
        write_text(workdir / run_directory.COMMAND, command + "\n")
    run_directory.start_run(
        workdir, dataclasses.asdict(cfg), initial.config, state.frozen, initial.extras, initial.tokenizer,
        initial.assets,
    )  # fmt: skip


@dataclass(frozen=True)
class _Ended:
    """A step whose metrics are not read yet."""

    step: int
    metrics: Any
    batches: tuple[Batch, ...]
    valid: dict[str, float]


class _Run:
    """The loop and what it writes."""

    def __init__(
        self,
        cfg: TrainConfig,
        workdir: Path,
        initial: InitialModel,
        step: Step,
        executor: Executor,
        loader: Prefetcher,
        validation: Validation | None,
        saved: RunCheckpoints,
        quiet: bool,
    ) -> None:
        self._cfg, self._workdir, self._initial, self._quiet = cfg, workdir, initial, quiet
        self._executor, self._loader, self._validation, self._saved = executor, loader, validation, saved
        self._first = jax.process_index() == 0
        self._pictures, self._work, self._peak = Rate(), Rate(), peak_operations(executor.device_count)
        self._waiting = Waiting()
        # From the rows that this process loads to those of the run.
        self._of_all = cfg.data.batch_size / len(executor.rows(cfg.data.batch_size))
        self._operations = Operations(step, jax.eval_shape(step.init, initial.shapes))

    def go(self, state: TrainState, done: int) -> Outcome:
        """From step `done` to the end."""
        key = jax.random.key(self._cfg.seed)
        last, waiting, stopped, saved = None, None, False, done
        place = self._loader.state()  # of the last step that all processes have: some may have read on, and others not
        with self._records(done) as records, interruption() as is_interrupted:
            while done < self._cfg.steps and not stopped:
                try:
                    batches = next_step(self._loader, self._waiting)
                    place = self._loader.state()
                    state, metrics = self._executor.step(state, tuple(self._executor.put(b) for b in batches), key)
                    done += 1
                    # The step before is read while this one runs, so that the devices need not wait for the host.
                    last = self._record(records, waiting) or last
                    waiting = _Ended(done, metrics, batches, {})
                    waiting = dataclasses.replace(waiting, valid=self._valid(done, state))
                except DataError:  # of what is trained on, or held out; on all processes
                    self._record(records, waiting)
                    if done > saved:
                        records.flush()
                        self._saved.save(done, self._executor.savable(state), place)
                        self._saved.wait()
                    raise
                stopped = is_interrupted(done)
                saves = stopped or done % self._cfg.save_every == 0 or done == self._cfg.steps
                samples = bool(self._cfg.sample_every and done % self._cfg.sample_every == 0)
                if saves or samples:
                    last, waiting = self._record(records, waiting) or last, None
                if saves:
                    records.flush()
                    self._saved.save(done, self._executor.savable(state), place)
                    saved = done
                if samples:
                    self._sample(done, state)
            self._saved.wait()
        return Outcome(done, last, stopped)

    @contextmanager
    def _records(self, done: int) -> Iterator[Records]:
        cfg, first = self._cfg, self._first
        tracker = None if cfg.report is None else (cfg.report, dataclasses.asdict(cfg))
        show = first and not self._quiet
        records = Records(self._workdir, cfg.steps, done, write=first, show=show, tracker=tracker)
        try:
            yield records
        finally:
            records.close()

    def _record(self, records: Records, ended: _Ended | None) -> dict[str, float] | None:
        """Writes the metrics of a step that has ended, and returns them."""
        if ended is None:
            return None
        values = {name: np.asarray(value).item() for name, value in self._executor.replica(ended.metrics).items()}
        bad = not_finite(values)
        if bad is not None:
            raise NotFiniteError(
                f"step {ended.step}: {bad} is not finite. The last checkpoint is from before; look at the data of that "
                "step, lower the learning rate, or clip harder"
            )
        values.pop("finite")
        values |= ended.valid
        own = sum(b.picture.weight.shape[0] for b in ended.batches if b.picture is not None)
        self._pictures.add(own * self._of_all)
        records.write(ended.step, values, self._speed(ended.batches))
        return values

    def _valid(self, done: int, state: TrainState) -> dict[str, float]:
        """Of a step after which the held-out records are looked at; nothing after others."""
        if self._validation is None or done % self._cfg.validation.every:
            return {}
        return self._validation(state)

    def _speed(self, batches: tuple[Batch, ...]) -> str:
        """Pictures a second of all processes, the share of the time that was spent waiting and, where it is known, of
        the peak."""
        words = f"{self._pictures.per_second() or 0:.3g} images/s, {self._waiting.words()}"
        if self._peak is None:
            return words
        self._work.add(self._operations.of(batches) * self._of_all)
        share = self._work.per_second()
        return words if share is None else f"{words}, {share / self._peak:.0%} of peak"

    def _sample(self, done: int, state: TrainState) -> None:
        """A sheet of pictures, which all devices draw, the parameters where they lie; the first process saves it."""
        cfg, model = self._cfg, self._initial
        if not cfg.sample_prompts:
            return
        params = in_dtype(merge(state.kept, state.frozen), cfg.compute.dtype)
        on = placement_of(self._executor)
        picture = sample_sheet(cfg, model.config, model.tokenizer, params, cfg.data.sides[0], on)
        if self._first:
            save_sheet(picture, self._workdir / "samples" / f"{done:08d}.png")
