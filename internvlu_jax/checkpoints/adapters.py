"""Low-rank adapters by name: a directory in PEFT's layout, a Hub id, or a run of ours that trained some."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converters.adapters import Adapter, Factors, export_adapter, read_adapter, trained_adapter
from converters.checks import listed
from converters.tensors import all_finite
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.arrays import CheckpointError
from internvlu_jax.checkpoints.run_directory import hub_base, is_run, load_trained, model_config, split_step
from internvlu_jax.config import InternVLUConfig
from internvlu_jax.models import lora
from internvlu_jax.models.layers import kernel_axes
from internvlu_jax.utils.tree import from_paths, paths

Weighted = tuple[Adapter, float]
"""An adapter, and the scale that its update has beside its own."""

_LARGEST = float(np.finfo(np.float32).max)


def find_adapter(name: str | Path, config: InternVLUConfig) -> Adapter:
    """The adapter of a name, for a model.

    Args:
        name: a directory as `converters.adapters` says, a Hub id of such, or of a run with adapters the work directory
            or a step of it.

    Raises:
        ValueError: there is none, or it does not fit the model; everything that is wrong is named.
    """
    root = loading.resolve(name)
    workdir, step = split_step(root)
    if not is_run(workdir):
        return read_adapter(root, config)
    trained, settings = load_trained(workdir, step)
    return trained_adapter(trained, _alpha(workdir, settings), config)


def convert(source: str | Path, target: str | Path, to: str, adapters: Sequence[str] = ()) -> None:
    """Rewrites a checkpoint as `loading.convert`, adapters folded in; or as "peft" the adapters of a run alone.

    Args:
        adapters: each as `with_scale` reads it.

    Raises:
        ValueError: something cannot be loaded or does not fit, or the source is no run that trains adapters alone.
        FileExistsError: `target` exists and is not empty.
    """
    if to != "peft":
        given = [with_scale(text) for text in adapters]
        change = partial(_with_adapters, given) if given else None
        return loading.convert(source, target, to, change)
    workdir, step = split_step(loading.resolve(source))
    if adapters or not is_run(workdir):
        raise ValueError(f"{source}: --to peft takes a run that trained adapters, or a step of it, and no --adapter")
    trained, settings = load_trained(workdir, step)
    # of a directory the name says nothing to others
    return export_adapter(target, model_config(workdir), trained, _alpha(workdir, settings), hub_base(workdir))


def _with_adapters(
    given: Sequence[tuple[str, float]], config: InternVLUConfig, params: dict[str, Any]
) -> dict[str, Any]:
    """Parameters in stacks, whose kernels hold the updates of the adapters of these names, on the host.

    Raises:
        CheckpointError: a kernel's dtype does not hold the sum.
    """
    leaves, beyond = paths(params), []
    for path, (a, b) in joined((find_adapter(name, config), scale) for name, scale in given).items():
        name = f"{path}/kernel"
        leaves[name] = np.asarray(lora.folded(leaves[name], a, b))
        if not all_finite(leaves[name]):
            beyond.append(name)
    if beyond:
        names = listed(dict.fromkeys(name for name, _ in given))
        raise CheckpointError(f"with adapters {names}, {len(beyond)} kernels hold NaN or infinities: {listed(beyond)}")
    return from_paths(leaves)


def _alpha(workdir: str | Path, settings: dict[str, Any]) -> float:
    if settings["lora"] is None:
        raise ValueError(f"{workdir} trained no adapters; expected a run of a configuration with lora, as finetune")
    return settings["lora"]["alpha"]


def with_scale(text: str) -> tuple[str, float]:
    """("PATH", scale) of "PATH" or "PATH:SCALE"; the scale is 1 where none is named.

    Raises:
        ValueError: the scale is not finite in float32.
    """
    path, _, end = text.rpartition(":")
    try:
        scale = float(end)
    except ValueError:
        return text, 1.0
    return (path, checked_scale(scale)) if path else (text, 1.0)


def checked_scale(scale: float) -> float:
    """Raises ValueError if an update cannot be scaled so."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) <= _LARGEST:
        raise ValueError(f"the scale of an adapter is {scale!r}; expected a finite number, 1 as it was trained")
    return float(scale)


def joined(adapters: Iterable[Weighted]) -> Adapter:
    """Several adapters as one, whose update is the sum of theirs: their ranks lie behind one another."""
    parts: dict[str, list[Factors]] = {}
    for adapter, scale in adapters:
        for path, (a, b) in adapter.items():
            parts.setdefault(path, []).append(Factors(a, np.float32(scale) * b))
    return {path: _side_by_side(path, some) for path, some in parts.items()}


def _side_by_side(path: str, some: list[Factors]) -> Factors:
    stack, _ = kernel_axes(path.split("/"), some[0].a.ndim)
    return Factors(np.concatenate([f.a for f in some], -1), np.concatenate([f.b for f in some], stack))
