"""What keeps released tensors and parameters from fitting, all of it, before any data is read."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from converters.rules import DTYPE_NAMES, DTYPES, READABLE, ConversionError, Row, Rule, TensorInfo, Unused

_NAMES_SHOWN = 8
# Beside a quantized tensor, in the names of the usual libraries.
_SCALE = re.compile("scale|zero|absmax|quant|SCB|g_idx|qweight|packed")
Problems = dict[str, list[str]]  # kind -> names, with a word on each where the name does not say it


def listed(names: Iterable[str]) -> str:
    """Names for a message, cut after the first few."""
    names = list(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def raise_problems(problems: Iterable[str]) -> None:
    """Raises one `ConversionError` with all `problems`, if there are any."""
    problems = list(problems)
    if problems:
        raise ConversionError("; ".join(problems))


def find_problems(rows: Iterable[Row], infos: Mapping[str, TensorInfo], template: Mapping[str, Any]) -> list[str]:
    """Everything that keeps these tensors from becoming these parameters, one sentence a kind; empty when they fit.

    Args:
        rows: the table.
        infos: the released tensors.
        template: flat dict, path -> something with `.shape`, of the parameters.
    """
    rows = list(rows)
    problems = _table_problems(rows, template)
    strangers = _strangers(rows, infos)
    problems["tensors not expected"] = strangers["layers"]
    problems["tensors of a quantized checkpoint, which is not read here"] = strangers["scales"]
    for row in rows:
        problems["tensors missing"] += [name for name in row.names() if name not in infos]
        present = {name: infos[name] for name in row.names() if name in infos}
        shape = _expected_shape(row, template)
        for name, info in present.items():
            if shape is not None and info.shape != shape:
                problems["tensors of a wrong shape"].append(f"{name} is {info.shape}, expected {shape}")
            if info.dtype not in READABLE:
                problems[f"tensors of a dtype other than {', '.join(READABLE)}"].append(f"{name} is {info.dtype}")
    return _sentences(problems)


def find_differences(template: Mapping[str, Any], leaves: Mapping[str, Any]) -> list[str]:
    """Where parameters are not those of a model, one sentence a kind; both by path, of anything with `.shape`."""
    return _sentences(
        {
            "parameters missing": [path for path in template if path not in leaves],
            "parameters that the model lacks": [path for path in leaves if path not in template],
            "parameters of a wrong shape": wrong_shapes(template, leaves),
        }
    )


def wrong_shapes(template: Mapping[str, Any], leaves: Mapping[str, Any]) -> list[str]:
    """ "PATH is (2, 3), expected (2, 4)" of each parameter that both have and that has another shape."""
    return [
        f"{path} is {tuple(leaf.shape)}, expected {tuple(template[path].shape)}"
        for path, leaf in leaves.items()
        if path in template and tuple(leaf.shape) != tuple(template[path].shape)
    ]


def left_out(rows: Iterable[Row], infos: Mapping[str, TensorInfo]) -> list[str]:
    """Names of tensors that no row has and that no number depends on: buffers, remains of adapters, a tied head."""
    return _strangers(list(rows), infos)["rest"]


def _strangers(rows: list[Row], infos: Mapping[str, TensorInfo]) -> Problems:
    """The tensors that no row has.

    layers: known but for a number, so that the model is deeper than the table. scales: what turns the numbers of a
    known tensor into others. rest: all others, which the released code leaves out, too.
    """
    known = {name for row in rows for name in row.names()}
    numbered, modules = {_unnumbered(name) for name in known}, {name.rpartition(".")[0] for name in known}
    strangers: Problems = {"layers": [], "scales": [], "rest": []}
    for name in sorted(set(infos) - known):
        module, _, last = name.rpartition(".")
        of_a_known_tensor = any(head in known for head in itertools.accumulate(name.split("."), "{}.{}".format))
        if _unnumbered(name) in numbered:
            strangers["layers"].append(name)
        elif of_a_known_tensor or last == "scaled_fp8" or (module in modules and _SCALE.search(last)):
            strangers["scales"].append(name)
        else:
            strangers["rest"].append(name)
    return strangers


def _unnumbered(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _sentences(problems: Problems) -> list[str]:
    return [f"{len(names)} {kind}: {listed(names)}" for kind, names in problems.items() if names]


def _expected_shape(row: Row, leaves: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Released shape of each tensor of a row; None where the model lacks the parameter."""
    if isinstance(row, Unused):
        return row.shape
    return row.released_shape(tuple(leaves[row.target].shape)) if row.target in leaves else None


def _table_problems(rows: list[Row], leaves: Mapping[str, Any]) -> Problems:
    """Where the table and the model disagree, or the table with itself."""
    targets = Counter(row.target for row in rows if isinstance(row, Rule))
    names = Counter(name for row in rows for name in row.names())
    problems: Problems = defaultdict(list)
    problems["tensors named by two rows"] = [name for name, count in names.items() if count > 1]
    problems["parameters filled by two rows"] = [target for target, count in targets.items() if count > 1]
    problems["parameters without a row"] = sorted(set(leaves) - set(targets))
    problems["rows for parameters that the model lacks"] = sorted(set(targets) - set(leaves))
    for row in rows:
        if isinstance(row, Rule) and row.layers is not None and row.target in leaves:
            stacked = leaves[row.target].shape[0]
            if stacked != row.layers:
                problems["stacks of a wrong length"].append(f"{row.target} is {stacked}, expected {row.layers}")
    return problems


def find_export_problems(rows: list[Row], leaves: Mapping[str, Any], extras: Mapping[str, np.ndarray]) -> list[str]:
    """Everything that keeps parameters and extras from becoming released tensors.

    Args:
        rows: the table.
        leaves: flat dict, path -> parameter.
        extras: by released name.
    """
    problems = _table_problems(rows, leaves)
    arrays = [*leaves.items(), *extras.items()]
    problems[f"arrays of a dtype other than {', '.join(DTYPES)}"] = [
        f"{name} is {array.dtype}" for name, array in arrays if np.dtype(array.dtype) not in DTYPE_NAMES
    ]
    expected = dict(pair for row in rows for pair in _extras_of(row, leaves))
    problems["extras that no row names"] = sorted(set(extras) - set(expected))
    problems["extras of a wrong shape"] = [
        f"{name} is {tuple(extras[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in extras and tuple(extras[name].shape) != shape
    ]
    return _sentences(problems)


def _extras_of(row: Row, leaves: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """(released name, shape) of what `convert` keeps beside the parameters for this row."""
    shape = _expected_shape(row, leaves)
    if shape is None or (isinstance(row, Rule) and row.last_of is None):
        return []
    if isinstance(row, Rule) and row.last_of is not None:
        axis, count = row.last_of
        if count == 1:
            return []
        shape = (*shape[:axis], count - 1, *shape[axis + 1 :])
    return [(name, shape) for name in row.names()]
