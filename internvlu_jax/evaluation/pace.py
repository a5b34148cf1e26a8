"""How fast a run goes, beside its compiled programs alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from internvlu_jax.inference import programs
from internvlu_jax.inference.pipeline import InternVLUPipeline
from internvlu_jax.parallel.placement import Placement, Program, Tree


@dataclass(frozen=True)
class Pace:
    """Pictures or answers a second.

    run: of the run once it was compiled, files included. compiled: of all programs of a batch, called one after the
    other on what was ready for them. sampler: of that which makes the steps, called alone; None of text.
    """

    run: float
    compiled: float
    sampler: float | None = None


class Stopwatch:
    """A placement that notes for each program how many seconds there are from its call until its results are there."""

    def __init__(self, on: Placement) -> None:
        self._on, self.shards = on, on.shards
        self.seconds: list[tuple[Program, float]] = []

    def place(self, path: str, array: np.ndarray) -> jax.Array:
        return self._on.place(path, array)

    def parameters(self, params: Tree) -> Tree:
        return self._on.parameters(params)

    def put(self, rows: Tree) -> Tree:
        return jax.block_until_ready(self._on.put(rows))

    def run(self, program: Program, model: Any, params: Tree, *arrays: Any, **static: Any) -> Tree:
        began = time.perf_counter()
        made = jax.block_until_ready(self._on.run(program, model, params, *arrays, **static))
        self.seconds.append((program, time.perf_counter() - began))
        return made

    def get(self, tree: Tree, rows: int) -> Tree:
        return self._on.get(tree, rows)

    def agreed(self, number: int) -> int:
        return self._on.agreed(number)


def measured(pipe: InternVLUPipeline, call: Callable[[InternVLUPipeline], Any], rows: int, run: float) -> Pace:
    """The pace of a run beside that of the programs of one more batch, which were compiled before.

    Args:
        call: makes the batch with a pipeline. rows: that come of it. run: of them a second, in the run.
    """
    watch = Stopwatch(pipe.on)
    model = pipe.model
    call(InternVLUPipeline(pipe.config, pipe.params, pipe.processor, model.compute, watch, model.quantization))
    sampler = sum(seconds for program, seconds in watch.seconds if program is programs.draw)
    return Pace(run, rows / sum(seconds for _, seconds in watch.seconds), rows / sampler if sampler else None)
