"""From a name to a model in memory, and from one layout on disk to the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from converters.checkpoint import export_released, load_released, on_default_device, unchanged
from converters.checks import listed
from converters.engine import on_host
from converters.tensors import all_finite
from internvlu_jax.checkpoints import run_directory
from internvlu_jax.checkpoints.arrays import CheckpointError, at_most
from internvlu_jax.checkpoints.model_directory import is_model, load_model, save_model, stored_time
from internvlu_jax.checkpoints.run_directory import hub_id, is_run, load_run, split_step
from internvlu_jax.config import InternVLUConfig
from internvlu_jax.config_released import note
from internvlu_jax.models import lora
from internvlu_jax.processing.tokenizer import Tokenizer
from internvlu_jax.utils.buckets import in_bucket, on_disk, path_of
from internvlu_jax.utils.files import check_free
from internvlu_jax.utils.tree import from_paths, paths

HUB_FILES = [
    *("*.json", "*.safetensors", "*.txt", "arrays/*"),  # of both layouts; the last of a model in Orbax's
    *("*.md", "*.jinja", "LICENSE*", "NOTICE*"),  # what `convert` and `push` hand on
]
BUILT_IN = Path(__file__).parents[1] / "small_world" / "weights"
"""The model in the box: a few million parameters that know the small world (`small_world`), in the released layout."""


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint in memory.

    assets: the directory with its config files and tokenizer as they were read, in the released layout.
    time: what the run that trained it rounded the head's time to; None where that is not known, as of the released
        layout.
    """

    config: InternVLUConfig
    params: dict[str, Any]
    extras: dict[str, Any]
    assets: Path
    time: str | None = None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises ValueError as `Tokenizer.from_directory`."""
        return Tokenizer.from_directory(self.assets / "processor")


def resolve(name: str | Path | None) -> Path:
    """The directory of a checkpoint: `name` itself, or a snapshot of the Hub repository `name`; None is `BUILT_IN`, and
    so is "built-in", where there is no directory of that name.

    Raises:
        ValueError: there is no such directory, and no such repository can be had.
    """
    if name is None:
        return BUILT_IN
    path = path_of(name).expanduser()
    if str(name) == "built-in" and not path.exists():
        return BUILT_IN
    if path.name == "checkpoints" and is_run(path.parent):
        raise ValueError(
            f"{path} holds the checkpoints of a run; take one, {path}/STEP, or the last with {path.parent}"
        )
    if path.is_dir():
        if in_bucket(path) and not (is_model(path) or is_run(split_step(path)[0])):
            raise ValueError(
                f"{path} is neither a run nor a model in the Orbax layout, which are what is read from a bucket; copy "
                "it to a disk with `gcloud storage cp -r`"
            )
        return path
    if path.exists():
        raise ValueError(f"{path} is a file; expected the directory of a checkpoint")
    if hub_id(name) is None:
        raise ValueError(f"there is no directory {name}; expected a checkpoint directory or a Hub id like ORG/NAME")
    return _download(str(name))


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=HUB_FILES))
    except Exception as error:  # of the client's transport, whose errors have nothing in common
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"there is no directory {repository}, and the Hub repository of that name cannot be had: {reason}. "
            "Check the name, the network and, for a private repository, `hf auth login`; the same command fetches "
            "the files that have not come. Or pass a directory"
        ) from error


def load(
    name: str | Path | None,
    max_dtype: str | None = None,
    place: Callable[[str, np.ndarray], Any] | None = None,
    finish: Callable[[str, Any], Any] = unchanged,
) -> LoadedModel:
    """Loads a checkpoint in either layout, or one of a training run: its last, or a step of it.

    Args:
        name: a directory or a Hub id; None or "built-in" is the model in the box. Of a run its work directory, or
            WORKDIR/checkpoints/STEP.
        max_dtype: wider parameters are cast to this dtype while they are read; None keeps the checkpoint's.
        place: what becomes of each parameter, by its path; None places it on the default device.
        finish: what becomes of each part (vlm, head, vae) when it is placed; of released files before the next is read.

    Raises:
        ValueError: it does not exist, is incomplete, is of another model, or holds NaN or infinities; all problems are
            named together. Or its tokenizer cannot be read, or makes tokens of text that have no embedding; see
            `Tokenizer.beyond`.
    """
    model = _read(name, max_dtype, place, finish)
    rows = model.config.vlm.llm_config.vocab_size
    lost = model.tokenizer.beyond(rows)
    if lost:
        raise CheckpointError(
            f"{name}: the table of tokens has {rows} rows, and none for {len(lost)} of the tokens in processor/: "
            f"{listed(lost)}; expected a table resized to the tokenizer, or a tokenizer without them"
        )
    return model


def _read(
    name: str | Path | None,
    max_dtype: str | None = None,
    place: Callable[[str, np.ndarray], Any] | None = None,
    finish: Callable[[str, Any], Any] = unchanged,
) -> LoadedModel:
    root = resolve(name)
    workdir, step = split_step(root)
    if is_run(workdir) or is_model(root):
        # Numbers are looked at on the host, where nothing has to be compiled for it.
        to_host = place is not None or jax.default_backend() != "cpu"
        checked = partial(_checked, root, to_device=place is None and to_host)
        if is_run(workdir):
            model = _load_run(workdir, step, max_dtype, to_host, checked)
        else:
            config, params, extras = load_model(root, max_dtype, to_host)
            model = LoadedModel(config, checked(params), extras, on_disk(root / "released"), stored_time(root))
        if place is not None:
            placed = from_paths({path: place(path, leaf) for path, leaf in paths(model.params).items()})
            model = replace(model, params=placed)
        return replace(model, params={part: finish(part, params) for part, params in model.params.items()})

    def put(path: str, array: np.ndarray) -> Any:
        return (place or on_default_device)(path, array.astype(at_most(array.dtype, max_dtype), copy=False))

    loaded = load_released(root, place=put, finish=finish)
    return LoadedModel(loaded.config, loaded.params, loaded.extras, root)


def _checked(root: Path, params: dict[str, Any], to_device: bool) -> dict[str, Any]:
    """The parameters, on the default device if they are to be; raises CheckpointError where they are no numbers."""
    damaged = [path for path, leaf in paths(params).items() if not all_finite(np.asarray(leaf))]
    if damaged:
        raise CheckpointError(f"{root}: {len(damaged)} parameters hold NaN or infinities: {listed(damaged)}")
    return jax.tree.map(jax.device_put, params) if to_device else params


def _load_run(
    workdir: Path,
    step: int | None,
    max_dtype: str | None,
    on_host: bool,
    checked: Callable[[dict[str, Any]], dict[str, Any]],
) -> LoadedModel:
    config, params, extras, adapters = load_run(workdir, step, max_dtype, on_host)
    params = checked(params)
    if adapters is not None:
        params = lora.merge(params, adapters["alpha"] / adapters["rank"])
        params = jax.tree.map(lambda p: p.astype(at_most(p.dtype, max_dtype), copy=False), params)
    return LoadedModel(config, params, extras, run_directory.assets(workdir), run_directory.trained_time(workdir))


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    change: Callable[[InternVLUConfig, dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Rewrites a checkpoint as `to`: "orbax" (our own directory) or "released". Every tensor keeps its bits.

    But for what has no place in a parameter: tensors that no model has are left out with a warning, layers of several
    dtypes become float32, and so does float64; 8-bit floats become bfloat16. Parameters stay on the host. What a run
    rounded the head's time to is kept in our own layout; the released one has no place for it, which a warning says.

    Args:
        change: what becomes of the parameters before they are written.

    Raises:
        ValueError: `source` cannot be loaded, or is of a type that the released layout has no place for.
        FileExistsError: `target` exists and is not empty.
    """
    check_free(target)
    model = _read(source, place=on_host)
    params = model.params if change is None else change(model.config, model.params)
    if to == "orbax":
        save_model(target, model.config, params, model.extras, model.assets, model.time)
        return
    export_released(target, model.config, params, model.extras, model.assets)
    if model.time is not None:
        note(
            f"{source} was trained with times in {model.time}, which the released layout cannot say: draw with --time "
            f"{model.time}, or time={model.time!r}, for pictures as the run's own"
        )
