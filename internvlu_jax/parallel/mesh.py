"""Devices as a mesh of three axes, and the processes that bring them.

Axes: data and fsdp share out the rows of a batch; fsdp shares out every large parameter too, which is gathered where it
is used; tensor shares out heads, the width of the MLPs and the vocabulary.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from internvlu_jax.ops.axes import GROUP_ROWS, HEADS, ROWS, VOCABULARY
from internvlu_jax.parallel.config import MeshConfig

AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")
_PATIENCE = 5.0  # seconds that a process which fails gives the others to fail with it
_LOGICAL = ((ROWS, ROW_AXES), (GROUP_ROWS, ("data",)), (HEADS, ("tensor",)), (VOCABULARY, ("fsdp", "tensor")))


def initialise(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins this process to the others of a run; call it before anything else touches JAX.

    On TPU pods, and on GPU clusters under Slurm or Open MPI, JAX finds out by itself who takes part:

        TPU pod:   the same command on every host, `gcloud compute tpus tpu-vm ssh NAME --worker=all --command=...`
        Slurm:     `srun --ntasks-per-node=8 --gpus-per-task=1 ...`, one process for each GPU
        otherwise: one process a host, each with the address of process 0, their number, and its own number

    A mesh then spans the devices of all processes. Let `tensor`, and `fsdp` as far as it goes, stay within a host:
    devices of one host are neighbours in the mesh, with `tensor` innermost.

    Args:
        coordinator: "host:port" of process 0; None where JAX finds it.
        processes, process: how many there are and which this is; None likewise.

    Raises:
        ValueError: only some of the three are given.
    """
    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise ValueError(
            f"coordinator {coordinator!r}, processes {processes!r}, process {process!r}: give all three, or none where "
            "the cluster tells them"
        )
    jax.distributed.initialize(coordinator, processes, process)


def leave(status: int) -> NoReturn:
    """Ends this process, and with it the run of all that `initialise` joined; for one that has failed and said so.

    Where all fail alike they meet here, and JAX lets them go. Where one fails alone, the others may be in a step that
    never ends, and it does not wait for them, as Python would at its end for minutes: they end when they miss it, which
    JAX tells them at once, or after 100 s where it is not process 0. Threads and `atexit` are left as they are.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    meeting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    meeting.start()
    meeting.join(_PATIENCE)
    os._exit(status)


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a configuration over `devices`, all of the run by default.

    Raises:
        ValueError: the sizes do not use exactly the devices there are.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = _resolved(cfg, len(devices))
    return Mesh(_arranged(devices, shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _resolved(cfg: MeshConfig, devices: int) -> tuple[int, ...]:
    """Sizes with -1 replaced by what is left."""
    sizes = {name: getattr(cfg, name) for name in AXES}
    shown = ", ".join(f"mesh.{name} {size}" for name, size in sizes.items())
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"{shown}: expected numbers of devices, at least 1, and -1 at most once")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if devices % fixed or (not free and fixed != devices):
        fits = [n for n in range(1, devices + 1) if devices % n == 0]
        raise ValueError(
            f"{shown}: there are {devices} devices, and the product must be that. Sizes that divide them: "
            f"{', '.join(map(str, fits))}; -1 takes what is left"
        )
    return tuple(devices // fixed if size == -1 else size for size in sizes.values())


def _arranged(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Devices in an order where neighbours are near; slices with slow links between them lie along an outer axis."""
    slices: dict[int, list[Any]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    axis = next((n for n in range(len(shape)) if shape[n] % len(slices) == 0), None)
    if axis is None or len({len(part) for part in slices.values()}) > 1:
        return np.array(devices, object).reshape(shape)
    inner = tuple(size // len(slices) if n == axis else size for n, size in enumerate(shape))
    parts = [mesh_utils.create_device_mesh(inner, part, allow_split_physical_axes=True) for part in slices.values()]
    return np.concatenate(parts, axis)


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays that lead with the rows of a batch."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


@contextmanager
def tracing_on(mesh: Mesh) -> Iterator[None]:
    """Gives the models' logical names of axes (`ops.axes`) their meaning while a program is traced."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(_LOGICAL):
        yield


def block_on_cpu(tree: Any) -> Any:
    """The result of a program, waited for where its devices are simulated on a CPU.

    These share a pool of threads: of two programs under way at once each can hold the threads that the other waits for
    (jaxlib 0.10). Accelerators run programs in the order they are given, and are not waited for.
    """
    leaf = jax.tree.leaves(tree)[0]
    if leaf.sharding.num_devices > 1 and next(iter(leaf.devices())).platform == "cpu":
        jax.block_until_ready(tree)
    return tree
