"""The scripts that start a run on many hosts, with stand-ins for what a cluster has."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "experiments/launch"
RUN = ["stage3", "--workdir", "a run/3", "--data.sources", "t2i $x/", "1"]


def run(script: str, *words: str, **settings: str) -> subprocess.CompletedProcess:
    command = ["bash", str(LAUNCH / script), *words]
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)


def stand_in(folder: Path, name: str, text: str) -> dict[str, str]:
    """A command that writes down its words, one a line, and then does something; the environment that has it."""
    (folder / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > "{folder}/{name}.words"\n{text}\n')
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}


def words(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.words").read_text().splitlines()


@pytest.mark.parametrize("script", sorted(p.name for p in LAUNCH.iterdir()))
def test_they_are_scripts(script):
    assert subprocess.run(["bash", "-n", LAUNCH / script], check=False).returncode == 0
    assert os.access(LAUNCH / script, os.X_OK)


def test_slurm(tmp_path):
    dry = run("slurm.sh", *RUN, DRY_RUN="1")
    train = ["python", "-m", "experiments.train", *RUN, "--distributed"]
    assert shlex.split(dry.stdout) == ["srun", "--kill-on-bad-exit=1", *train]
    for said, requeued in (("stopped at step 3; x", ["requeue", "7"]), ("done at step 9; x", None)):
        (tmp_path / "scontrol.words").unlink(missing_ok=True)
        stand_in(tmp_path, "scontrol", "")
        done = run("slurm.sh", *RUN, **stand_in(tmp_path, "srun", f"echo '{said}' >&2"))
        assert done.returncode == 0 and done.stdout == f"{said}\n"
        assert words(tmp_path, "srun") == ["--kill-on-bad-exit=1", *train]
        assert (words(tmp_path, "scontrol") if requeued else None) == requeued
    assert not (tmp_path / "scontrol.words").exists(), "a run that is done does not come again"
    failed = run("slurm.sh", *RUN, **stand_in(tmp_path, "srun", "echo 'error: x' >&2; exit 2"))
    assert failed.returncode == 2 and not (tmp_path / "scontrol.words").exists()


def test_tpu_pod(tmp_path):
    done = run("tpu_pod.sh", "pod", "us-x", *RUN, **stand_in(tmp_path, "gcloud", "exit 3"))
    assert done.returncode == 3
    *given, command = words(tmp_path, "gcloud")
    assert given == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=us-x", "--worker=all"]
    train = ["python", "-m", "experiments.train", *RUN, "--distributed"]
    assert shlex.split(command.removeprefix("--command=")) == ["cd", "~/internvlu_jax", "&&", *train]
    dry = run("tpu_pod.sh", "pod", "us-x", *RUN, DRY_RUN="1")
    assert shlex.split(dry.stdout)[1:] == [*given, command]
    assert run("tpu_pod.sh", "pod", "us-x").returncode == 2
