"""A run's parameters as a table: what is trained, how fast, and where it lies."""

from __future__ import annotations

import math

import jax
from rich.console import Console
from rich.table import Table

from internvlu_jax.training.optimizer import Factors
from internvlu_jax.training.step import TrainState
from internvlu_jax.utils.tree import merge, paths

_WIDTH = 110


def parameter_table(state: TrainState, factors: Factors) -> Table:
    """One row per parameter: path, shape, dtype, sharding, and the factor of its learning rate."""
    table = Table("parameter", "shape", "dtype", "sharding", "trained")
    for path, leaf in paths(merge(state.trained, state.frozen)).items():
        rate = factors.rates[path]
        trained = "frozen" if rate == 0 else "yes" if rate == 1 else f"rate x {rate:g}"
        table.add_row(path, "x".join(map(str, leaf.shape)) or "1", leaf.dtype.name, _sharding(leaf), trained)
    return table


def _sharding(leaf: jax.Array) -> str:
    spec = getattr(leaf.sharding, "spec", None)
    if spec is None or not any(spec):
        return "" if leaf.sharding.num_devices == 1 else "replicated"
    return ", ".join("-" if axis is None else str(axis) for axis in spec)


def summary(state: TrainState, devices: int) -> str:
    """Numbers trained and frozen, and on how many devices, in words."""
    trained, frozen = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for tree in (state.trained, state.frozen)
    )
    return f"{trained:,} numbers trained, {frozen:,} frozen, on {devices} device(s)"


def show(state: TrainState, factors: Factors, devices: int) -> None:
    """Prints both on standard error, paths whole however narrow the terminal is."""
    console = Console(stderr=True)
    console.width = max(console.width, _WIDTH)
    console.print(parameter_table(state, factors))
    console.print(summary(state, devices))
