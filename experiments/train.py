"""Trains one of the configurations in `experiments/configs`, or goes on with it.

    python -m experiments.train CONFIG --workdir DIR [--steps N] [--seed S] [--executor mesh|pmap|single]
        [--mesh.data -1 --mesh.fsdp 1 --mesh.tensor 1] [--any.field value]

CONFIG is stage1, stage2, stage3, finetune or debug; DIR may be gs://BUCKET/NAME. Run again with the same --workdir it
continues where the last checkpoint is. SIGTERM and Ctrl-C save and end with status 0; a second Ctrl-C ends at once,
with status 130. In DIR:

    config.json     the configuration with every override      metrics.jsonl   one object a step
    command.txt     the command that began it
    samples/        a sheet of pictures every so many steps     checkpoints/    what `convert` and `--start` take
"""

from __future__ import annotations

import shlex
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from experiments.configs import CONFIGS, not_named
from internvlu_jax.parallel.mesh import initialise, leave
from internvlu_jax.training.config import TrainConfig
from internvlu_jax.training.loop import train
from internvlu_jax.training.resuming import NotFiniteError
from internvlu_jax.utils.buckets import path_of
from internvlu_jax.utils.compilation import enable_cache
from internvlu_jax.utils.failures import check_accelerator, failed, interrupted, nobody_reads, one_line, out_of_memory
from internvlu_jax.utils.signals import interrupts_unwrapped, second_interrupt_ends


@dataclass(frozen=True)
class Cluster:
    """Several processes, one on each host."""

    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """One of several processes, one on each host. On TPU pods and under Slurm this is enough."""
    coordinator: str | None = None
    """host:port of process 0; elsewhere this and the two below are needed."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which this is, from 0."""


@dataclass(frozen=True)
class Arguments:
    workdir: Path
    """Where everything of the run goes, on a disk or gs://BUCKET/NAME; an existing run goes on."""
    run: Annotated[TrainConfig, tyro.conf.arg(name="")]
    cluster: Annotated[Cluster, tyro.conf.arg(name="")] = Cluster()


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    status = not_named(argv, __doc__)
    if status is not None:
        return status
    former = _former_option(argv[1:])
    if former is not None:
        print(f"error: {former} is {_FORMER[former]} now", file=sys.stderr)
        return 2
    defaults = Arguments(tyro.MISSING, CONFIGS[argv[0]])
    try:
        arguments = tyro.cli(
            Arguments,
            args=argv[1:],
            default=defaults,
            prog=f"python -m experiments.train {argv[0]}",
            description=__doc__,
            config=(tyro.conf.AvoidSubcommands,),
        )
    except BrokenPipeError:  # of the help, which is long
        return nobody_reads()
    return run(arguments, shlex.join(["python", "-m", "experiments.train", *argv]))


# Options that have another name or form since, and what to write in their place.
_FORMER = {
    "--objective.draws": "--objective.noises_per_image N",
    "--objective.text_weight": "--objective.weights text 1 flow 20",
    "--objective.flow_weight": "--objective.weights text 1 flow 20",
    "--data.condition_latents": "--head_sources both",
    "--data.no_condition_latents": "--head_sources context",
}


def _former_option(argv: list[str]) -> str | None:
    """The first option that is no longer known under its name."""
    names = (word.split("=")[0].replace("-", "_").replace("__", "--", 1) for word in argv if word.startswith("--"))
    return next((name for name in names if name in _FORMER), None)


def run(arguments: Arguments, command: str | None = None) -> int:
    """Trains; what a user can put right becomes one line and status 2, a run that broke down status 1.

    Of several processes one that fails ends this process, and with it the others.
    """
    status = 1  # of what Python shows a traceback of
    try:
        status = _run(arguments, command)
    finally:
        if status and jax.distributed.is_initialized():
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            leave(status)
    return status


def _run(arguments: Arguments, command: str | None) -> int:
    try:
        workdir = path_of(arguments.workdir)
    except ValueError as error:
        return failed("error", one_line(error), 2)
    cluster, stopped = arguments.cluster, interrupted(workdir)
    joins = (cluster.coordinator, cluster.processes, cluster.process)
    try:
        if cluster.distributed or any(value is not None for value in joins):
            initialise(*joins)
        check_accelerator()
        enable_cache()
        with second_interrupt_ends(stopped), interrupts_unwrapped():
            outcome = train(arguments.run, workdir, command=command)
    except (ValueError, FileExistsError) as error:
        return failed("error", one_line(error), 2)
    except (NotFiniteError, OSError) as error:
        return failed("error", one_line(error), 1)
    except (RuntimeError, MemoryError) as error:
        return failed("error", out_of_memory(error), 1)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    how, what = "stopped" if outcome.stopped else "done", ", or be converted" if outcome.steps else ""
    print(f"{how} at step {outcome.steps}; `{workdir}` can go on{what}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
