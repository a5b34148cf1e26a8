"""Seconds, memory and share of the peak of one training step, on one device, from random weights."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments import memory
from experiments.benchmark import normal
from experiments.configs import CONFIGS
from experiments.rows import Row
from internvlu_jax.parallel.steps import single_step
from internvlu_jax.presets import PRESETS
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.step import TrainState
from internvlu_jax.utils.devices import bfloat16_peak
from internvlu_jax.utils.flops import count_flops

# Rows of a micro-batch. Stage 3 keeps 64 GB of one card for its state and gradients.
ROWS = {("released", "stage1"): 16, ("released", "stage3"): 1, ("debug", "stage1"): 2, ("debug", "stage3"): 1}
_REPEATS = 3


def rows(name: Literal["stage1", "stage3", "debug"], count: int) -> list[Row]:
    """A row for each kind of micro-batch that a stage reads; where one does not fit the device, its row says so."""
    cfg = CONFIGS[name]
    step, shapes = memory.step_of(cfg)
    init, key = jax.jit(step.init, donate_argnums=0), jax.random.key(0)
    state, whole = init(normal(shapes)), single_step(step).whole
    found = []
    for kind, like in memory.batches(cfg, PRESETS[cfg.model](), count).items():
        batch = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), like)
        row: Row = {"micro-batch": kind, "rows": count}
        begin = time.perf_counter()
        try:
            program = whole.lower(state, batch, key).compile()
            row |= {"compile, s": time.perf_counter() - begin, "memory, GB": _gigabytes(program.memory_analysis())}
            state, seconds = _seconds(program, state, batch, key)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found.append(row | {"memory, GB": "too much for this device"})
            del state  # a program that was begun has taken it
            state = init(normal(shapes))
            continue
        tflop = operations(cfg, state, like) / 1e12
        row |= {"s a step": seconds, "rows/s": count / seconds, "TFLOP": tflop, "TFLOP/s": tflop / seconds}
        peak = bfloat16_peak()
        found.append(row | ({"of peak": 1e12 * tflop / seconds / peak} if peak else {}))
    return found


def operations(cfg: TrainConfig, state: TrainState, batch: Any) -> int:
    """Of the gradients of a micro-batch, nothing being computed twice."""
    compute = dataclasses.replace(cfg.compute, remat="none", attention="xla")
    step, _ = memory.step_of(dataclasses.replace(cfg, compute=compute))
    totals = jax.eval_shape(step.totals, (batch,))
    return count_flops(step.gradients, state, batch, totals, jax.random.key(0))


def _seconds(program: Any, state: TrainState, batch: Any, key: Any) -> tuple[TrainState, float]:
    taken = []
    for _ in range(_REPEATS + 1):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, batch, key))
        taken.append(time.perf_counter() - begin)
    return state, min(taken[1:])


def _gigabytes(sizes: Any) -> float:
    """Of all that the program holds at once; what comes out lies where the state was."""
    return (sizes.argument_size_in_bytes + sizes.temp_size_in_bytes) / 1e9
