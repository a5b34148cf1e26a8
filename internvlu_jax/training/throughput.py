"""How fast a run goes: pictures a second, its operations as a share of what the devices could do, waits for data."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from types import TracebackType
from typing import Any

import jax
import numpy as np

from internvlu_jax.data.batch import Batch
from internvlu_jax.training.step import Step, TrainState
from internvlu_jax.utils.devices import bfloat16_peak
from internvlu_jax.utils.flops import count_flops


def peak_operations(devices: int) -> float | None:
    """Of so many devices together, operations a second; None where that is not known."""
    one = bfloat16_peak()
    return one * devices if one else None


class Operations:
    """Operations of a step by the shapes of its micro-batches, counted once each from the jaxpr of the gradients.

    What rematerialisation computes again is not counted, so the share of the peak is that of useful work.
    """

    def __init__(self, step: Step, state: TrainState) -> None:
        """state: the run's, or its shapes."""
        model = step.objective.model
        plain = dataclasses.replace(model, compute=dataclasses.replace(model.compute, attention="xla", remat="none"))
        self._step = dataclasses.replace(step, objective=dataclasses.replace(step.objective, model=plain))
        self._state = state
        self._known: dict[Any, int] = {}

    def of(self, batches: tuple[Batch, ...]) -> int:
        """Of one step's micro-batches, or of the rows of them that one process has."""
        return sum(self._one(batch) for batch in batches)

    def _one(self, batch: Batch) -> int:
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), batch)
        leaves, structure = jax.tree.flatten(shapes)
        name = (structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if name not in self._known:
            key = jax.eval_shape(lambda: jax.random.key(0))
            totals = jax.eval_shape(self._step.objective.totals, shapes)
            self._known[name] = count_flops(self._step.gradients, self._state, shapes, totals, key)
        return self._known[name]


class Rate:
    """Amounts a second over the last steps, the first left out because it compiles."""

    def __init__(self, window: int = 20) -> None:
        self._marks: deque[tuple[float, float]] = deque(maxlen=window + 1)
        self._total = 0.0

    def add(self, amount: int | float) -> None:
        """Notes that a step which did `amount` has just ended."""
        self._total += amount
        self._marks.append((time.perf_counter(), self._total))

    def per_second(self) -> float | None:
        """None before two steps have ended."""
        if len(self._marks) < 2:
            return None
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(end - start, 1e-9)


class Waiting:
    """The share of a run's time that its loop waits for data: a context manager around what gets them.

    Where the host runs ahead of a device, some of that is not lost: the share is then the most that it can be.
    """

    def __init__(self) -> None:
        self._waited = self._entered = 0.0
        self._start: float | None = None

    def __enter__(self) -> Waiting:
        self._entered = time.perf_counter()
        if self._start is None:
            self._start = self._entered
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._waited += time.perf_counter() - self._entered

    def share(self) -> float:
        """0 to 1, from the first wait to now; 0 before that."""
        return 0.0 if self._start is None else self._waited / max(time.perf_counter() - self._start, 1e-9)

    def words(self) -> str:
        """As the live line of a run shows it."""
        return f"{self.share():.0%} waiting for data"
