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
from safetensors.numpy import load_file, save_file

from converters.adapters import export_adapter, read_adapter, trained_adapter
from converters.checkpoint import PARTS
from converters.engine import convert, export
from converters.rules import TensorInfo
from converters.vlm import vlm_rules
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.adapters import joined
from internvlu_jax.models import lora
from internvlu_jax.models.qwen3 import Qwen3
from internvlu_jax.utils.files import write_json
from internvlu_jax.utils.tree import from_paths, paths
from tests.conftest import GOLDENS
from tests.helpers.adapters import weights
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


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PYTHON is None, reason="peft is not installed here, and PEFT_PYTHON names no interpreter with it"
    ),
]


def beside(*arguments) -> None:
    done = subprocess.run([PYTHON, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def with_factors(params, pattern: str, rank: int) -> dict:
    """What a run trains, at random."""
    shapes = {
        p: leaf.shape for p, leaf in paths(lora.add(params, pattern, rank, jax.random.key(0))).items() if "lora_" in p
    }
    rng = np.random.default_rng(0)
    return from_paths({path: 0.3 * rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()})


def test_every_map_is_found_by_its_released_name(tmp_path):
    """Of both parts, the head's too, and PEFT merges what we fold."""
    base, matrices = loading.load(GOLDENS / "base/checkpoint"), weights(GOLDENS / "base/checkpoint")
    trained = with_factors(base.params, r"(vlm/(vit/layers|projector|llm)|head/mmdit)/.*", 2)
    export_adapter(tmp_path / "all", base.config, trained, alpha=3.0)
    save_file(matrices, tmp_path / "all/matrices.safetensors")
    beside(tmp_path / "all", "vlm", "generation_decoder")
    got = load_file(tmp_path / "all/merged.safetensors")
    leaves = paths(base.params)
    for path, (a, b) in trained_adapter(trained, 3.0, base.config).items():
        leaves[f"{path}/kernel"] = lora.folded(leaves[f"{path}/kernel"], a, b)
    params = from_paths(leaves)
    for part in ("vlm", "head"):
        for name, tensor in export(PARTS[part].rows(base.config), params[part]).items():
            module = name.removesuffix(".weight")
            if module in got:
                np.testing.assert_allclose(got.pop(module), tensor.read(), atol=1e-5, err_msg=name)
                changed = np.abs(tensor.read() - matrices[module]).max()
                assert changed > 0.01, name
    assert not got


def test_both_sides_compute_the_same(tmp_path):
    base = loading.load(GOLDENS / "base/checkpoint")
    llm = dataclasses.replace(base.config.vlm.llm_config, tie_word_embeddings=True)
    sizes = {name: value for name, value in dataclasses.asdict(llm).items() if name != "rope_scaling"}
    write_json(tmp_path / "sizes.json", sizes)
    trained = with_factors(base.params, r"vlm/llm/.*/(q|k|v|out|gate|down)", 2)
    export_adapter(tmp_path / "exported", base.config, trained, alpha=4.0)
    (tmp_path / "exported/vlm").rename(tmp_path / "ours")
    beside(tmp_path)
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
