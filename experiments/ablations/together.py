"""Many runs in one program: one `vmap` of the training step over parameters, optimizer state, random key and rates.

    python -m experiments.ablations.together [--seeds 2] [--steps 10]    # measures what that saves on this machine

All members read the same examples in the same order. They differ in their seeds, and so in their first parameters and
their noise, or in their learning rates and weights of losses. Each is what a run of its own would have been, but for
the last bits of sums. What is frozen, as an autoencoder, is held and computed once. Models of a million parameters
leave an accelerator idle most of the time, and there this is close to free.

There is a program for the gradients of each kind of micro-batch, and one for the update: runs that read some of the
kinds share them, and rates, weights and the length of a run are arguments, so that tuning compiles nothing of its own.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.ablations.world import speed_case
from experiments.command import command
from internvlu_jax.config import ConfigError
from internvlu_jax.data.batch import Batch
from internvlu_jax.training.losses import Terms
from internvlu_jax.training.optimizer import risen_and_fallen
from internvlu_jax.training.resuming import LoopState, run_steps
from internvlu_jax.training.step import Gradients, Step, TrainState
from internvlu_jax.training.throughput import Waiting
from internvlu_jax.utils.compilation import enable_cache
from internvlu_jax.utils.tree import Tree, merge, paths

Steps = Callable[[int], tuple[Batch, ...]]
"""From the number of a step, from 0, to its micro-batches: a pure function, so that a run resumes exactly."""

_PER_MEMBER: Any = TrainState(step=0, trained=0, frozen=None, opt_state=0, ema=0)
_SHOWN = ("grad_norm", "finite")  # beside the losses


@dataclass(frozen=True)
class Member:
    """One of the runs that train together.

    seed: of its first parameters and of its noise.
    learning_rate: in place of the step's.
    weights: of terms, in place of the objective's; of some of its terms, the same ones in all members.
    """

    seed: int
    learning_rate: float | None = None
    weights: tuple[tuple[str, float], ...] = ()


class Knobs(NamedTuple):
    """What members may differ in, and the length of the run: arguments of the programs, not part of them."""

    keys: PRNGKeyArray  # [m]
    learning_rate: Float[Array, "m"]
    weights: dict[str, Float[Array, "m"]]
    steps: Array  # []


_PER_MEMBER_KNOBS: Any = Knobs(0, 0, 0, None)  # type: ignore[arg-type]


def knobs_of(step: Step, members: Sequence[Member], steps: int | None = None) -> Knobs:
    """The members' keys are as `training.loop` has them. steps: of the run, where it is not that of `step`."""
    weights = [{**step.objective.weights, **dict(member.weights)} for member in members]
    rates = [step.optimizer.learning_rate if m.learning_rate is None else m.learning_rate for m in members]
    return Knobs(
        jax.vmap(jax.random.key)(jnp.asarray([member.seed for member in members], jnp.uint32)),
        jnp.asarray(rates, jnp.float32),
        {name: jnp.asarray([own[name] for own in weights], jnp.float32) for name in step.objective.weights},
        jnp.asarray(step.steps if steps is None else steps, jnp.float32),
    )


