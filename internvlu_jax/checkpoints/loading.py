"""From a name to a model in memory, and from one layout on disk to the other."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters.checkpoint import export_released, load_released
from internvlu_jax.checkpoints import run_directory
from internvlu_jax.checkpoints.arrays import at_most
from internvlu_jax.checkpoints.model_directory import is_model, load_model, save_model
from internvlu_jax.checkpoints.run_directory import is_run, load_run
from internvlu_jax.config import InternVLUConfig
from internvlu_jax.models import lora
from internvlu_jax.utils.files import check_free

HUB_FILES = ["*.json", "*.safetensors", "*.txt"]
BUILT_IN = Path(__file__).parents[1] / "small_world" / "weights"
"""The model in the box: a few million parameters that know the small world (`small_world`), in the released layout."""


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in memory.

    assets: the directory with its config files and tokenizer as they were read, in the released layout.
    """

    config: InternVLUConfig
    params: dict[str, Any]
    extras: dict[str, Any]
    assets: Path


def resolve(name: str | Path | None) -> Path:
    """The directory of a checkpoint: `name` itself, or a snapshot of the Hub repository `name`; None is `BUILT_IN`.

    Raises:
        ValueError: there is no such directory, and no such repository can be had.
    """
    if name is None:
        return BUILT_IN
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file; expected the directory of a checkpoint")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) or str(name).startswith("."):
        raise ValueError(f"there is no directory {name}; expected a checkpoint directory or a Hub id like ORG/NAME")
    return _download(str(name))


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"there is no directory {repository}, and the Hub repository of that name cannot be had: {reason}. "
            "Check the name, the network and, for a private repository, `hf auth login`; or pass a directory"
        ) from error


def load(
    name: str | Path | None, max_dtype: str | None = None, place: Callable[[np.ndarray], Any] | None = None
) -> LoadedModel:
    """Loads a checkpoint in either layout, or the last one of a training run.

    Args:
        name: a directory or a Hub id; None is the model in the box.
        max_dtype: wider parameters are cast to this dtype while they are read; None keeps the checkpoint's.
        place: what becomes of each parameter; None places it on the default device.

    Raises:
        ValueError: it does not exist, is incomplete, or is of another model; all problems are named together.
    """
    root = resolve(name)
    if is_run(root) or is_model(root):
        model = (_load_run if is_run(root) else _load_model)(root, max_dtype, place is not None)
        return model if place is None else replace(model, params=jax.tree.map(place, model.params))

    def put(array: np.ndarray) -> Any:
        return (place or jax.device_put)(array.astype(at_most(array.dtype, max_dtype), copy=False))

    loaded = load_released(root, place=put)
    return LoadedModel(loaded.config, loaded.params, loaded.extras, root)


def _load_model(root: Path, max_dtype: str | None, on_host: bool) -> LoadedModel:
    config, params, extras = load_model(root, max_dtype, on_host)
    return LoadedModel(config, params, extras, root / "released")


def _load_run(root: Path, max_dtype: str | None, on_host: bool) -> LoadedModel:
    config, params, extras, adapters = load_run(root, max_dtype, on_host)
    if adapters is not None:
        params = lora.merge(params, adapters["alpha"] / adapters["rank"])
        params = jax.tree.map(lambda p: p.astype(at_most(p.dtype, max_dtype)), params)
    return LoadedModel(config, params, extras, run_directory.assets(root))


def convert(source: str | Path, target: str | Path, to: str) -> None:
    """Rewrites a checkpoint as `to`: "orbax" (our own directory) or "released". Every tensor keeps its bits.

    Raises:
        ValueError: `source` cannot be loaded, or is of a type that the released layout has no place for.
        FileExistsError: `target` exists and is not empty.
    """
    check_free(target)
    model = load(source)
    if to == "orbax":
        save_model(target, model.config, model.params, model.extras, model.assets)
    else:
        export_released(target, model.config, model.params, model.extras, model.assets)
