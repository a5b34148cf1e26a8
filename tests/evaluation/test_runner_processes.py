"""The command with the model in the box, in processes of its own: killed ten times; on one device, many, and by hosts.

A run of the tests takes some minutes.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import benchmark_files
from tests.helpers.processes import ROOT

pytestmark = pytest.mark.slow
PROMPTS = ("two red circles", "a blue square", "three green triangles", "a red circle left of a blue square", "a star")
KILLS = 10


def geneval(folder: Path, prompts: Sequence[str] = PROMPTS) -> Path:
    rows = [{"tag": "counting", "include": [{"class": "circle", "count": 1}], "prompt": prompt} for prompt in prompts]
    return benchmark_files.lines(folder / "evaluation_metadata.jsonl", rows)


def start(name: str, data: Path, out: Path, *more: str, devices: int = 1) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "experiments.benchmarks", name, "--prompts", str(data), "--out", str(out), *more]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(folder: Path) -> tuple[dict[str, bytes], dict]:
    """Every file, and the settings but for the commit, which somebody may make meanwhile."""
    files = contents(folder)
    settings = json.loads(files.pop("run.json"))
    return files, settings | {"commit": None}


def test_killed_at_random_moments(tmp_path):
    # enough to draw that some is left after each kill, on a fast machine too
    data, options = geneval(tmp_path, 2 * PROMPTS), ("--steps", "20", "--batch", "2")
    said = ended(start("geneval", data, tmp_path / "whole", *options))
    assert "by all its programs alone" in said and "by the sampler alone" in said
    random, killed, out = np.random.default_rng(0), 0, tmp_path / "killed"
    for _ in range(KILLS):
        process = start("geneval", data, out, *options)
        before, more = len(contents(out)), int(random.integers(0, 4))
        while process.poll() is None and len(contents(out)) < before + more:
            time.sleep(0.005)
        time.sleep(float(random.uniform(0, 0.3)) if more else float(random.uniform(1, 8)))
        process.kill()
        process.communicate()
        killed += process.returncode != 0
    assert killed > KILLS // 2
    ended(start("geneval", data, out, *options))
    assert told(out) == told(tmp_path / "whole")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    ended(start("geneval", geneval(folder), folder / "out", "--steps", "4", "--batch", "8"))
    return folder


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answered")
    data = benchmark_files.ocrbench(folder)
    ended(start("ocrbench", data, folder / "out", "--pictures", str(folder / "OCRBench_Images"), *WORDS))
    return folder


WORDS = ("--max-new-tokens", "6", "--batch", "2")
WAYS = {"all": (("--devices", "all"),), "pmap": (("--devices", "pmap"),),
        "hosts": (("--host", "0", "--hosts", "2"), ("--host", "1", "--hosts", "2"))}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_pictures_are_the_same_within_a_level(drawn, tmp_path, way):
    for more in WAYS[way]:
        devices = 1 if way == "hosts" else 8
        ended(start("geneval", drawn / "evaluation_metadata.jsonl", tmp_path, "--steps", "4", *more, devices=devices))
    assert json.loads((tmp_path / "run.json").read_text())["device"] == f"{devices} x cpu"
    files = sorted((drawn / "out").rglob("*.png"))
    assert len(files) == 4 * len(PROMPTS)
    for file in files:
        got, want = (np.asarray(Image.open(p), int) for p in (tmp_path / file.relative_to(drawn / "out"), file))
        assert np.abs(got - want).max() <= 1
    names = {path.relative_to(drawn / "out") for path in (drawn / "out").rglob("metadata.jsonl")}
    assert all((tmp_path / name).read_bytes() == (drawn / "out" / name).read_bytes() for name in names) and names


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_the_same(answered, tmp_path, way):
    for more in WAYS[way]:
        given = ("--pictures", str(answered / "OCRBench_Images"), *WORDS, *more)
        ended(start("ocrbench", answered / "OCRBench.json", tmp_path, *given, devices=1 if way == "hosts" else 8))
    assert (tmp_path / "answers.jsonl").read_bytes() == (answered / "out/answers.jsonl").read_bytes()
    assert len([json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]) == 3
