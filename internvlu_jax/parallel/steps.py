"""One pure training step, compiled for one device, for a mesh, or for `pmap`.

Equal steps at the same place share their programs, so that several runs of one process trace and compile them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from internvlu_jax.data.batch import Batch
from internvlu_jax.parallel.mesh import block_on_cpu, replicated, tracing_on
from internvlu_jax.parallel.rules import shardings

AXIS = "devices"

Tree = Any
Batches = tuple[Batch, ...]

_KEPT = 8  # steps whose programs stay, the latest used


@runtime_checkable
class Step(Protocol):
    """What is compiled: `training.step.Step`. Calling it is a whole step, and the methods are its parts.

    With an axis name the batches are one device's rows, and `totals`, `update` and `measure` sum over that axis.
    """

    def __hash__(self) -> int: ...

    def __call__(
        self, state: Tree, batches: tuple[Batch, ...], key: jax.Array, axis_name: str | None = None
    ) -> Any: ...

    def totals(self, batches: tuple[Batch, ...], axis_name: str | None = None) -> Tree: ...

    def zeros(self, state: Tree) -> Tree: ...

    def gradients(self, state: Tree, batch: Batch, totals: Tree, key: jax.Array) -> Tree: ...

    def update(self, state: Tree, gradients: Tree, axis_name: str | None = None) -> Any: ...

    def measure(self, state: Tree, batch: Batch, key: jax.Array, axis_name: str | None = None) -> Tree: ...


@dataclass(frozen=True)
class Programs:
    """A compiled step: (state, micro-batches, the run's key) -> (state, metrics). The state that goes in is used up.

    One micro-batch is one program. Several are one for each of their shapes, which adds to gradients that are used up,
    and one for the update: as many programs as there are shapes, and not as there are combinations of them.

    whole: (state, batch, key); totals: (batch); pool: (list of totals); zeros: (state); add: (gradients so far, state,
    batch, totals, key); update: (state, gradients). measure: (state, batch, key), which changes nothing. around: what
    they are called and traced within.
    """

    whole: Any
    totals: Any
    pool: Any
    zeros: Any
    add: Any
    update: Any
    measure: Any
    around: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, state: Tree, batches: Batches, key: jax.Array) -> tuple[Tree, dict[str, jax.Array]]:
        with self.around():
            if len(batches) == 1:
                return block_on_cpu(self.whole(state, batches[0], key))
            totals = block_on_cpu(self.pool([block_on_cpu(self.totals(batch)) for batch in batches]))
            gradients = block_on_cpu(self.zeros(state))
            for batch in batches:
                gradients = block_on_cpu(self.add(gradients, state, batch, totals, key))
            return block_on_cpu(self.update(state, gradients))

    def measured(self, state: Tree, batch: Batch, key: jax.Array) -> Tree:
        """What the step measures on a micro-batch; the state stays."""
        with self.around():
            return block_on_cpu(self.measure(state, batch, key))

    def lower(self, state: Tree, batch: Batch, key: jax.Array) -> jax.stages.Lowered:
        """The program of a step of one micro-batch, from arrays or from shapes with their shardings."""
        with self.around():
            return self.whole.lower(state, batch, key)


@lru_cache(_KEPT)
def single_step(step: Step) -> Programs:
    """The step on one device."""
    return Programs(
        whole=jax.jit(lambda state, batch, key: step(state, (batch,), key), donate_argnums=0),
        totals=jax.jit(lambda batch: step.totals((batch,))),
        pool=jax.jit(_pooled),
        # With the state's arrays, though their values do not matter, zeros are where the state is, like later sums.
        zeros=jax.jit(step.zeros, keep_unused=True),
        add=jax.jit(partial(_added, step), donate_argnums=0),
        update=jax.jit(lambda state, gradients: step.update(state, gradients), donate_argnums=0),
        measure=jax.jit(lambda state, batch, key: step.measure(state, batch, key)),
    )


def mesh_step(step: Step, mesh: Mesh, state_shardings: Tree) -> Programs:
    """The step over global arrays: rows along data and fsdp, the state as `state_shardings` says.

    Gradients lie as their parameters do, so each device keeps no more of them than of those.
    """
    where, structure = jax.tree.flatten(state_shardings)
    return _mesh_step(step, mesh, tuple(where), structure)


@lru_cache(_KEPT)
def _mesh_step(
    step: Step, mesh: Mesh, where: tuple[NamedSharding, ...], structure: jax.tree_util.PyTreeDef
) -> Programs:
    one = replicated(mesh)
    # Stated, so that what comes out goes in again without a new program.
    done = (jax.tree.unflatten(structure, where), one)

    def laid(gradients: Tree) -> Tree:
        return jax.lax.with_sharding_constraint(gradients, shardings(gradients, mesh))

    return Programs(
        whole=jax.jit(lambda state, batch, key: step(state, (batch,), key), donate_argnums=0, out_shardings=done),
        totals=jax.jit(lambda batch: step.totals((batch,)), out_shardings=one),
        pool=jax.jit(_pooled, out_shardings=one),
        zeros=jax.jit(lambda state: laid(step.zeros(state))),
        add=jax.jit(lambda *given: laid(_added(step, *given)), donate_argnums=0),
        update=jax.jit(lambda state, gradients: step.update(state, gradients), donate_argnums=0, out_shardings=done),
        measure=jax.jit(lambda state, batch, key: step.measure(state, batch, key), out_shardings=one),
        around=partial(tracing_on, mesh),
    )


def pmap_step(step: Step, devices: Sequence[jax.Device] | None = None) -> Programs:
    """The step over a replicated state: every array leads with the axis of `devices`, all of them by default.

    The state holds one copy for each device, batches hold [devices, rows of each, ...]. Gradients are added up on each
    device and summed over the devices once a step.
    """
    return _pmap_step(step, None if devices is None else tuple(devices))


@lru_cache(_KEPT)
def _pmap_step(step: Step, devices: tuple[jax.Device, ...] | None) -> Programs:
    mapped = partial(jax.pmap, axis_name=AXIS, devices=devices)
    return Programs(
        whole=mapped(
            lambda state, batch, key: step(state, (batch,), key, axis_name=AXIS), in_axes=(0, 0, None), donate_argnums=0
        ),
        totals=mapped(lambda batch: step.totals((batch,), axis_name=AXIS)),
        pool=mapped(_pooled),
        zeros=mapped(step.zeros),
        add=mapped(partial(_added, step), in_axes=(0, 0, 0, 0, None), donate_argnums=0),
        update=mapped(lambda state, gradients: step.update(state, gradients, axis_name=AXIS), donate_argnums=0),
        measure=mapped(lambda state, batch, key: step.measure(state, batch, key, axis_name=AXIS), in_axes=(0, 0, None)),
    )


def _added(step: Step, so_far: Tree, state: Tree, batch: Batch, totals: Tree, key: jax.Array) -> Tree:
    return jax.tree.map(jnp.add, so_far, step.gradients(state, batch, totals, key))


def _pooled(totals: list[Tree]) -> Tree:
    return jax.tree.map(lambda *each: sum(each[1:], each[0]), *totals)
