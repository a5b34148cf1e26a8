"""PEFT itself reads what we write and we read what it writes: both compute the same hidden states.

PEFT_PYTHON names an interpreter of an environment with peft, transformers and torch; ours needs none of them.
"""

import dataclasses
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from converters.adapters import export_adapter, read_adapter, trained_adapter
from converters.engine import convert
from converters.rules import TensorInfo
from converters.vlm import vlm_rules
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.adapters import joined
from internvlu_jax.models import lora
from internvlu_jax.models.qwen3 import Qwen3
from internvlu_jax.utils.files import write_json
from internvlu_jax.utils.tree import from_paths, paths
from tests.conftest import GOLDENS
from tests.helpers.measures import relative_l2

PYTHON = os.environ.get("PEFT_PYTHON") or (sys.executable if find_spec("peft") else None)
SCRIPT = Path(__file__).parents[1] / "helpers/peft_side.py"


class Tensors:
    """The language model's tensors as a reader has them."""

    def __init__(self, path: Path) -> None:
        self._tensors = load_file(path)
        self.infos = {name: TensorInfo("F32", array.shape) for name, array in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        return self._tensors[name]


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="peft is not installed here, and PEFT_PYTHON names no interpreter with it")
def test_both_sides_compute_the_same(tmp_path):
    base = loading.load(GOLDENS / "base/checkpoint")
    llm = dataclasses.replace(base.config.vlm.llm_config, tie_word_embeddings=True)
    sizes = {name: value for name, value in dataclasses.asdict(llm).items() if name != "rope_scaling"}
    write_json(tmp_path / "sizes.json", sizes)
    tree = lora.add(base.params, r"vlm/llm/.*/(q|k|v|out|gate|down)", 2, jax.random.key(0))
    rng = np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in paths(tree).items() if "lora_" in path}
    trained = from_paths({p: 0.3 * rng.normal(size=shape).astype(np.float32) for p, shape in shapes.items()})
    export_adapter(tmp_path / "exported", base.config, trained, alpha=4.0)
    (tmp_path / "exported/vlm").rename(tmp_path / "ours")
    done = subprocess.run([PYTHON, SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids, want = (out := load_file(tmp_path / "out.safetensors")).pop("ids"), out

    rules = [rule for rule in vlm_rules(base.config.vlm) if rule.source.startswith("language_model.model.")]
    template = {
        path: leaf for path, leaf in paths(base.params["vlm"]).items() if path in {rule.target for rule in rules}
    }
    params, _ = convert(rules, Tensors(tmp_path / "weights.safetensors"), from_paths(template))
    module = Qwen3(llm)

    def last(*adapters) -> np.ndarray:
        leaves = paths({"vlm": params})
        for path, (a, b) in joined([(adapter, 1.0) for adapter in adapters]).items():
            leaves[f"{path}/kernel"] = lora.folded(leaves[f"{path}/kernel"], a, b)

        def run(module, ids):
            return module(module.embed(ids), jnp.arange(ids.shape[1])[None]).last

        weights = jax.tree.map(jnp.asarray, from_paths(leaves)["vlm"]["llm"])
        return np.asarray(module.apply({"params": weights}, jnp.asarray(ids, jnp.int32), method=run))

    ours, theirs = trained_adapter(trained, 4.0, base.config), read_adapter(tmp_path / "theirs", base.config)
    got = {"plain": last(), "ours": last(ours), "theirs": last(theirs), "both": last(ours, theirs)}
    assert got.keys() == want.keys()
    for name, states in got.items():
        assert relative_l2(states, want[name]) < 1e-5, name
        assert name == "plain" or relative_l2(states, want["plain"]) > 0.05
