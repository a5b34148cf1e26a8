"""Released tensors <-> our parameters, driven by a table of rows (`rules`) that reads in both directions.

Everything is checked by name, shape and dtype before the first byte of data is read, and all problems are reported
together (`checks`). Loading and exporting again gives back every tensor of the table bit for bit, where the layers of a
stack share a dtype of `rules.DTYPES`: what no computation uses (`Unused`, and the slices that `last_of` leaves out)
travels beside the parameters as `extras`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from converters.checks import find_export_problems, find_problems, raise_problems
from converters.rules import (
    DTYPE_NAMES,
    ConversionError,
    LazyTensor,
    Reader,
    Row,
    Rule,
    TensorInfo,
    Unused,
    loaded_dtype,
)
from internvlu_jax.utils.tree import from_paths, paths

__all__ = [
    "ConversionError",
    "LazyTensor",
    "Reader",
    "Row",
    "Rule",
    "TensorInfo",
    "Unused",
    "convert",
    "export",
    "on_host",
]

_STRIP_BYTES = 2**17


def on_host(path: str, array: np.ndarray) -> np.ndarray:
    """Leaves a parameter where it is."""
    return array


def convert(
    rows: Iterable[Row],
    reader: Reader,
    template: Mapping[str, Any],
    dtype: Any = None,
    place: Callable[[str, np.ndarray], Any] = on_host,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads released tensors into the parameters of `template`: (params, extras).

    Memory: the parameters, one tensor, and what `place` needs for one parameter.

    Args:
        rows: the table.
        reader: the released tensors.
        template: nested dict whose leaves have `.shape`.
        dtype: of the parameters, cast one tensor at a time; None keeps the checkpoint's, see `rules.loaded_dtype`.
        place: puts a finished parameter, of which it gets path and array, where it belongs: for instance on a device.

    Returns:
        Nested dict of parameters, and the unused tensors and slices by released name.

    Raises:
        ConversionError: all problems of all kinds, before any data is read.
    """
    rows, leaves = list(rows), paths(template)
    raise_problems(find_problems(rows, reader.infos, leaves))
    flat: dict[str, Any] = {}
    extras: dict[str, np.ndarray] = {}
    for row in rows:
        if isinstance(row, Unused):
            extras[row.source] = _cast(reader.read(row.source), dtype)
        else:
            parameter = _fill(row, reader, tuple(leaves[row.target].shape), dtype, extras)
            flat[row.target] = place(row.target, parameter)
    return from_paths(flat), extras


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    return array if dtype is None else array.astype(dtype, copy=False)


def _fill(row: Rule, reader: Reader, shape: tuple[int, ...], dtype: Any, extras: dict[str, np.ndarray]) -> np.ndarray:
    """Reads the tensors of one row straight into their place in a new parameter."""
    names = row.names()
    parameter = np.empty(shape, loaded_dtype(reader.infos[n].dtype for n in names) if dtype is None else dtype)
    for i, name in enumerate(names):
        _fill_layer(row, reader, name, parameter if row.layers is None else parameter[i], extras)
    return parameter


def _fill_layer(row: Rule, reader: Reader, name: str, layer: np.ndarray, extras: dict[str, np.ndarray]) -> None:
    tensor = _cast(reader.read(name), layer.dtype)
    if row.last_of is not None:
        axis, count = row.last_of
        tensor, unused = tensor.take(count - 1, axis), tensor.take(range(count - 1), axis)
        if unused.size:
            extras[name] = unused
    _copy_into(layer, row.to_ours(tensor, layer.shape))


def _copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source` in strips of the source that fit a cache: faster where axes are swapped."""
    if source.flags.c_contiguous:
        target[...] = source
        return
    axis = int(np.argmax(source.strides))
    step = max(1, _STRIP_BYTES // max(1, source.strides[axis]))
    source, target = np.moveaxis(source, axis, 0), np.moveaxis(target, axis, 0)
    for start in range(0, len(source), step):
        target[start : start + step] = source[start : start + step]


def export(
    rows: Iterable[Row], params: Mapping[str, Any], extras: Mapping[str, np.ndarray] | None = None
) -> dict[str, LazyTensor]:
    """The released tensors of `params`, by name, each made when it is read.

    `extras` as `convert` gave them make every tensor the one that was loaded. Without them (a model trained here) the
    unused tensors and slices are zeros. For single pictures that is exact: they would meet only the zero padding in
    time, or never run.

    Raises:
        ConversionError: all problems: parameters without a row, rows without a parameter, dtypes that are not in
            `DTYPES`, extras that no row names or of a wrong shape.
    """
    rows, leaves, extras = list(rows), paths(params), extras or {}
    raise_problems(find_export_problems(rows, leaves, extras))
    default = np.dtype(next(iter(leaves.values())).dtype)
    return dict(pair for row in rows for pair in _export_row(row, leaves, extras, default))


def _export_row(
    row: Row, leaves: Mapping[str, Any], extras: Mapping[str, np.ndarray], default: np.dtype
) -> Iterator[tuple[str, LazyTensor]]:
    if isinstance(row, Unused):
        unused = extras.get(row.source, np.broadcast_to(np.zeros((), default), row.shape))
        info = TensorInfo(DTYPE_NAMES[np.dtype(unused.dtype)], row.shape)
        yield row.source, LazyTensor(info, lambda: np.asarray(unused))
        return
    leaf = leaves[row.target]
    info = TensorInfo(DTYPE_NAMES[np.dtype(leaf.dtype)], row.released_shape(tuple(leaf.shape)))
    for i, name in enumerate(row.names()):
        yield name, LazyTensor(info, _released(row, leaf, i, extras.get(name), info.shape))


def _released(row: Rule, leaf: Any, i: int, unused: Any, shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
    """How to make released tensor `i` of a row once it is asked for."""

    def read() -> np.ndarray:
        held = np.asarray(leaf)  # indexed here: on a device XLA may rewrite what is no number in bfloat16
        used = row.to_released(held if row.layers is None else held[i])
        out = np.zeros(shape, used.dtype)
        if row.last_of is None:
            _copy_into(out, used)
            return out
        axis, count = row.last_of
        slices = np.moveaxis(out, axis, 0)
        slices[count - 1] = used
        if unused is not None:
            slices[: count - 1] = np.moveaxis(np.asarray(unused), axis, 0)
        return out

    return read
