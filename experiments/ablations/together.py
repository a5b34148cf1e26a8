"""Many seeds in one program: one `vmap` of the training step over parameters, optimizer state and random key.

    python -m experiments.ablations.together [--seeds 2] [--steps 10]    # measures what that saves on this machine

All seeds read the same examples in the same order and differ in their first parameters and in their noise. Each is what
a run of its own would have been, but for the last bits of sums. What is frozen, as an autoencoder, is held and computed
once. Models of a million parameters leave an accelerator idle most of the time, and there this is close to free.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, PRNGKeyArray

from experiments.ablations.world import speed_case
from internvlu_jax.config import ConfigError
from internvlu_jax.data.batch import Batch
from internvlu_jax.training.resuming import LoopState, run_steps
from internvlu_jax.training.step import Step, TrainState
from internvlu_jax.training.throughput import Waiting
from internvlu_jax.utils.compilation import enable_cache
from internvlu_jax.utils.tree import Tree, merge, paths

Steps = Callable[[int], tuple[Batch, ...]]
"""From the number of a step, from 0, to its micro-batches: a pure function, so that a run resumes exactly."""

_PER_SEED: Any = TrainState(step=0, trained=0, frozen=None, opt_state=0, ema=0)
_SHOWN = ("grad_norm", "finite")  # beside the losses


def first_states(step: Step, models: Sequence[Tree]) -> TrainState:
    """The states before the first step, stacked: every leaf but the frozen ones leads with the seeds.

    Args:
        models: all parameters of each seed's model.

    Raises:
        ValueError: there are none, or they differ in what is frozen.
    """
    if not models:
        raise ValueError("there are no seeds; expected one at least")
    states = [step.init(params) for params in models]
    frozen = paths(states[0].frozen)
    for state in states[1:]:
        other = paths(state.frozen)
        differing = [path for path in frozen if not np.array_equal(frozen[path], other[path])]
        if differing:
            raise ValueError(f"{differing[0]} is frozen and differs between seeds; those that train together share it")
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(dataclasses.replace(state, frozen=None) for state in states)
    )
    return dataclasses.replace(stacked, frozen=states[0].frozen)


def state_of(states: TrainState, n: int) -> TrainState:
    """The state of seed number n, from 0."""
    own = jax.tree.map(lambda leaf: leaf[n], dataclasses.replace(states, frozen=None))
    return dataclasses.replace(own, frozen=states.frozen)


def final_params(states: TrainState, n: int) -> Tree:
    """All parameters of seed number n: the moving average where one is kept."""
    state = state_of(states, n)
    return merge(state.frozen, state.trained if state.ema is None else state.ema)


def keys_of(seeds: Sequence[int]) -> PRNGKeyArray:
    """The runs' keys, as `training.loop` has them."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def step_together(
    step: Step, states: TrainState, batches: tuple[Batch, ...], keys: PRNGKeyArray
) -> tuple[TrainState, dict[str, Array]]:
    """One step of every seed on the same micro-batches; metrics have an entry for each seed."""
    return jax.vmap(step, in_axes=(_PER_SEED, None, 0), out_axes=(_PER_SEED, 0))(states, batches, keys)


