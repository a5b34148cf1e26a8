"""One device, a mesh with all three axes over one, pmap, and two processes: the same run, the same result."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from internvlu_jax.checkpoints import loading

ROOT = Path(__file__).parents[2]
CLOSE = 1e-5


def environment(devices: int) -> dict[str, str]:
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def run(workdir: Path, devices: int, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.helpers.parallel_training", str(workdir), *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment(devices), stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> None:
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """Runs on 8 devices of one process."""
    directory = tmp_path_factory.mktemp("executors")
    ended(run(directory, 8, "single", "mesh", "pmap"))
    return directory


def compare(got: Path, want: Path) -> None:
    """Every metric of every step; after the last the sheet of samples, which all devices draw, and the parameters, the
    moving average of this run."""
    lines = [[json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()] for d in (got, want)]
    assert len(lines[0]) == len(lines[1]) == 3
    for ours, theirs in zip(*lines, strict=True):
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=CLOSE, atol=1e-7, err_msg=name)
    sheets = [np.asarray(Image.open(d / "samples/00000003.png"), int) for d in (got, want)]
    assert np.abs(sheets[0] - sheets[1]).max() <= 1 and np.unique(sheets[1]).size > 2
    ours, theirs = (loading.load(d).params for d in (got, want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=CLOSE, atol=1e-6), ours, theirs)


# The executors are compared in `test_executors`, with a step that compiles in a moment; here with all of a run.
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mesh", "pmap"])
def test_executors_agree(workdir, kind):
    compare(workdir / kind, workdir / "single")


@pytest.mark.slow
def test_two_processes_equal_one(workdir):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = [run(workdir, 4, "fsdp", "--join", port, number) for number in ("0", "1")]
    for process in both:
        ended(process)
    compare(workdir / "fsdp", workdir / "single")


def test_a_batch_that_the_mesh_cannot_share(tmp_path):
    code = (
        "import dataclasses; from tests.helpers.parallel_training import KINDS, train; "
        f"from tests.helpers.training import with_data; train(with_data(KINDS['mesh'], batch_size=6), '{tmp_path}')"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, env=environment(8), capture_output=True, text=True, check=False)
    assert "ValueError: a batch of 6 rows cannot be shared out over 4 groups of devices" in found.stderr
    assert "the next sizes are 4 or 8" in found.stderr
    assert not list(tmp_path.iterdir())
