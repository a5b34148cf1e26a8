"""Runs in a process of its own, with simulated devices: the same short run under several executors.

python -m tests.helpers.parallel_training WORKDIR KIND ...      KIND: single, pmap, mesh, fsdp
python -m tests.helpers.parallel_training WORKDIR KIND --join PORT NUMBER      one of two processes
"""

import dataclasses
import sys
from pathlib import Path

import jax
import orbax.checkpoint as ocp

from experiments.configs.stage3 import ALL_BUT_VAE
from internvlu_jax.parallel.config import MeshConfig
from internvlu_jax.parallel.mesh import initialise
from internvlu_jax.training.config import ObjectiveConfig
from internvlu_jax.training.loop import train
from tests.helpers.training import TINY, with_data

# A large epsilon, so that entries whose gradient is nothing but rounding are not stepped as far as the others.
RUN = dataclasses.replace(
    with_data(TINY, batch_size=8, text_targets=True),
    steps=3,
    accumulate=2,
    objective=ObjectiveConfig((("text", 1.0), ("flow", 20.0))),
    optimizer=dataclasses.replace(TINY.optimizer, rates=ALL_BUT_VAE, weight_decay=0.01, eps=1e-3, ema=0.5),
    save_every=3,
    sample_every=3,
    sample_prompts=("a red circle", "two", "three squares"),
    sample_steps=2,
)
KINDS = {
    "single": dataclasses.replace(RUN, executor="single"),
    "pmap": dataclasses.replace(RUN, executor="pmap"),
    "mesh": dataclasses.replace(RUN, executor="mesh", mesh=MeshConfig(2, 2, 2)),
    "fsdp": dataclasses.replace(RUN, executor="mesh", mesh=MeshConfig(1, -1, 1)),
}


def write_arrays_whole() -> None:
    """Else Orbax writes a share of every array from each device, and compiles hundreds of programs that cut them."""
    ocp.type_handlers.register_type_handler(
        jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False), override=True
    )


def main(workdir: str, *arguments: str) -> None:
    write_arrays_whole()
    kinds = list(arguments)
    if "--join" in kinds:
        *kinds, _, port, number = kinds
        initialise(f"localhost:{port}", 2, int(number))
    for kind in kinds:
        train(KINDS[kind], Path(workdir) / kind, quiet=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
