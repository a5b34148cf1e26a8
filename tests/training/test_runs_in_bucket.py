"""Runs in a bucket, by processes that reach it with gcsfs and TensorStore: killed, resumed, by two, and read again."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converters.engine import on_host
from internvlu_jax.checkpoints import loading
from internvlu_jax.checkpoints.model_directory import save_model
from internvlu_jax.checkpoints.run_checkpoints import saved_steps
from internvlu_jax.utils.buckets import path_of
from tests.helpers.bucket import Service, in_process
from tests.helpers.training import CHECKPOINT, leaves_equal, one_block

ROOT = Path(__file__).parents[2]
STEPS = 12
pytestmark = pytest.mark.slow


@pytest.fixture
def service(monkeypatch):
    pytest.importorskip("gcsfs")
    with in_process(monkeypatch) as service:
        yield service


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """The smallest model to train."""
    model = one_block(loading.load(CHECKPOINT, place=on_host))
    directory = tmp_path_factory.mktemp("start") / "model"
    save_model(directory, model.config, model.params, model.extras, model.assets)
    return str(directory)


def begin(cache: Path, *command: str, devices: int = 1) -> subprocess.Popen:
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
    }
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def train(cache: Path, workdir: str | Path, start: str, steps: int = STEPS) -> subprocess.Popen:
    code = (
        "import dataclasses, sys; from experiments.train import Arguments, run; "
        "from tests.helpers.training import TINY;"
        f"sys.exit(run(Arguments({str(workdir)!r}, dataclasses.replace(TINY, start={start!r}, steps={steps}, "
        "sample_every=6, sample_prompts=('a',), sample_steps=2))))"
    )
    return begin(cache, "-c", code)


def ended(process: subprocess.Popen, seconds: float = 400) -> str:
    _, said = process.communicate(timeout=seconds)
    assert process.returncode == 0, said[-3000:]
    return said


def killed_at(service: Service, process: subprocess.Popen, change: int) -> bool:
    """Whether SIGKILL came with a change of this number that the process sent, which is carried out; else it ended."""
    count = 0

    def refuses(method: str, name: str) -> None:
        nonlocal count
        count += method != "GET"
        if count == change:
            process.kill()

    service.refuses = refuses
    _, said = process.communicate(timeout=400)
    service.refuses = lambda method, name: None
    assert process.returncode in (0, -9), said[-3000:]
    return process.returncode == -9


def metrics(workdir: str | Path) -> list[dict]:
    return [json.loads(line) for line in (path_of(workdir) / "metrics.jsonl").read_bytes().splitlines()]


def test_killed_at_any_moment_and_read_again(service, cache, start, tmp_path):
    """It ends where the uninterrupted run on a disk does, and is what that is to whatever reads it."""
    rng, disk, bucket = np.random.default_rng(0), str(tmp_path / "whole"), "gs://bucket/run"
    ended(train(cache, disk, start))
    kills, within = 0, 0
    while killed_at(service, train(cache, bucket, start), int(rng.integers(2, 140))):
        kills += 1
        steps = saved_steps(path_of(f"{bucket}/checkpoints"))
        begun = {name.split("/")[2] for name in service.names("run/checkpoints/")}
        within += begun != set(map(str, steps))
    print(f"{kills} kills, {within} within a save")
    assert kills >= 3 and within >= 1
    assert metrics(bucket) == metrics(disk) and len(metrics(disk)) == STEPS
    assert saved_steps(path_of(f"{bucket}/checkpoints")) == saved_steps(Path(disk) / "checkpoints")
    leaves_equal(loading.load(bucket).params, loading.load(disk).params)
    for name in ("samples/00000006.png", "samples/00000012.png"):
        assert (path_of(bucket) / name).read_bytes() == (Path(disk) / name).read_bytes()

    command = ("-m", "internvlu_jax.cli")
    for name, source in {"a": disk, "b": bucket}.items():
        out, picture = str(tmp_path / name), str(tmp_path / f"{name}.png")
        ended(begin(cache, *command, "convert", source, out, "--to", "released"))
        size = ("--height", "32", "--width", "32", "--steps", "2", "--seed", "3")
        ended(begin(cache, *command, "image", "a", "--checkpoint", source, "--out", picture, *size))
        ended(begin(cache, *command, "info", source))
        ended(train(cache, tmp_path / f"next {name}", source, steps=2))
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*") if p.is_file()) for n in "ab"]
    assert files[0] == files[1] and len(files[0]) > 5
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files[0])
    assert pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")
    assert metrics(tmp_path / "next a") == metrics(tmp_path / "next b")


def test_an_outage_is_waited_for(service, cache, start):
    """The service answers nothing for some seconds within a save; the run goes on, and all is there."""
    since: list[float] = []

    def refuses(method: str, name: str) -> int | None:
        if method == "POST" and "checkpoints/4/params" in name:
            since.append(time.monotonic())
        return 0 if since and time.monotonic() - since[0] < 5 else None

    service.refuses = refuses
    ended(train(cache, "gs://bucket/run", start, steps=6))
    assert since and saved_steps(path_of("gs://bucket/run/checkpoints"))[-2:] == [4, 6]


def pixels(path: Path) -> bytes:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.tobytes()


def by_two(cache: Path, workdir: str | Path, until: Callable[[list[subprocess.Popen]], None] | None = None) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    helper = ("-m", "tests.helpers.parallel_training", str(workdir), "fsdp", "--join", port)
    both = [begin(cache, *helper, number, devices=2) for number in ("0", "1")]
    if until is None:
        for process in both:
            ended(process)
        return
    until(both)
    for process in both:
        process.communicate(timeout=400)
        assert process.returncode == -9


def test_two_processes(service, cache, tmp_path):
    """Each writes its shards; both are killed while they do, and the same commands end as on a disk."""

    def kill_within_the_save(both: list[subprocess.Popen]) -> None:
        def refuses(method: str, name: str) -> None:
            if method == "POST" and "checkpoints/3/params/ocdbt.process_1" in name:
                for process in both:
                    process.kill()

        service.refuses = refuses

    by_two(cache, tmp_path)
    by_two(cache, "gs://bucket/two", kill_within_the_save)
    service.refuses = lambda method, name: None
    left = service.names("two/fsdp/checkpoints/3/")
    assert left and not saved_steps(path_of("gs://bucket/two/fsdp/checkpoints"))
    by_two(cache, "gs://bucket/two")
    assert any("ocdbt.process_1" in name for name in service.names("two/fsdp/checkpoints/3/"))
    assert metrics("gs://bucket/two/fsdp") == metrics(tmp_path / "fsdp") and len(metrics(tmp_path / "fsdp")) == 3
    leaves_equal(loading.load("gs://bucket/two/fsdp").params, loading.load(tmp_path / "fsdp").params)


@pytest.mark.parametrize(
    ("refusal", "workdir", "expected"),
    [
        (403, "gs://bucket/run", "error: gs://bucket/run cannot be written: Forbidden"),
        (None, "gs://other/run", "error: gs://other/run cannot be written: there is no bucket other. Check the name"),
    ],
)
def test_one_line_says_what_is_wrong(service, cache, start, refusal, workdir, expected):
    service.refuses = lambda method, name: refusal
    process = train(cache, workdir, start)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 2 and said.startswith(expected) and len(said.splitlines()) == 1, said
