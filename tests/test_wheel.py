"""What a user gets who installs the built wheel: the code runs without the source tree."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from internvlu_jax.inference.pipeline import InternVLUPipeline

ROOT = Path(__file__).parent.parent
PACKAGES = ("internvlu_jax", "converters", "experiments")
SETUPTOOLS = 77  # the least that pyproject.toml builds with


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The files of a wheel, built from a copy of the sources and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    # Where the environment has no setuptools that can build it, pip fetches one.
    options = ["--no-build-isolation"] if int(version("setuptools").split(".")[0]) >= SETUPTOOLS else []
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", *options, "-w", folder, folder / "source"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(site, folder, *arguments):
    """What a Python process prints that finds the packages in `site`; it runs in `folder`."""
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_model_in_the_box_comes_from_the_wheel(site, tmp_path):
    code = f"""
import sys
from pathlib import Path
import converters, experiments, internvlu_jax
from internvlu_jax.cli import main
weights = Path(internvlu_jax.__file__).parent / "small_world/weights"
status = main(["info", str(weights)])
ours = [m.__file__ for name, m in sys.modules.items() if name.split(".")[0] in {PACKAGES} and m.__file__]
assert len(ours) > 10 and all(Path(file).is_relative_to({str(site)!r}) for file in ours), ours
sys.exit(status)
"""
    said = python(site, tmp_path, "-c", code)
    assert "8,656,264" in said  # parameters of its head


def test_the_debug_configuration_has_its_data(site, tmp_path):
    code = f"""
import json
from pathlib import Path
from experiments.configs import CONFIGS
sources = [Path(path) for path, _ in CONFIGS["debug"].data.sources]
assert sources and all(source.is_relative_to({str(site)!r}) for source in sources), sources
records = [json.loads(line) for source in sources for line in source.read_text().splitlines()]
named = {{name for record in records for name in [record.get("image"), *record.get("source", [])] if name}}
assert named and all((sources[0].parent / name).is_file() for name in named), named
"""
    python(site, tmp_path, "-c", code)


@pytest.mark.slow
def test_the_debug_configuration_from_the_shell(site, tmp_path):
    """From scratch: random parameters, byte-level tokenizer, the shipped toy data."""
    run = tmp_path / "run"
    once = ["--steps", "1", "--accumulate", "1", "--save-every", "1", "--optimizer.warmup", "0"]
    said = python(site, tmp_path, "-m", "experiments.train", "debug", "--workdir", str(run), *once)
    assert "head/mmdit/blocks/image/q/kernel" in said
    assert "frozen" in said
    assert "done at step 1" in said
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1]
    sources = json.loads((run / "config.json").read_text())["data"]["sources"]
    assert all(Path(path).is_relative_to(site) for path, _ in sources)
    assert InternVLUPipeline.from_pretrained(run)("Hello?", max_new_tokens=3).tokens[0].size <= 3