def train_together(
    step: Step,
    model: Callable[[int], Tree],
    seeds: Sequence[int],
    steps: Steps,
    workdir: Path,
    settings: Mapping[str, Any],
    *,
    save_every: int = 1000,
    quiet: bool = False,
) -> TrainState:
    """Trains all seeds, or goes on with them; returns the states after the last step.

    WORKDIR is that of `run_steps`. A step's metrics are the means over the seeds and, as "loss/3", the number of each
    seed. Where a seed's gradient is not finite its state stays as it is, "finite/3" is 0, and the others go on.

    Args:
        model: from a seed to all parameters of its model before the first step.
        steps: what is read.
        settings: what else the result depends on, as JSON: the data, and what the models are made from.

    Raises:
        ConfigError: the run in `workdir` began under other settings, or seeds are named twice.
        Stopped: SIGTERM or Ctrl-C came; the same call goes on.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds are {list(seeds)}; expected each once, and at least one")
    keys, frozen, waiting = keys_of(seeds), None, Waiting()

    def init() -> LoopState:
        nonlocal frozen
        states = first_states(step, [model(seed) for seed in seeds])
        frozen = states.frozen
        return _saved(states)

    def advance(state: LoopState, number: int) -> tuple[LoopState, dict[str, Array]]:
        with waiting:
            batches = steps(number)
        states, metrics = _program(step, tuple(seeds), _restored(state, frozen), batches, keys)
        return _saved(states), metrics

    whole = {
        "seeds": list(seeds),
        "steps": step.steps,
        "optimizer": dataclasses.asdict(step.optimizer),
        "objective": dataclasses.asdict(step.objective.cfg),
        "study": dict(settings),
    }
    state = run_steps(
        Path(workdir), whole, init, advance, steps=step.steps, save_every=save_every, quiet=quiet, speed=waiting.words
    )
    return _restored(state, frozen)


def _saved(states: TrainState) -> LoopState:
    """As `RunCheckpoints` saves them; a seed that skipped a step has a count of its own."""
    return LoopState(states.trained, {"step": states.step, "optimizer": states.opt_state}, states.ema)


def _restored(state: LoopState, frozen: Tree) -> TrainState:
    return TrainState(state.opt_state["step"], state.trained, frozen, state.opt_state["optimizer"], state.ema)


@partial(jax.jit, static_argnums=(0, 1))
def _program(
    step: Step, seeds: tuple[int, ...], states: TrainState, batches: tuple[Batch, ...], keys: PRNGKeyArray
) -> tuple[TrainState, dict[str, Array]]:
    """One step of every seed, and what is told of it."""
    states, metrics = step_together(step, states, batches, keys)
    names = ("loss", *(f"{term}_loss" for term in step.objective.weights), *_SHOWN)
    values = {name: metrics[name].astype(jnp.float32) for name in names}
    means = {name: jnp.mean(value) for name, value in values.items()}
    each = {f"{name}/{seed}": value[n] for name, value in values.items() for n, seed in enumerate(seeds)}
    return states, means | each


# What it saves


@dataclass(frozen=True)
class Arguments:
    seeds: int = 2
    steps: int = 10
    """Steps that are timed, after one that compiles."""
    rows: int = 32
    """Pictures of a step; as many edits, and a quarter as many rows of questions."""


def seconds(
    program: Callable[..., Any], states: TrainState, batches: tuple[Batch, ...], keys: Any, steps: int
) -> float:
    """Seconds that so many steps take, compiled before."""
    states, _ = jax.block_until_ready(program(states, batches, keys))
    start = time.perf_counter()
    for _ in range(steps):
        states, _ = program(states, batches, keys)
    jax.block_until_ready(states)
    return time.perf_counter() - start


def main(arguments: Arguments) -> int:
    """Prints seconds a step of one seed, and of all together, and the ratio to as many steps one by one."""
    enable_cache()
    step, models, batches = speed_case(arguments.seeds, arguments.rows)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    print(f"{jax.devices()[0].device_kind}, {cores} cores; {sum(len(b.index) for b in batches)} rows a step")
    keys = keys_of(range(arguments.seeds))
    alone = seconds(jax.jit(step), step.init(models[0]), batches, keys[0], arguments.steps) / arguments.steps
    all_of_them = jax.jit(lambda *args: step_together(step, *args))
    together = seconds(all_of_them, first_states(step, models), batches, keys, arguments.steps) / arguments.steps
    print(f"one seed: {alone:.3f} s a step; {arguments.seeds} together: {together:.3f} s")
    print(f"together takes {together / (arguments.seeds * alone):.2f} of the time of one by one")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