def first_states(step: Step, models: Sequence[Tree]) -> TrainState:
    """The states before the first step, stacked: every leaf but the frozen ones leads with the members.

    Args:
        models: all parameters of each member's model.

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
    """The state of member number n, from 0."""
    own = jax.tree.map(lambda leaf: leaf[n], dataclasses.replace(states, frozen=None))
    return dataclasses.replace(own, frozen=states.frozen)


def final_params(states: TrainState, n: int) -> Tree:
    """All parameters of member number n: the moving average where one is kept."""
    state = state_of(states, n)
    return merge(state.frozen, state.kept)


def step_together(
    step: Step, states: TrainState, batches: tuple[Batch, ...], knobs: Knobs
) -> tuple[TrainState, dict[str, Array]]:
    """One step of every member on the same micro-batches; metrics have an entry for each member."""
    return _update(step, states, gradients_together(step, states, batches, knobs), knobs)


def gradients_together(step: Step, states: TrainState, batches: tuple[Batch, ...], knobs: Knobs) -> Gradients:
    """The gradients of one step, of every member."""
    totals, gradients = _totals(step, batches), _zeros(step, states)
    for batch in batches:
        gradients = _gradients(step, states, batch, totals, knobs, gradients)
    return gradients


def compile_together(step: Step, states: TrainState, batches: tuple[Batch, ...], knobs: Knobs) -> None:
    """Compiles what `step_together` runs, a thread for each program: XLA leaves Python to the others meanwhile."""
    totals, zeros = _totals(step, batches), _zeros(step, states)
    with ThreadPoolExecutor() as threads:
        ready = [
            threads.submit(_gradients.lower(step, states, batch, totals, knobs, zeros).compile) for batch in batches
        ]
        ready.append(threads.submit(_update.lower(step, states, zeros, knobs).compile))
        for program in ready:
            program.result()


@partial(jax.jit, static_argnums=0)
def _totals(step: Step, batches: tuple[Batch, ...]) -> Terms:
    return step.totals(batches)


@partial(jax.jit, static_argnums=0)
def _zeros(step: Step, states: TrainState) -> Gradients:
    return jax.vmap(step.zeros, in_axes=(_PER_MEMBER,))(states)


@partial(jax.jit, static_argnums=0)
def _gradients(
    step: Step, states: TrainState, batch: Batch, totals: Terms, knobs: Knobs, before: Gradients
) -> Gradients:
    """What a micro-batch adds, put to what those before it added: one program for a kind, whichever comes first."""

    def one(state: TrainState, own: Knobs) -> Gradients:
        return step.gradients(state, batch, totals, own.keys, own.weights)

    added = jax.vmap(one, in_axes=(_PER_MEMBER, _PER_MEMBER_KNOBS))(states, knobs)
    return jax.tree.map(jnp.add, before, added)


@partial(jax.jit, static_argnums=0)
def _update(step: Step, states: TrainState, gradients: Gradients, knobs: Knobs) -> tuple[TrainState, dict[str, Array]]:
    def one(state: TrainState, gradient: Gradients, own: Knobs) -> tuple[TrainState, dict[str, Array]]:
        rate = risen_and_fallen(step.optimizer, own.learning_rate, own.steps)
        return step.update(state, gradient, weights=own.weights, rate=rate)

    axes = (_PER_MEMBER, 0, _PER_MEMBER_KNOBS)
    return jax.vmap(one, in_axes=axes, out_axes=(_PER_MEMBER, 0))(states, gradients, knobs)


def train_together(
    step: Step,
    model: Callable[[int], Tree],
    members: Sequence[Member],
    steps: Steps,
    workdir: Path,
    settings: Mapping[str, Any],
    *,
    looks: Mapping[int, Callable[[TrainState], None]] = {},
    count: int | None = None,
    save_every: int = 1000,
    quiet: bool = False,
) -> TrainState:
    """Trains all members, or goes on with them; returns the states after the last step.

    WORKDIR is that of `run_steps`. A step's metrics are the means over the members and, as "loss/3", the number of each
    member, from 0. Where a member's gradient is not finite its state stays as it is, "finite/3" is 0, and the others go
    on.

    Args:
        model: from a seed to all parameters of its model before the first step.
        looks: what is called with the states after so many steps; not again where a run goes on behind them.
        steps: what is read. count: how many there are, where not as many as `step` says.
        settings: what else the result depends on, as JSON: the data, and what the models are made from.

    Raises:
        ConfigError: the run in `workdir` began under other settings, or members are named twice.
        Stopped: SIGTERM or Ctrl-C came; the same call goes on.
    """
    if not members or len(set(members)) != len(members):
        raise ConfigError(f"members are {list(members)}; expected each once, and at least one")
    count = step.steps if count is None else count
    knobs, frozen, waiting, compiled = knobs_of(step, members, count), None, Waiting(), False

    def init() -> LoopState:
        nonlocal frozen
        states = first_states(step, [model(member.seed) for member in members])
        frozen = states.frozen
        return _saved(states)

    def advance(state: LoopState, number: int) -> tuple[LoopState, dict[str, Array]]:
        nonlocal compiled
        with waiting:
            batches = steps(number)
        before = _restored(state, frozen)
        if not compiled:
            compile_together(step, before, batches, knobs)
            compiled = True
        states, metrics = step_together(step, before, batches, knobs)
        if number + 1 in looks:
            looks[number + 1](states)
        return _saved(states), _told(step, metrics, len(members))

    whole = {
        "members": [dataclasses.asdict(member) for member in members],
        "steps": count,
        "optimizer": dataclasses.asdict(step.optimizer),
        "objective": dataclasses.asdict(step.objective.cfg),
        "study": dict(settings),
    }
    state = run_steps(
        Path(workdir), whole, init, advance, steps=count, save_every=save_every, quiet=quiet, speed=waiting.words,
        must_be_finite=False,
    )  # fmt: skip
    return _restored(state, frozen)


def _saved(states: TrainState) -> LoopState:
    """As `RunCheckpoints` saves them; a member that skipped a step has a count of its own."""
    return LoopState(states.trained, {"step": states.step, "optimizer": states.opt_state}, states.ema)


def _restored(state: LoopState, frozen: Tree) -> TrainState:
    return TrainState(state.opt_state["step"], state.trained, frozen, state.opt_state["optimizer"], state.ema)


def _told(step: Step, metrics: dict[str, Array], members: int) -> dict[str, Array]:
    return _each({name: metrics[name] for name in _names(step)}, members)


def _names(step: Step) -> tuple[str, ...]:
    return "loss", *(f"{term}_loss" for term in step.objective.weights), *_SHOWN


@partial(jax.jit, static_argnums=1)
def _each(metrics: dict[str, Array], members: int) -> dict[str, Array]:
    """Means over the members, and the numbers of each."""
    values = {name: value.astype(jnp.float32) for name, value in metrics.items()}
    means = {name: jnp.mean(value) for name, value in values.items()}
    return means | {f"{name}/{n}": value[n] for name, value in values.items() for n in range(members)}


# What it saves


@dataclass(frozen=True)
class Arguments:
    seeds: int = 2
    steps: int = 10
    """Steps that are timed, after one that compiles."""
    rows: int = 32
    """Pictures of a step; as many edits, and a quarter as many rows of questions."""


def seconds(step: Step, models: Sequence[Tree], batches: tuple[Batch, ...], steps: int) -> float:
    """Seconds a step of as many members as there are models, compiled before."""
    states, knobs = first_states(step, models), knobs_of(step, [Member(n) for n in range(len(models))])
    states, _ = jax.block_until_ready(step_together(step, states, batches, knobs))
    start = time.perf_counter()
    for _ in range(steps):
        states, _ = step_together(step, states, batches, knobs)
    jax.block_until_ready(states)
    return (time.perf_counter() - start) / steps


def main(arguments: Arguments) -> int:
    """Prints seconds a step of one seed, and of all together, and the ratio to as many steps one by one."""
    enable_cache()
    step, models, batches = speed_case(arguments.seeds, arguments.rows)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    print(f"{jax.devices()[0].device_kind}, {cores} cores; {sum(len(b.index) for b in batches)} rows a step")
    alone = seconds(step, models[:1], batches, arguments.steps)
    together = seconds(step, models, batches, arguments.steps)
    print(f"one seed: {alone:.3f} s a step; {arguments.seeds} together: {together:.3f} s")
    print(f"together takes {together / (arguments.seeds * alone):.2f} of the time of one by one")
    return 0


if __name__ == "__main__":
    command(main, Arguments, "experiments.ablations.together", __doc__)
