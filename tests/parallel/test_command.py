"""What somebody tries on a laptop: shell commands on simulated devices, with no flag but the one that makes them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.processes import GATHERED_WHOLE, ROOT

pytestmark = pytest.mark.slow

MESH = ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2")


def run(*command: str, devices: int = 8, **settings: str) -> str:
    """What a command says. It ends by itself, and well; programs are compiled, not read, so that XLA's words appear."""
    settings |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "false",
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=3000
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert GATHERED_WHOLE not in done.stderr, done.stderr
    return done.stdout


def losses(workdir: Path) -> list[float]:
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_training(tmp_path):
    train = ("experiments.train", "debug", "--steps", "3", "--workdir")
    run(*train, str(tmp_path / "mesh"), "--executor", "mesh", *MESH)
    run(*train, str(tmp_path / "one"), "--executor", "single", devices=1)
    np.testing.assert_allclose(losses(tmp_path / "mesh"), losses(tmp_path / "one"), rtol=1e-5)


@pytest.mark.parametrize("devices", ["all", "pmap", "data=2,fsdp=2,tensor=2"])
def test_drawing(tmp_path, devices):
    draw = ("internvlu_jax.cli", "image", "two red circles", "--seed", "3", "--steps", "4", "--num-images", "3")
    run(*draw, "--out", str(tmp_path / "many.png"), "--devices", devices)
    run(*draw, "--out", str(tmp_path / "one.png"), devices=1)
    for name in ("", "-1", "-2"):
        many, one = (np.asarray(Image.open(tmp_path / f"{which}{name}.png"), int) for which in ("many", "one"))
        assert np.abs(many - one).max() <= 1


@pytest.mark.parametrize("stage", ["stage1", "stage3"])
def test_released_sizes(stage):
    """Every kind of micro-batch of a stage is partitioned without gathering an array whole."""
    run("experiments.memory", "--stage", stage, *MESH, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
