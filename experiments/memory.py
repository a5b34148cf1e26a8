"""What a stage needs of each device's memory, at the released sizes, without a device: shapes, lowering, compilation.

    python -m experiments.memory --stage stage1|stage3 [--devices 8] [--mesh.fsdp 8] [--rows 8] [--remat full] [--json]

Simulates the devices on the CPU, lays the state out as the run would, and compiles the step of each kind of micro-batch
(text to image at 512 pixels in stage 1; in stage 3 at 1024, edits too, and packed conversations) without allocating
anything. `temporaries` is what XLA's CPU compiler sets aside while a step runs. On a CPU these hold float32 copies of
bfloat16 weights, which accelerators do not.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import command
from experiments.configs import CONFIGS
from internvlu_jax.config import InternVLUConfig
from internvlu_jax.data.batch import Batch, ImageBatch, TextBatch
from internvlu_jax.models.internvlu import InternVLU, param_shapes
from internvlu_jax.models.vlm import NUM_SPECIAL_TOKENS
from internvlu_jax.parallel.config import MeshConfig
from internvlu_jax.parallel.executors import MeshExecutor
from internvlu_jax.parallel.mesh import make_mesh, rows_sharding
from internvlu_jax.parallel.rules import shardings
from internvlu_jax.parallel.steps import mesh_step
from internvlu_jax.presets import PRESETS
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.losses import Objective
from internvlu_jax.training.optimizer import factors
from internvlu_jax.training.step import Step
from internvlu_jax.utils.devices import prepare_cpu


@dataclass(frozen=True)
class Arguments:
    stage: Literal["stage1", "stage3"]
    devices: int = 8
    mesh: MeshConfig = MeshConfig(fsdp=8)
    rows: int = 8
    """Of a micro-batch, over all devices."""
    remat: Literal["none", "dots", "full"] = "full"
    compile: bool = True
    """Without it only the state is measured, and the programs are lowered."""
    json: bool = False


def batches(cfg: TrainConfig, model: InternVLUConfig, rows: int) -> dict[str, Any]:
    """Shapes of one micro-batch of each kind that the stage reads."""

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((rows, *shape), dtype)

    def text(length: int, tiles: int, packed: bool) -> TextBatch:
        size = model.vlm.vision_config.image_size
        targets = (array(np.int32, length), array(np.float32, length)) if cfg.data.text_targets else (None, None)
        seen = (array(np.uint8, tiles, size, size, 3), array(np.int32, length)) if tiles else (None, None)
        segments = array(np.int32, length) if packed else None
        return TextBatch(array(np.int32, length), array(np.int32, length), segments, *seen, *targets)

    def drawing(side: int, sources: int) -> Batch:
        length = cfg.data.text_lengths[1] if not sources else cfg.data.text_lengths[-1]
        tokens = (1 + sources) * (side // model.generation_decoder.pixel_multiple) ** 2 + length
        picture = ImageBatch(
            target=array(np.uint8, side, side, 3),
            context_lengths=array(np.int32),
            positions=array(np.float32, tokens, 3),
            weight=array(np.float32),
            sources=(array(np.uint8, side, side, 3),) * sources,
            context_index=array(np.int32, length),
        )
        return Batch(array(np.int32), text(length + 96, sources, False), picture)

    side = cfg.data.sides[-1]
    if not cfg.data.text_targets:
        return {f"text to image, {side}": drawing(side, 0)}
    packed = Batch(array(np.int32), text(cfg.data.pack_length, cfg.data.pack_tiles, True))
    return {f"text to image, {side}": drawing(side, 0), f"edit, {side}": drawing(side, 1), "conversations": packed}


def step_of(cfg: TrainConfig, shards: int = 1) -> tuple[Step, Any]:
    """The step of a run, and the shapes of the parameters that it starts from, in its dtype.

    shards: groups of devices that rows are shared out over.
    """
    model = PRESETS[cfg.model]()
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(cfg.compute.dtype)), param_shapes(model))
    objective = Objective(InternVLU(model, tuple(range(NUM_SPECIAL_TOKENS)), cfg.compute), cfg.objective, 1024 * shards)
    return Step(objective, cfg.optimizer, factors(shapes, cfg.optimizer), cfg.steps), shapes


def share(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on one device."""
    return sum(prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def measure(arguments: Arguments) -> dict[str, Any]:
    """Bytes on each device: of the parameters, the optimizer, and the temporaries of each kind of micro-batch."""
    cfg = CONFIGS[arguments.stage]
    cfg = dataclasses.replace(cfg, compute=dataclasses.replace(cfg.compute, remat=arguments.remat))
    mesh = make_mesh(arguments.mesh)
    executor = MeshExecutor(mesh)
    step, released = step_of(cfg, executor.shards)
    state = executor.abstract(jax.eval_shape(step.init, released))
    programs = mesh_step(step, mesh, shardings(state, mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    sizes: dict[str, Any] = {
        "parameters": share((state.trained, state.frozen)),
        "optimizer": share(state.opt_state),
        "gradients": share(state.trained),
        "temporaries": {},
    }
    by_row = rows_sharding(mesh)
    for name, shapes in batches(cfg, PRESETS[cfg.model](), arguments.rows).items():
        batch = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=by_row), shapes)
        lowered = programs.lower(state, batch, key)
        if arguments.compile:
            memory = lowered.compile().memory_analysis()
            assert memory is not None
            sizes["temporaries"][name] = memory.temp_size_in_bytes
            sizes["arguments"] = memory.argument_size_in_bytes
    return sizes


def main(arguments: Arguments) -> int:
    jax.config.update("jax_platforms", "cpu")
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={arguments.devices}"
    prepare_cpu()
    sizes = measure(arguments)
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(arguments), **sizes}))
        return 0
    rows = {**{k: v for k, v in sizes.items() if isinstance(v, int)}, **sizes["temporaries"]}
    for name, size in rows.items():
        print(f"{name:24} {size / 1e9:8.2f} GB a device")
    return 0


if __name__ == "__main__":
    command(main, Arguments, "experiments.memory")
