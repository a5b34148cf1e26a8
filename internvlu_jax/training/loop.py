"""A whole run: set up, resume, step, record, save; ends by itself, on SIGTERM, or where a number is not finite.

What is on disk at any moment lets the same command go on: the checkpoint holds parameters, optimizer state and the
position in the data, all of the same step, and random numbers are keyed by the seed and the step alone.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from internvlu_jax import checkpoint
from internvlu_jax.config import ConfigError
from internvlu_jax.data.batch import Batch
from internvlu_jax.data.loader import Loader
from internvlu_jax.parallel import Executor, make_executor
from internvlu_jax.training import overview, setup
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.samples import sample_sheet, save_sheet
from internvlu_jax.training.setup import Origin
from internvlu_jax.training.step import Step, TrainState, not_finite
from internvlu_jax.training.throughput import Operations, Rate, peak_operations

# What may change between the calls that make up one run: how long, on what machine, and what is kept and shown.
_MAY_CHANGE = (
    "steps", "executor", "mesh", "save_every", "keep_last", "keep_every", "sample_every", "sample_prompts",
    "sample_steps", "data.threads", "data.prefetch",
)  # fmt: skip


class NotFiniteError(RuntimeError):
    """A loss or a gradient is not a finite number."""


@dataclass(frozen=True)
class Outcome:
    """steps: that are done. metrics: of the last step of this call, None if it made none. stopped: by SIGTERM."""

    steps: int
    metrics: dict[str, float] | None
    stopped: bool


def train(cfg: TrainConfig, workdir: str | Path, quiet: bool = False) -> Outcome:
    """Runs or resumes `cfg` in `workdir`.

    Raises:
        ConfigError, ValueError: the configuration, data, mesh or work directory cannot be used; before compilation.
        NotFiniteError: a step is not finite; names the step and the part. What is saved is from before.
    """
    workdir = Path(workdir).absolute()
    _check_workdir(cfg, workdir)
    executor = make_executor(cfg.executor, cfg.mesh)
    executor.rows(cfg.data.batch_size)
    if cfg.data.packed_rows is not None:
        executor.rows(cfg.data.packed_rows)
    found = setup.origin(cfg)
    step = setup.make_step(cfg, found, executor.shards)
    with ExitStack() as stack:
        loader = stack.enter_context(setup.make_loader(cfg, found, executor))
        saved = stack.enter_context(checkpoint.RunCheckpoints(workdir / "checkpoints", cfg.keep_last, cfg.keep_every))
        state = _begin(cfg, workdir, found, step, executor, loader, saved)
        if not quiet and jax.process_index() == 0:
            overview.show(state, step.factors)
        return _Run(cfg, workdir, found, step, executor, loader, saved, quiet).go(state)


def _check_workdir(cfg: TrainConfig, workdir: Path) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir {workdir} is a file; expected a directory")
    if not checkpoint.is_run(workdir):
        return
    differences = checkpoint.config_differences(workdir, dataclasses.asdict(cfg), _MAY_CHANGE)
    if differences:
        raise ConfigError(
            f"{workdir} holds a run of another configuration: {'; '.join(differences)}. "
            "Give the same values to go on with it, or another --workdir"
        )


def _begin(
    cfg: TrainConfig,
    workdir: Path,
    found: Origin,
    step: Step,
    executor: Executor,
    loader: Loader,
    saved: checkpoint.RunCheckpoints,
) -> TrainState:
    """The state of the last checkpoint, or the first one; writes down what a new run starts from."""
    state = setup.first_state(cfg, found, step, executor)
    if not checkpoint.is_run(workdir):
        start = executor.savable(state)
        checkpoint.start_run(
            workdir,
            dataclasses.asdict(cfg),
            found.config,
            start.frozen,
            found.extras,
            found.tokenizer,
            found.small_files,
        )
    last = saved.latest()
    if last is None:
        return state
    trained, ema, optimizer, data = saved.restore(last, executor.savable(state))
    loader.restore(data)
    return executor.from_saved(state, trained, ema, optimizer, last)


class _Run:
    """The loop and what it writes."""

    def __init__(
        self,
        cfg: TrainConfig,
        workdir: Path,
        found: Origin,
        step: Step,
        executor: Executor,
        loader: Loader,
        saved: checkpoint.RunCheckpoints,
        quiet: bool,
    ) -> None:
        self._cfg, self._workdir, self._found = cfg, workdir, found
        self._executor, self._loader, self._saved = executor, loader, saved
        self._step = executor.compile(step)
        self._operations, self._peak, self._rate = Operations(step), peak_operations(), Rate()
        self._work = Rate()
        self._first = jax.process_index() == 0
        self._quiet = quiet

    def go(self, state: TrainState) -> Outcome:
        done = int(self._executor.savable(state).step)
        key = jax.random.key(self._cfg.seed)
        last: dict[str, float] | None = None
        with self._records(done) as records, _terminated() as stop:
            stopped = False
            waiting: tuple[int, Any, tuple[Batch, ...]] | None = None
            while done < self._cfg.steps and not stopped:
                batches = next(self._loader)
                state, metrics = self._step(state, tuple(self._executor.put(b) for b in batches), key)
                done += 1
                # The step before this one is read while this one runs, so the devices never wait for the host.
                last = self._record(records, waiting, state) or last
                waiting = (done, metrics, batches)
                stopped = stop(done)
                if stopped or done % self._cfg.save_every == 0 or done == self._cfg.steps:
                    last, waiting = self._record(records, waiting, state) or last, None
                    self._save(done, state)
                if self._cfg.sample_every and done % self._cfg.sample_every == 0:
                    self._sample(done, state)
            self._saved.wait()
        return Outcome(done, last, stopped)

    def _record(self, records: _Records, waiting: Any, state: TrainState) -> dict[str, float] | None:
        """Writes the metrics of a step that has ended."""
        if waiting is None:
            return None
        number, metrics, batches = waiting
        values = {name: np.asarray(value).item() for name, value in self._executor.metrics(metrics).items()}
        bad = not_finite(values)
        if bad is not None:
            raise NotFiniteError(
                f"step {number}: {bad} is not finite. The last checkpoint is from before; look at that step's data, "
                "lower the learning rate, or clip harder"
            )
        values.pop("finite")
        pictures = sum(b.picture.weight.shape[0] for b in batches if b.picture is not None)
        self._rate.add(pictures or sum(len(b.index) for b in batches))
        records.write(number, values, self._speed(state, batches))
        return values

    def _speed(self, state: TrainState, batches: tuple[Batch, ...]) -> str:
        per_second = self._rate.per_second()
        words = "" if per_second is None else f"{per_second:.3g} images/s"
        if self._peak is None or self._executor.global_shapes is None:
            return words
        self._work.add(self._operations.of(*self._executor.global_shapes(state, batches)))
        share = self._work.per_second()
        return words if share is None else f"{words}, {share / self._peak:.0%} of peak"

    def _save(self, done: int, state: TrainState) -> None:
        self._saved.save(done, self._executor.savable(state), self._loader.state())

    def _sample(self, done: int, state: TrainState) -> None:
        """A sheet of pictures; every process gathers the parameters, the first one draws."""
        params = self._executor.local(state, self._cfg.compute.dtype)
        if self._first and self._cfg.sample_prompts:
            side = self._cfg.data.sides[0]
            picture = sample_sheet(self._cfg, self._found.config, self._found.tokenizer, params, side)
            save_sheet(picture, self._workdir / "samples" / f"{done:08d}.png")
