"""Three ways to run a step, behind one interface that the training loop uses.

    mesh     jit over a (data, fsdp, tensor) mesh, on one process or many
    pmap     replicated weights on the devices of one process
    single   one device

The same global batch and key give the same result under each, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from internvlu_jax.data.batch import Batch
from internvlu_jax.parallel.config import MeshConfig
from internvlu_jax.parallel.mesh import block_on_cpu, make_mesh, rows_sharding, tracing_on
from internvlu_jax.parallel.rules import shardings
from internvlu_jax.parallel.steps import AXIS, Programs, Step, mesh_step, pmap_step, single_step

Tree = Any


@runtime_checkable
class Executor(Protocol):
    """Where a run's state lives and how its steps run.

    shards: groups of devices that the rows of one program are shared out over.
    device_count: devices that work, of all processes; the machine may have more.
    """

    shards: int
    device_count: int

    def rows(self, batch_rows: int) -> Sequence[int]:
        """The rows of a micro-batch that this process loads. Raises ValueError if the devices cannot share them."""

    def put(self, batch: Tree) -> Tree:
        """A micro-batch, or another tree of arrays that lead with the rows of `rows`, to the devices."""

    def place(self, tree: Tree) -> Tree:
        """Host arrays of parameters, the same on every process, to the devices."""

    def init(self, function: Callable[..., Tree], *args: Any) -> Tree:
        """What a function makes, born where it is to stay. Its arguments are random keys, and trees that are placed."""

    def abstract(self, shapes: Tree) -> Tree:
        """Shapes with the shardings that a checkpoint is read to."""

    def savable(self, state: Tree) -> Tree:
        """The state as a checkpoint holds it."""

    def from_saved(self, state: Tree) -> Tree:
        """The inverse of `savable`; arrays of the host are taken too."""

    def compile(self, step: Step) -> None:
        """Says which step `step` runs."""

    def step(self, state: Tree, batches: tuple[Batch, ...], key: jax.Array) -> tuple[Tree, dict[str, Any]]:
        """(state, metrics) after one step of micro-batches that were `put`; the state that goes in is used up."""

    def measure(self, state: Tree, batch: Batch, key: jax.Array) -> Tree:
        """What the step measures on a micro-batch that was `put`, over all its rows; the state stays."""

    def replica(self, tree: Tree) -> Tree:
        """Values that are the same on all devices, once."""


def make_executor(kind: str, mesh: MeshConfig) -> Executor:
    """The executor of a configuration: "mesh", "pmap" or "single".

    Raises:
        ValueError: the mesh does not fit the devices, or several processes want anything but a mesh.
    """
    if kind == "mesh":
        return MeshExecutor(make_mesh(mesh))
    if jax.process_count() > 1:
        raise ValueError(f"executor {kind!r} runs on one process, and there are {jax.process_count()}; use 'mesh'")
    return PmapExecutor() if kind == "pmap" else SingleExecutor()


class SingleExecutor:
    """One device, the first.

    States are committed to it, however they are made: what a program gives back is, and a state that is not needs
    another program.
    """

    shards = device_count = 1

    def __init__(self) -> None:
        self._here = SingleDeviceSharding(jax.devices()[0])

    def rows(self, batch_rows: int) -> Sequence[int]:
        return range(batch_rows)

    def put(self, batch: Tree) -> Tree:
        return jax.tree.map(jnp.asarray, batch)

    def place(self, tree: Tree) -> Tree:
        return jax.device_put(tree, self._here)

    def init(self, function: Callable[..., Tree], *args: Any) -> Tree:
        return jax.jit(function, out_shardings=self._here)(*args)

    def abstract(self, shapes: Tree) -> Tree:
        return _shapes_at(shapes, self._here)

    def savable(self, state: Tree) -> Tree:
        return state

    def from_saved(self, state: Tree) -> Tree:
        return self.place(state)

    def compile(self, step: Step) -> None:
        self._programs = single_step(step)

    def step(self, state: Tree, batches: tuple[Batch, ...], key: jax.Array) -> tuple[Tree, dict[str, Any]]:
        return self._programs(state, batches, key)

    def measure(self, state: Tree, batch: Batch, key: jax.Array) -> Tree:
        return self._programs.measured(state, batch, key)

    def replica(self, tree: Tree) -> Tree:
        return tree


class MeshExecutor:
    """The devices of a mesh (`mesh.make_mesh`), of all processes."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._by_row = rows_sharding(mesh)
        self.shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.device_count = mesh.size
        self._step: Step | None = None
        self._programs: Programs | None = None

    def rows(self, batch_rows: int) -> Sequence[int]:
        _check_rows(batch_rows, self.shards, f"{self.shards} groups of devices, mesh.data x mesh.fsdp")
        own = {_start(index) for index in self._by_row.addressable_devices_indices_map((batch_rows,)).values()}
        share = batch_rows // self.shards
        return [row for start in sorted(own) for row in range(start, start + share)]

    def put(self, batch: Tree) -> Tree:
        local = jax.tree.leaves(batch)[0].shape[0]
        total = local * self.shards // len(self.rows(self.shards))
        position = {row: n for n, row in enumerate(self.rows(total))}

        def place(array: np.ndarray) -> jax.Array:
            def share(index: Any) -> np.ndarray:
                first = position[_start(index)]
                return array[first : first + total // self.shards]

            return jax.make_array_from_callback((total, *array.shape[1:]), self._by_row, share)

        return jax.tree.map(place, batch)

    def place(self, tree: Tree) -> Tree:
        return jax.tree.map(_placed, tree, shardings(tree, self.mesh))

    def init(self, function: Callable[..., Tree], *args: Any) -> Tree:
        with tracing_on(self.mesh):  # for both, so that it is traced once
            where = shardings(jax.eval_shape(function, *args), self.mesh)
            return block_on_cpu(jax.jit(function, out_shardings=where)(*args))

    def abstract(self, shapes: Tree) -> Tree:
        where = shardings(shapes, self.mesh)
        return jax.tree.map(lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where)

    def savable(self, state: Tree) -> Tree:
        return state

    def from_saved(self, state: Tree) -> Tree:
        return self.place(state)

    def compile(self, step: Step) -> None:
        self._step, self._programs = step, None

    def step(self, state: Tree, batches: tuple[Batch, ...], key: jax.Array) -> tuple[Tree, dict[str, Any]]:
        return self._of(state)(state, batches, key)

    def measure(self, state: Tree, batch: Batch, key: jax.Array) -> Tree:
        return self._of(state).measured(state, batch, key)

    def _of(self, state: Tree) -> Programs:
        if self._programs is None:
            assert self._step is not None, "compile comes first"
            self._programs = mesh_step(self._step, self.mesh, shardings(state, self.mesh))
        return self._programs

    def replica(self, tree: Tree) -> Tree:
        return tree


class PmapExecutor:
    """Every device has the whole state, and its share of the rows. Arrays lead with the axis of devices."""

    shards = 1

    def __init__(self, devices: Sequence[jax.Device] | None = None) -> None:
        self.devices = jax.local_devices() if devices is None else list(devices)
        self.device_count = len(self.devices)
        self._by_device = NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec(AXIS))

    def rows(self, batch_rows: int) -> Sequence[int]:
        _check_rows(batch_rows, len(self.devices), f"{len(self.devices)} devices under pmap")
        return range(batch_rows)

    def put(self, batch: Tree) -> Tree:
        count = len(self.devices)
        return jax.tree.map(
            lambda a: jax.device_put(a.reshape(count, a.shape[0] // count, *a.shape[1:]), self._by_device), batch
        )

    def place(self, tree: Tree) -> Tree:
        def copies(leaf: Any) -> jax.Array:
            each = [jax.device_put(leaf[None], device) for device in self.devices]
            return jax.make_array_from_single_device_arrays((len(each), *leaf.shape), self._by_device, each)

        return jax.tree.map(copies, tree)

    def init(self, function: Callable[..., Tree], *args: Any) -> Tree:
        axes = jax.tree.map(lambda leaf: None if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else 0, args)
        count = len(self.devices)  # pmap wants an argument that differs by device, and keys do not
        made = jax.pmap(lambda _, *given: function(*given), AXIS, in_axes=(0, *axes), devices=self.devices)
        return block_on_cpu(made(np.zeros(count), *args))

    def abstract(self, shapes: Tree) -> Tree:
        return _shapes_at(shapes, SingleDeviceSharding(self.devices[0]))

    def savable(self, state: Tree) -> Tree:
        return self.replica(state)

    def from_saved(self, state: Tree) -> Tree:
        return self.place(state)

    def compile(self, step: Step) -> None:
        self._programs = pmap_step(step, self.devices)

    def step(self, state: Tree, batches: tuple[Batch, ...], key: jax.Array) -> tuple[Tree, dict[str, Any]]:
        return self._programs(state, batches, key)

    def measure(self, state: Tree, batch: Batch, key: jax.Array) -> Tree:
        return self.replica(self._programs.measured(state, batch, key))

    def replica(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], tree)


def _check_rows(batch_rows: int, groups: int, words: str) -> None:
    if batch_rows < 1 or batch_rows % groups:
        below, above = batch_rows // groups * groups, (batch_rows // groups + 1) * groups
        fits = f"{below} or {above}" if below else str(above)
        raise ValueError(f"a batch of {batch_rows} rows cannot be shared out over {words}; the next sizes are {fits}")


def _start(index: Any) -> int:
    """The first row of an index that a sharding gives."""
    return index[0].start or 0


def _placed(leaf: Any, where: NamedSharding) -> jax.Array:
    """A host array to the devices, each process giving its own; what already lies there stays."""
    if isinstance(leaf, jax.Array) and leaf.sharding == where:
        return leaf
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def _shapes_at(shapes: Tree, where: SingleDeviceSharding) -> Tree:
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes)
