"""Shared fixtures. The package is imported under jaxtyping's hook, so every test checks every annotated shape."""

import gc
import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # nothing is written outside the tests' own folders
# Compiling is most of the tests' time. With "false" they check the programs as users run them, in half as long again.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# XLA's older way to write fusions for a CPU gives the same numbers and compiles twice as fast; one module of machine
# code is compiled faster than many, where each core has tests of its own.
_FLAGS = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # who called what is not written into programs
gc.set_threshold(100_000, 50, 100)  # tracing makes many objects that last

from jaxtyping import install_import_hook  # noqa: E402

# Plain types are mypy's; checked at every call as well, they take as long as all else in what draws and reads pictures.
_PACKAGE = Path(__file__).parent.parent / "internvlu_jax"
_WITH_SHAPES = [path for path in _PACKAGE.rglob("*.py") if "from jaxtyping import" in path.read_text(encoding="utf-8")]
_NAMES = [".".join(path.relative_to(_PACKAGE.parent).with_suffix("").parts) for path in _WITH_SHAPES]
_HOOKED = [name.removesuffix(".__init__") for name in _NAMES]
# Where a user's values arrive a wrong type is for our own checks to find.
install_import_hook([name for name in _HOOKED if name != "internvlu_jax.inference.pipeline"], "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

GOLDENS = Path(__file__).parent / "goldens"

# With few workers the folders whose files take longest come first: last, they would run alone.
_FIRST = ("training", "parallel", "inference", "experiments")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = [item.path.parent.name for item in items]
    places = [_FIRST.index(name) if name in _FIRST else len(_FIRST) for name in folders]
    items[:] = [item for _, _, item in sorted(zip(places, range(len(items)), items, strict=True))]


# For a part that takes no other branch for `mlp`: its sizes differ, and the cases of `pipeline` try those in the whole.
sizes_only = pytest.mark.parametrize("golden", ["base", pytest.param("mlp", marks=pytest.mark.slow)], indirect=True)


class Golden:
    """One recorded checkpoint, `base` or `mlp`, and the numbers recorded with it (see goldens/README.md)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = GOLDENS / name
        self.checkpoint = self.root / "checkpoint"
        self.cases = json.loads((self.root / "pipeline/meta.json").read_text(encoding="utf-8"))

    def component(self, name: str) -> dict[str, np.ndarray]:
        return dict(np.load(self.root / f"components/{name}.npz"))

    def component_json(self, name: str):
        return json.loads((self.root / f"components/{name}.json").read_text(encoding="utf-8"))

    def case(self, name: str) -> dict[str, np.ndarray]:
        return dict(np.load(self.root / f"pipeline/{name}.npz"))


@pytest.fixture(scope="session", params=["base", "mlp"])
def golden(request) -> Golden:
    return Golden(request.param)


def pytest_sessionfinish() -> None:
    from tests.helpers import unchecked

    unchecked.close()
