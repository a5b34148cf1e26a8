"""What a checkpoint directory holds, without reading its tensors: `internvlu-jax info CHECKPOINT`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from converters.checkpoint import summary
from internvlu_jax.checkpoints import run_directory
from internvlu_jax.checkpoints.loading import resolve
from internvlu_jax.checkpoints.model_directory import is_model, misfits, stored_shapes

GIB = 2**30


def print_info(name: str | Path) -> None:
    """Prints a table of parts, files, parameters and dtypes, then everything that is missing or does not fit.

    Args:
        name: a directory or a Hub id, see `loading.resolve`.

    Raises:
        ValueError: there is none, or the checkpoint is not complete (after printing what there is).
    """
    root = resolve(name)
    workdir, _ = run_directory.split_step(root)
    own = run_directory.is_run(workdir) or is_model(root)
    rows, problems = _own(root) if own else _released(root)
    table = Table("part", "files", "tensors", "parameters", "dtype", "GiB")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if problems:
        said = [problem.removeprefix(f"{root}: ").removeprefix(f"{root} ") for problem in problems]
        raise ValueError(f"{root} cannot be used: " + "; ".join(said))


def _row(part: str, files: int, tensors: int, parameters: int, dtypes: list[str], size: int) -> list[str]:
    return [part, str(files), str(tensors), f"{parameters:,}", ", ".join(dtypes), f"{size / GIB:.2f}"]


def _released(root: Path) -> tuple[list[list[str]], list[str]]:
    whole = summary(root)
    rows = [
        _row(name, len(p.files), p.tensors, p.parameters, sorted(p.dtypes), p.bytes) for name, p in whole.parts.items()
    ]
    problems = [*whole.problems, *(f"{name}: {text}" for name, p in whole.parts.items() for text in p.problems)]
    return rows, problems


def _own(root: Path) -> tuple[list[list[str]], list[str]]:
    """A model directory, or a run's checkpoint: complete, for it is none before all of it is written.

    Of the first the small files may have been edited.
    """
    workdir, step = run_directory.split_step(root)
    is_run = run_directory.is_run(workdir)
    params, extras = run_directory.run_shapes(workdir, step) if is_run else stored_shapes(root)
    named = {**params, **{f"{name} (unused)": tree for name, tree in extras.items() if tree}}
    return [_row(name, 1, *_measure(tree)) for name, tree in named.items()], [] if is_run else misfits(root)


def _measure(tree: Any) -> tuple[int, int, list[str], int]:
    leaves = jax.tree.leaves(tree)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    size = sum(n * leaf.dtype.itemsize for n, leaf in zip(sizes, leaves, strict=True))
    return len(leaves), sum(sizes), sorted({str(leaf.dtype) for leaf in leaves}), size
