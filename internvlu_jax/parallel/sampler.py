"""The image sampler on many devices: pictures are shared out, and each device draws its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from internvlu_jax.flow.guidance import Scales
from internvlu_jax.flow.sampler import Group
from internvlu_jax.flow.solver import Steps
from internvlu_jax.inference import programs
from internvlu_jax.models.internvlu import InternVLU, Params
from internvlu_jax.parallel.executors import MeshExecutor, PmapExecutor
from internvlu_jax.parallel.mesh import block_on_cpu, replicated, tracing_on
from internvlu_jax.parallel.steps import AXIS

Draw = Callable[[Params, Any, Steps, tuple[Group, ...], Scales], Float[Array, "b y x c"]]
"""As `programs.draw`: (params, noise, steps, groups, scales) -> latents, on one device of this process.

The parameters, of which the head is enough, are what the executor's `place` gave. Any number of pictures will do: the
last ones are repeated until the devices can share them, and cut off again.
"""


def mesh_sampler(model: InternVLU, executor: MeshExecutor) -> Draw:
    """`programs.draw` on a mesh. Every process gives all the pictures and gets all the latents."""
    draw = jax.jit(partial(programs.draw, model), out_shardings=replicated(executor.mesh))

    def run(params: Params, noise: Any, steps: Steps, groups: tuple[Group, ...], scales: Scales) -> Array:
        count = noise.shape[0]
        total = count + -count % executor.shards
        own = np.minimum(executor.rows(total), count - 1)
        noise, groups = executor.put(jax.tree.map(lambda a: np.asarray(a)[own], (noise, groups)))
        with tracing_on(executor.mesh):
            drawn = block_on_cpu(draw(params, noise, _numbers(steps), groups, _numbers(scales)))
        return drawn.addressable_data(0)[:count]

    return run


def pmap_sampler(model: InternVLU, executor: PmapExecutor) -> Draw:
    """`programs.draw` under `pmap`, the parameters replicated."""
    draw = jax.pmap(partial(programs.draw, model), AXIS, in_axes=(0, 0, None, 0, None), devices=executor.devices)

    def run(params: Params, noise: Any, steps: Steps, groups: tuple[Group, ...], scales: Scales) -> Array:
        count = noise.shape[0]
        own = np.minimum(np.arange(count + -count % len(executor.devices)), count - 1)
        noise, groups = executor.put(jax.tree.map(lambda a: np.asarray(a)[own], (noise, groups)))
        drawn = block_on_cpu(draw(params, noise, _numbers(steps), groups, _numbers(scales)))
        return jax.device_put(rearrange(drawn, "n b y x c -> (n b) y x c"), executor.devices[0])[:count]

    return run


def _numbers(tree: Any) -> Any:
    """Of the host and of one dtype, so that equal calls are equal programs on every process."""
    return jax.tree.map(lambda value: np.asarray(value, np.float32), tree)
