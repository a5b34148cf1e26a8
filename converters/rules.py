"""The rows of a conversion table: where a released tensor goes and how its axes move.

    Rule("model.layers.{i}.self_attn.q_proj.weight", "llm/layers/attn/q/kernel", "(n h) d -> d n h", layers=28)

`{i}` counts 0..layers-1 and becomes the leading axis of the parameter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from einops import rearrange

# The dtypes that a parameter may have, by their names in safetensors.
DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# What tensors may be stored as besides, and what they become: the narrowest dtype above that holds every value. That of
# float64 rounds, as the released code does when it fills a float32 model.
WIDENED: dict[str, tuple[np.dtype, str]] = {
    "F8_E4M3": (np.dtype(ml_dtypes.float8_e4m3fn), "BF16"),
    "F8_E5M2": (np.dtype(ml_dtypes.float8_e5m2), "BF16"),
    "F64": (np.dtype(np.float64), "F32"),
}
READABLE = (*DTYPES, *WIDENED)


def loaded_dtype(stored: Iterable[str]) -> np.dtype:
    """The dtype of a parameter whose tensors are stored as these: theirs, or float32, which holds all of several."""
    names = {WIDENED[name][1] if name in WIDENED else name for name in stored}
    return DTYPES[names.pop()] if len(names) == 1 else np.dtype(np.float32)


class ConversionError(ValueError):
    """A checkpoint does not fit: every problem found, with the names of the tensors, parameters and files."""


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a released tensor without reading it: dtype as safetensors names it, and shape."""

    dtype: str
    shape: tuple[int, ...]


@runtime_checkable
class Reader(Protocol):
    """Tensors that can be looked at before they are read."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Rule:
    """One row: a released tensor (or one a layer) <-> one parameter.

    source: released name; `{i}` stands for the layer number.
    target: path of the parameter, joined with "/".
    pattern: einops pattern, released -> ours, of one layer; empty where the axes stay as they are.
    sizes: lengths of axes that einops cannot infer from the parameter's shape, those inside brackets on our side.
    layers: how many tensors are stacked; None for a single one.
    last_of: (axis, length) of a released axis of which only the last slice is the parameter; `pattern` sees the tensor
        without that axis. The other slices are extras.
    """

    source: str
    target: str
    pattern: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    layers: int | None = None
    last_of: tuple[int, int] | None = None

    def names(self) -> list[str]:
        """The released names, in layer order."""
        return _layer_names(self.source, self.layers)

    def to_ours(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A released tensor, without its unused slices, as one layer of a parameter whose layer has `shape`."""
        if not self.pattern:
            return tensor
        ours = self.pattern.split("->")[1]
        axes = re.findall(r"\([^)]*\)|\S+", ours)
        known = {axis: n for axis, n in zip(axes, shape, strict=True) if axis.isidentifier()}
        return rearrange(tensor, self.pattern, **{**known, **self.sizes})

    def to_released(self, parameter: np.ndarray) -> np.ndarray:
        """One layer of a parameter -> the released tensor without its unused slices."""
        if not self.pattern:
            return parameter
        released, ours = self.pattern.split("->")
        return rearrange(parameter, f"{ours} -> {released}", **self.sizes)

    def layer_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.layers is None else shape[1:]

    def released_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of each released tensor, from the parameter's shape."""
        empty = np.broadcast_to(np.float32(0), self.layer_shape(shape))  # one number in memory, whatever the shape
        released = list(self.to_released(empty).shape)
        if self.last_of is not None:
            released.insert(*self.last_of)
        return tuple(released)


@dataclass(frozen=True)
class Unused:
    """A released tensor of `shape` that is accepted, kept among the extras, and never computed with."""

    source: str
    shape: tuple[int, ...]

    def names(self) -> list[str]:
        return [self.source]


Row = Rule | Unused


@dataclass(frozen=True)
class LazyTensor:
    """A released tensor that is made when `read` is called."""

    info: TensorInfo
    read: Callable[[], np.ndarray]


def _layer_names(source: str, layers: int | None) -> list[str]:
    return [source] if layers is None else [source.replace("{i}", str(i)) for i in range(layers)]
