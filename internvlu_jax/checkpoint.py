"""Model directories of our own, over Orbax. This is the only file that knows Orbax.

    DIR/internvlu_jax.json   format and version
    DIR/released/            the small files of the released layout, byte for byte: configs, tokenizer, scheduler
    DIR/arrays/              {"params", "extras"}, written by Orbax

`extras` are tensors of the released checkpoint that no computation on single pictures uses; they are kept so that the
way back is bit-exact (see `converters`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from internvlu_jax.config import InternVLUConfig
from internvlu_jax.config_files import read_config, write_config

MARKER = "internvlu_jax.json"
FORMAT = {"format": "internvlu_jax model", "version": 1}
TENSOR_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".ckpt")


def is_model(directory: str | Path) -> bool:
    """Whether the directory is one that `save_model` wrote."""
    return (Path(directory) / MARKER).is_file()


@contextmanager
def new_directory(target: str | Path) -> Iterator[Path]:
    """A sibling directory to fill, which becomes `target` in one rename when the block ends without an exception.

    Raises:
        FileExistsError: `target` exists and is not an empty directory.
    """
    target = Path(target).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty directory; choose another name or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def copy_small_files(source: str | Path, target: str | Path) -> None:
    """Copies everything of a released directory but its tensors."""
    source = Path(source)
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and not path.name.endswith(TENSOR_SUFFIXES):
            (Path(target) / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, Path(target) / relative)


def save_model(
    directory: str | Path,
    config: InternVLUConfig,
    params: dict[str, Any],
    extras: dict[str, Any],
    released: str | Path | None = None,
) -> None:
    """Writes a model directory; nothing appears under its name before it is whole.

    Args:
        released: a directory whose small files (tokenizer, configs) are kept; without it only the configs are written.

    Raises:
        FileExistsError: the directory exists and is not empty.
    """
    with new_directory(directory) as partial:
        if released is not None:
            copy_small_files(released, partial / "released")
        write_config(config, partial / "released")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(partial / "arrays", {"params": params, "extras": extras})
        (partial / MARKER).write_text(json.dumps(FORMAT) + "\n", encoding="utf-8")


def load_model(
    directory: str | Path, widest: str | None = None
) -> tuple[InternVLUConfig, dict[str, Any], dict[str, Any]]:
    """Reads a directory that `save_model` wrote: (config, params, extras).

    Args:
        widest: wider parameters are cast to this dtype while they are read; None keeps what was written.

    Raises:
        ValueError: not such a directory, or of a version that this code does not know.
    """
    root = _checked(directory)
    config = read_config(root / "released")
    stored_params, stored_extras = stored_shapes(root)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def on_device(stored: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(stored.shape, at_most(stored.dtype, widest), sharding=device)

    wanted = {
        "params": jax.tree.map(on_device, stored_params),
        "extras": jax.tree.map(lambda stored: np.empty(stored.shape, stored.dtype), stored_extras),
    }
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(root / "arrays", wanted)
    return config, arrays["params"], arrays["extras"]


def stored_shapes(directory: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, extras) of a model directory as `jax.ShapeDtypeStruct`, without reading an array."""
    root = _checked(directory)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.metadata(root / "arrays").item_metadata.tree
    shapes = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), tree, is_leaf=lambda node: not isinstance(node, dict)
    )
    return shapes["params"], shapes.get("extras", {})


def _checked(directory: str | Path) -> Path:
    root = Path(directory).absolute()
    if not is_model(root):
        raise ValueError(f"{root} is not a model directory: it has no {MARKER}")
    found = json.loads((root / MARKER).read_text(encoding="utf-8"))
    if found != FORMAT:
        raise ValueError(f"{root / MARKER} says {found}; this code reads {FORMAT}")
    return root


def at_most(dtype: Any, widest: str | None) -> np.dtype:
    """`dtype`, or `widest` if that is narrower."""
    dtype = jnp.dtype(dtype)
    return dtype if widest is None or dtype.itemsize <= jnp.dtype(widest).itemsize else jnp.dtype(widest)
