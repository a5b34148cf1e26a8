"""Where the parameters of a pipeline lie and its programs run: one device, a mesh, or copies under `pmap`.

A program is a pure function (model, params, *arrays, **static), as those of `inference.programs` and `decode` are. Of
its arrays those that were `put` are shared out by row; NumPy arrays and numbers are the same for every device. What it
gives stays where it was made and may go into the next program as it is.

    ids = on.put(ids)                                          # any number of rows, the last repeated as padding
    x = on.run(programs.embed, model, params, ids)
    states = np.asarray(on.get(x, rows))                       # without the padding

On several processes every process makes the same calls with the same prompts, and gets all results. The devices of each
work on its share of the rows, and no process puts more of an array on its devices than that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from internvlu_jax.parallel.config import MeshConfig, mesh_config
from internvlu_jax.parallel.executors import Executor, MeshExecutor, PmapExecutor, make_executor
from internvlu_jax.parallel.mesh import block_on_cpu, replicated, tracing_on
from internvlu_jax.parallel.rules import spec
from internvlu_jax.parallel.steps import AXIS

Tree = Any
Program = Callable[..., Any]

_KEPT = 64  # programs under pmap that stay


@runtime_checkable
class Placement(Protocol):
    """One of the three ways.

    shards: groups of devices that rows are shared out over.
    """

    shards: int

    def place(self, path: str, array: np.ndarray) -> jax.Array:
        """A parameter to the devices, by its path among all."""

    def parameters(self, params: Tree) -> Tree:
        """Parameters that were placed, as arrays of their own shapes."""

    def put(self, rows: Tree) -> Tree:
        """Arrays of the host that lead with equally many rows, random keys among them, to the devices."""

    def run(self, program: Program, model: Any, params: Tree, *arrays: Any, **static: Any) -> Tree:
        """What a program gives, on the devices."""

    def get(self, tree: Tree, rows: int) -> Tree:
        """The first `rows` rows of arrays that lead with rows, all of them on this process."""

    def agreed(self, number: int) -> int:
        """The number that the first process has."""


def placement(devices: str | None) -> Placement:
    """The placement that is called by a name.

    devices: None is one device, the first; "all" shares the rows out over all there are; "pmap" does so under `pmap`,
        on one process; "data=4,tensor=2" and the like are a mesh (`MeshConfig`).

    Raises:
        ValueError: there is no such name, or it does not fit the devices there are.
    """
    if devices is None:
        return OneDevice()
    if devices == "pmap":
        return placement_of(make_executor("pmap", MeshConfig()))
    cfg = mesh_config(devices)
    try:
        executor = make_executor("mesh", cfg)
    except ValueError as error:
        raise ValueError(f"devices is {devices!r}: {error}") from None
    return placement_of(executor)


def placement_of(executor: Executor) -> Placement:
    """The placement of parameters that lie where an executor has placed them."""
    if isinstance(executor, MeshExecutor) and executor.mesh.size > 1:
        return OnMesh(executor)
    return UnderPmap(executor) if isinstance(executor, PmapExecutor) else OneDevice()


class OneDevice:
    """The first device. `get` leaves arrays where they are."""

    shards = 1

    def place(self, path: str, array: np.ndarray) -> jax.Array:
        return jax.device_put(array)

    def parameters(self, params: Tree) -> Tree:
        return params

    def put(self, rows: Tree) -> Tree:
        return jax.tree.map(jnp.asarray, rows)

    def run(self, program: Program, model: Any, params: Tree, *arrays: Any, **static: Any) -> Tree:
        return program(model, params, *arrays, **static)

    def get(self, tree: Tree, rows: int) -> Tree:
        return tree

    def agreed(self, number: int) -> int:
        return number


class OnMesh:
    """Rows along data and fsdp, parameters as `parallel.rules` has them."""

    def __init__(self, executor: MeshExecutor) -> None:
        self._executor = executor
        self.shards = executor.shards

    def place(self, path: str, array: np.ndarray) -> jax.Array:
        where = NamedSharding(self._executor.mesh, spec(path, array.shape, self._executor.mesh))
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    def parameters(self, params: Tree) -> Tree:
        return params

    def put(self, rows: Tree) -> Tree:
        return _put(self._executor, rows, self.shards)

    def run(self, program: Program, model: Any, params: Tree, *arrays: Any, **static: Any) -> Tree:
        with tracing_on(self._executor.mesh):
            return block_on_cpu(program(model, params, *arrays, **static))

    def get(self, tree: Tree, rows: int) -> Tree:
        if jax.process_count() > 1:
            tree = block_on_cpu(_whole(replicated(self._executor.mesh))(tree))
            tree = jax.tree.map(lambda a: a.addressable_data(0), tree)
        return jax.tree.map(lambda a: np.asarray(a)[:rows], tree)

    def agreed(self, number: int) -> int:
        return int(multihost_utils.broadcast_one_to_all(np.uint32(number)))


class UnderPmap:
    """Every device has all parameters and its share of the rows; arrays lead with the axis of devices."""

    def __init__(self, executor: PmapExecutor) -> None:
        self._executor = executor
        self.shards = len(executor.devices)

    def place(self, path: str, array: np.ndarray) -> jax.Array:
        return self._executor.place(array)

    def parameters(self, params: Tree) -> Tree:
        return self._executor.replica(params)

    def put(self, rows: Tree) -> Tree:
        return _put(self._executor, rows, self.shards)

    def run(self, program: Program, model: Any, params: Tree, *arrays: Any, **static: Any) -> Tree:
        leaves, structure = jax.tree.flatten((params, *arrays))
        axes = tuple(0 if isinstance(leaf, jax.Array) else None for leaf in leaves)
        devices = tuple(self._executor.devices)
        mapped = _mapped(program, model, tuple(sorted(static.items())), axes, structure, devices)
        return block_on_cpu(mapped(*leaves))

    def get(self, tree: Tree, rows: int) -> Tree:
        def merged(leaf: jax.Array) -> np.ndarray:
            host = np.asarray(leaf)
            return host.reshape(-1, *host.shape[2:])[:rows]

        return jax.tree.map(merged, tree)

    def agreed(self, number: int) -> int:
        return number


def _put(executor: MeshExecutor | PmapExecutor, rows: Tree, shards: int) -> Tree:
    """Rows to devices, the last one repeated until they can share them."""
    count = jax.tree.leaves(rows)[0].shape[0]
    own = np.minimum(executor.rows(count + -count % shards), count - 1)

    def prepared(leaf: Any) -> np.ndarray:
        return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)[own]

    placed = executor.put(jax.tree.map(prepared, rows))
    return jax.tree.map(lambda leaf, put: jax.random.wrap_key_data(put) if _is_key(leaf) else put, rows, placed)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@lru_cache(_KEPT)
def _mapped(
    program: Program,
    model: Any,
    static: tuple[tuple[str, Any], ...],
    axes: tuple[int | None, ...],
    structure: jax.tree_util.PyTreeDef,
    devices: tuple[jax.Device, ...],
) -> Program:
    """A program under pmap, as a function of the leaves of its trees, each with the axis that is shared out."""

    def by_leaves(*leaves: Any) -> Tree:
        return program(model, *jax.tree.unflatten(structure, leaves), **dict(static))

    return jax.pmap(by_leaves, AXIS, in_axes=axes, devices=devices)


@lru_cache(_KEPT)
def _whole(everywhere: NamedSharding) -> Program:
    return jax.jit(lambda tree: tree, out_shardings=everywhere)
