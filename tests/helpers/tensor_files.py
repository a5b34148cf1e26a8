"""Small released tensors, and safetensors files of them."""

from pathlib import Path

import numpy as np

from converters.engine import LazyTensor, TensorInfo
from converters.rules import DTYPE_NAMES
from converters.tensors import open_part


def lazy(arrays: dict[str, np.ndarray]) -> dict[str, LazyTensor]:
    return {n: LazyTensor(TensorInfo(DTYPE_NAMES[a.dtype], a.shape), a.copy) for n, a in arrays.items()}


def read_all(directory: Path) -> dict[str, np.ndarray]:
    reader = open_part(directory)
    return {name: reader.read(name) for name in reader.infos}


def assert_same_bits(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


def released() -> dict[str, np.ndarray]:
    shapes = {
        "layers.0.weight": (6, 5), "layers.1.weight": (6, 5), "patch.weight": (4, 1, 2, 3), "conv.weight": (5, 3, 4, 2),
        "idle": (2, 2),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
