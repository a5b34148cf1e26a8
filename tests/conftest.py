"""Shared fixtures. The package is imported under jaxtyping's hook, so every test checks every annotated shape."""

import json
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook(["internvlu_jax", "converters"], "beartype.beartype")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

GOLDENS = Path(__file__).parent / "goldens"


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
