"""From a name to a model in memory, and from one layout on disk to the other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters.checkpoint import export_released, load_released
from internvlu_jax import checkpoint
from internvlu_jax.config import InternVLUConfig

HUB_FILES = ["*.json", "*.safetensors", "*.txt"]


@dataclass(frozen=True)
class Model:
    """A checkpoint in memory. `small_files` is the directory with its configs and tokenizer, in the released layout."""

    config: InternVLUConfig
    params: dict[str, Any]
    extras: dict[str, Any]
    small_files: Path


def resolve(name: str | Path) -> Path:
    """The directory of a checkpoint: `name` itself, or a snapshot of the Hub repository `name`.

    Raises:
        ValueError: there is no such directory, and no such repository can be had.
    """
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


def load(name: str | Path, widest: str | None = None) -> Model:
    """Loads a checkpoint in either layout, its parameters placed on the default device.

    Args:
        name: a directory or a Hub id.
        widest: wider parameters are cast to this dtype while they are read; None keeps the checkpoint's.

    Raises:
        ValueError: it does not exist, is incomplete, or is of another model; all problems are named together.
    """
    root = resolve(name)
    if checkpoint.is_model(root):
        config, params, extras = checkpoint.load_model(root, widest)
        return Model(config, params, extras, root / "released")

    def place(array: np.ndarray) -> jax.Array:
        return jax.device_put(array.astype(checkpoint.at_most(array.dtype, widest), copy=False))

    loaded = load_released(root, place=place)
    return Model(loaded.config, loaded.params, loaded.extras, root)


def convert(source: str | Path, target: str | Path, to: str) -> None:
    """Rewrites a checkpoint as `to`: "orbax" (our own directory) or "released". Every tensor keeps its bits.

    Raises:
        ValueError: `source` cannot be loaded.
        FileExistsError: `target` exists and is not empty.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty directory; choose another name or remove it")
    model = load(source)
    if to == "orbax":
        checkpoint.save_model(target, model.config, model.params, model.extras, model.small_files)
    else:
        export_released(target, model.config, model.params, model.extras, model.small_files)
