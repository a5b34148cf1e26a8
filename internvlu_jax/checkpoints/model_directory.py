"""A model on disk in our own layout, written once and whole.

    DIR/internvlu_jax.json   format and version
    DIR/released/            the small files of the released layout: configs, tokenizer, scheduler
    DIR/arrays/              {"params", "extras"}, written by Orbax
    DIR/time.json            {"time": DTYPE}, what the run that trained it rounded the head's time to, where known
    DIR/checksums.json       of the arrays (see `seals`); the small files may be edited, as long as the arrays fit

`extras` are tensors of the released checkpoint that no computation on single pictures uses; they are kept so that the
way back is bit-exact (see `converters`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converters.checkpoint import released_template
from converters.checks import find_differences
from internvlu_jax.checkpoints.arrays import CheckpointError, array_shapes, read_arrays, targets, write_arrays
from internvlu_jax.checkpoints.seals import check_seal, seal
from internvlu_jax.config import InternVLUConfig
from internvlu_jax.config_files import check_types, read_config, write_assets
from internvlu_jax.utils.buckets import on_disk, path_of
from internvlu_jax.utils.files import new_directory, read_json, read_object, write_json
from internvlu_jax.utils.tree import paths

MARKER, TIME = "internvlu_jax.json", "time.json"
FORMAT = {"format": "internvlu_jax model", "version": 1}


def is_model(directory: str | Path) -> bool:
    """Whether the directory is one that `save_model` wrote."""
    return (path_of(directory) / MARKER).is_file()


def save_model(
    directory: str | Path,
    config: InternVLUConfig,
    params: dict[str, Any],
    extras: dict[str, Any],
    released: str | Path | None = None,
    time: str | None = None,
) -> None:
    """Writes a model directory; nothing appears under its name before it is whole.

    Args:
        released: the assets of the model before any change, see `config_files.write_assets`; without it only the
            configs are written.
        time: see `loading.LoadedModel`.

    Raises:
        FileExistsError: the directory exists and is not empty.
        CheckpointError: the arrays cannot be written.
    """
    with new_directory(directory) as partial:
        write_assets(config, partial / "released", released)
        write_arrays(partial / "arrays", {"params": params, "extras": extras})
        seal(partial, "arrays")
        if time is not None:
            write_json(partial / TIME, {"time": time})
        write_json(partial / MARKER, FORMAT)


def load_model(
    directory: str | Path, max_dtype: str | None = None, on_host: bool = False
) -> tuple[InternVLUConfig, dict[str, Any], dict[str, Any]]:
    """Reads a directory that `save_model` wrote: (config, params, extras).

    Args:
        max_dtype: wider parameters are cast to this dtype while they are read; None keeps what was written.
        on_host: parameters are numpy arrays instead of arrays on the default device.

    Raises:
        ValueError: not such a directory, of a version that this code does not know, or damaged; or its arrays are not
            of the model that its small files describe.
    """
    root = checked(directory, FORMAT)
    config = _config(root)
    check_seal(root, "arrays")
    stored = array_shapes(root / "arrays")
    if problems := _misfits(config, stored["params"]):
        raise CheckpointError(f"{root}: {'; '.join(problems)}")
    specs = {"params": targets(stored["params"], max_dtype, on_host), "extras": targets(stored.get("extras", {}))}
    arrays = read_arrays(root / "arrays", specs)
    return config, arrays["params"], arrays["extras"]


def stored_time(directory: str | Path) -> str | None:
    """What `save_model` was given as `time`. Raises ValueError if the file says something else."""
    path = path_of(directory) / TIME
    if not path.is_file():
        return None
    time = read_object(path).get("time")
    if time not in ("float32", "bfloat16"):
        raise ValueError(f"{path}: time is {time!r}; expected float32 or bfloat16")
    return time


def stored_shapes(directory: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, extras) of a model directory as `jax.ShapeDtypeStruct`, without reading an array."""
    stored = array_shapes(checked(directory, FORMAT) / "arrays")
    return stored["params"], stored.get("extras", {})


def misfits(directory: str | Path) -> list[str]:
    """Where the arrays of a model directory are not of the model that its small files describe, without reading one.

    Raises:
        ValueError: as `load_model`, of what is damaged elsewhere.
    """
    return _misfits(_config(checked(directory, FORMAT)), stored_shapes(directory)[0])


def _misfits(config: InternVLUConfig, params: dict[str, Any]) -> list[str]:
    found = find_differences(paths(released_template(config)), paths(params))
    return [f"the arrays are not of the model in released/: {'; '.join(found)}"] if found else []


def _config(root: Path) -> InternVLUConfig:
    files = on_disk(root / "released")
    check_types(files)
    return read_config(files)


def checked(directory: str | Path, expected: dict[str, Any]) -> Path:
    """The directory, absolute. Raises ValueError if its marker is not the expected one."""
    root = path_of(directory).absolute()
    if not is_model(root):
        raise ValueError(f"{root} is not a model directory: it has no {MARKER}")
    marker = read_json(root / MARKER)
    if marker != expected:
        raise ValueError(f"{root / MARKER} says {marker}; this code reads {expected}")
    return root
