"""The kinds of parts that training is made of. Each makes one model, by its name in the work directory, out of others.

A part that is there is taken, whichever kind it is: what was made here, or a model directory in either layout that
another machine made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import jax
import numpy as np

from converters.engine import on_host
from experiments.small_world.start import make_start
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.model_directory import is_model, save_model
from internvlu_jax.checkpoints.run_checkpoints import saved_steps
from internvlu_jax.config import Compute
from internvlu_jax.data.config import DataConfig
from internvlu_jax.training.config import ObjectiveConfig, OptimizerConfig, TrainConfig
from internvlu_jax.training.context_distillation import DistillationConfig, distill_context
from internvlu_jax.training.loop import check_workdir, train
from internvlu_jax.training.resuming import Stopped

PROMPTS = (
    "a red circle", "a large blue star", "two green squares", "three yellow triangles", "four red stars",
    "a black circle and a pink star", "a purple square left of an orange circle", "a small orange star",
    "a green triangle above a blue circle", "the word STOP", "a pink square on a light blue background",
    "two blue circles and a red star",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What holds for all parts."""

    workdir: Path
    scale: float = 1.0
    """Factor of all numbers of steps."""
    rows: int = 256
    """Of a step of the first parts. On a CPU fewer, 32, give more for the time."""
    draws: int = 2
    """Noises of each picture in one step of the first parts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of computation."""
    workers: int = 0
    """Processes that draw the world; on a GPU as many as there are other cores."""
    seed: int = 0
    sample_every: int | None = None
    """Steps between sheets of sample pictures."""

    def steps(self, number: int) -> int:
        """A number of steps, scaled."""
        return max(round(number * self.scale), 1)

    def model(self, name: str) -> Path:
        """Where the model of a part is, or will be."""
        directory = self.workdir / name
        return directory / "model" if is_model(directory / "model") else directory


@runtime_checkable
class Part(Protocol):
    """One part."""

    @property
    def name(self) -> str: ...

    def is_done(self, settings: Settings) -> bool:
        """Whether its model is there. Raises ConfigError if it is a run that began under other settings."""
        ...

    def needs(self, settings: Settings) -> tuple[str, ...]:
        """The parts whose models it needs from here on, by name."""
        ...

    def run(self, settings: Settings) -> None:
        """Makes its model, or goes on with it. Raises Stopped where a signal ends it."""
        ...


def remaining(parts: Sequence[Part], until: str, settings: Settings) -> list[Part]:
    """The parts that have to run for the model of the part `until`, in order.

    A part whose model is there does not run, and neither does what only such parts need.

    Raises:
        ValueError: there is no part of that name.
        ConfigError: a part that is there began under other settings.
    """
    named = {part.name: part for part in parts}
    if until not in named:
        raise ValueError(f"--until is {until!r}; expected one of {', '.join(named)}")
    waiting, run = [until], set[str]()
    while waiting:
        part = named[waiting.pop()]
        if part.name not in run and not part.is_done(settings):
            run.add(part.name)
            waiting += part.needs(settings)
    return [part for part in parts if part.name in run]


def is_brought(directory: Path) -> bool:
    """Whether a directory is a whole model in place of a run, in either layout."""
    return is_model(directory) or (directory / "model_index.json").is_file()


@dataclass(frozen=True)
class Start:
    """The tokenizer, the autoencoder, and everything else at random (see `start`). steps: of the autoencoder."""

    name: str
    steps: int

    def is_done(self, settings: Settings) -> bool:
        return is_brought(settings.workdir / self.name)

    def needs(self, settings: Settings) -> tuple[str, ...]:
        return ()

    def run(self, settings: Settings) -> None:
        work = settings.workdir
        make_start(work / self.name, work / "vae", work / "files", settings.steps(self.steps), settings.seed)


@dataclass(frozen=True)
class Train:
    """A training run from the model of another part.

    seed: added to that of the command, so that no part reads the examples of another. large: the command says how many
    rows a step has and how many noises each of its pictures.
    """

    name: str
    start: str
    steps: int
    seed: int
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    data: DataConfig
    large: bool = False

    def config(self, settings: Settings) -> TrainConfig:
        """The run as the training loop takes it."""
        data, objective = dataclasses.replace(self.data, workers=settings.workers), self.objective
        if self.large:
            rows = settings.rows
            data = dataclasses.replace(data, batch_size=rows, packed_rows=max(rows // 4, 1))
            if "flow" in dict(objective.weights):
                objective = dataclasses.replace(objective, noises_per_image=settings.draws)
        return TrainConfig(
            self.name, settings.steps(self.steps), start=str(settings.model(self.start)),
            seed=settings.seed + self.seed, data=data, objective=objective, optimizer=self.optimizer,
            compute=Compute(settings.dtype, "xla", time="float32"), save_every=1000, keep_last=1,
            sample_every=settings.sample_every, sample_prompts=PROMPTS,
        )  # fmt: skip

    def is_done(self, settings: Settings) -> bool:
        directory = settings.workdir / self.name
        if is_brought(directory):
            return True
        cfg = self.config(settings)
        check_workdir(cfg, directory)
        return self._saved(settings) >= cfg.steps

    def needs(self, settings: Settings) -> tuple[str, ...]:
        """A run that has saved holds all that it needs."""
        return () if self._saved(settings) else (self.start,)

    def run(self, settings: Settings) -> None:
        directory = settings.workdir / self.name
        outcome = train(self.config(settings), directory)
        if outcome.stopped:
            raise Stopped(directory, outcome.steps)

    def _saved(self, settings: Settings) -> int:
        return max(saved_steps(settings.workdir / self.name / "checkpoints"), default=0)


@dataclass(frozen=True)
class Distil:
    """The backbone of one part learns to give the contexts that the head of another knows.

    how: the run; its steps are scaled, and its seed is the command's.
    """

    name: str
    student: str
    teacher: str
    how: DistillationConfig

    def config(self, settings: Settings) -> DistillationConfig:
        """The run as it is trained."""
        return dataclasses.replace(self.how, steps=settings.steps(self.how.steps), seed=settings.seed)

    def is_done(self, settings: Settings) -> bool:
        return is_brought(settings.model(self.name))

    def needs(self, settings: Settings) -> tuple[str, ...]:
        return self.student, self.teacher

    def run(self, settings: Settings) -> None:
        student, teacher = settings.model(self.student), settings.model(self.teacher)
        distill_context(self.config(settings), student, teacher, settings.workdir / self.name)


@dataclass(frozen=True)
class Average:
    """The means of the weights of two parts, of which the second was trained from the first."""

    name: str
    before: str
    after: str

    def is_done(self, settings: Settings) -> bool:
        return is_brought(settings.workdir / self.name)

    def needs(self, settings: Settings) -> tuple[str, ...]:
        return self.before, self.after

    def run(self, settings: Settings) -> None:
        save_average(settings.model(self.before), settings.model(self.after), settings.workdir / self.name)


def save_average(before: Path, after: Path, target: Path) -> None:
    """Writes a model with the means of two models' weights, in float32 and then in the dtype of the first."""
    first, second = (loading.load(path, place=on_host) for path in (before, after))

    def mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.mean([a.astype(np.float32), b.astype(np.float32)], axis=0).astype(a.dtype)

    params = jax.tree.map(mean, first.params, second.params)
    save_model(target, first.config, params, first.extras, first.assets)
