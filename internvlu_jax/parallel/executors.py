"""Three ways to run a step, behind one interface that the training loop uses.

    mesh     jit over a (data, fsdp, tensor) mesh, on one process or many
    pmap     replicated weights on the devices of one process
    single   one device
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from internvlu_jax.training.config import MeshConfig

Tree = Any


class Executor(Protocol):
    """Where a run's state lives and how its steps run.

    shards: groups of devices that rows are shared out over.
    """

    shards: int

    def rows(self, batch_rows: int) -> Sequence[int]:
        """The rows of a micro-batch that this process loads. Raises ValueError if the devices cannot share them."""

    def put(self, batch: Tree) -> Tree:
        """A micro-batch's arrays, with the rows of `rows`, to the devices."""

    def place(self, tree: Tree) -> Tree:
        """Host arrays of parameters to the devices."""

    def init(self, function: Callable[..., Tree], *args: Any) -> Tree:
        """What a function makes, born where it is to stay."""

    def abstract(self, shapes: Tree) -> Tree:
        """Shapes with the shardings that a checkpoint is read to."""

    def savable(self, state: Tree) -> Tree:
        """The state as a checkpoint holds it."""

    def from_saved(self, state: Tree) -> Tree:
        """The inverse of `savable`."""

    def compile(self, step: Any) -> None:
        """Says which step `step` runs."""

    def step(self, state: Tree, batches: tuple[Tree, ...], key: Any) -> tuple[Tree, dict[str, Any]]:
        """One step; the state is given away."""

    def replica(self, tree: Tree) -> Tree:
        """Values that are the same on all devices, once."""

    def local(self, tree: Tree, dtype: str | None = None) -> Tree:
        """The whole tree on one device of this process; floating point in `dtype` if given."""


class SingleExecutor:
    """One device."""

    shards = 1

    def rows(self, batch_rows: int) -> Sequence[int]:
        return range(batch_rows)

    def put(self, batch: Tree) -> Tree:
        return jax.tree.map(jnp.asarray, batch)

    def place(self, tree: Tree) -> Tree:
        return jax.tree.map(jnp.asarray, tree)

    def init(self, function: Callable[..., Tree], *args: Any) -> Tree:
        return jax.jit(function)(*args)

    def abstract(self, shapes: Tree) -> Tree:
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes)

    def savable(self, state: Tree) -> Tree:
        return state

    def from_saved(self, state: Tree) -> Tree:
        return jax.tree.map(jnp.asarray, state)

    def compile(self, step: Any) -> None:
        self._whole = jax.jit(step, donate_argnums=0)
        self._totals, self._zeros = jax.jit(step.totals), jax.jit(step.zeros)
        self._add = jax.jit(
            lambda state, sums, *rest: jax.tree.map(jnp.add, sums, step.gradients(state, *rest)), donate_argnums=1
        )
        self._update = jax.jit(step.update, donate_argnums=0)

    def step(self, state: Tree, batches: tuple[Tree, ...], key: Any) -> tuple[Tree, dict[str, Any]]:
        if len(batches) == 1:
            return self._whole(state, batches, key)
        totals, gradients = self._totals(batches), self._zeros(state)
        for batch in batches:
            gradients = self._add(state, gradients, batch, totals, key)
        return self._update(state, gradients)

    def replica(self, tree: Tree) -> Tree:
        return tree

    def local(self, tree: Tree, dtype: str | None = None) -> Tree:
        return cast(tree, dtype)


def cast(tree: Tree, dtype: str | None) -> Tree:
    """Floating point arrays in `dtype`."""
    if dtype is None:
        return tree
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, np.floating) else a, tree)


def make_executor(kind: str, mesh: MeshConfig) -> Executor:
    """The executor of a configuration."""
    return SingleExecutor()
