"""Ctrl-C and SIGTERM of a run by two processes: all save after the same step, whichever the signal came to."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internvlu_jax.checkpoints.run_checkpoints import saved_steps
from tests.parallel.test_training import ROOT, environment

CODE = """
import dataclasses, sys
from pathlib import Path
from experiments.train import Arguments, Cluster, run
from tests.helpers.parallel_training import KINDS, write_arrays_whole
workdir, port, number = sys.argv[1:]
write_arrays_whole()
endless = dataclasses.replace(KINDS["fsdp"], steps=10**6, save_every=10**6)
sys.exit(run(Arguments(Path(workdir), endless, Cluster(False, f"localhost:{port}", 2, int(number)))))
"""


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "to", "steps"), [("SIGINT", [1], 0), ("SIGINT", [1], 3), ("SIGINT", [0, 1], 3), ("SIGTERM", [0], 3)]
)
def test_all_processes_save(which, to, steps, tmp_path):
    """Also where it comes before the first step: then that is the last."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(tmp_path), port, number],
            cwd=ROOT, env=environment(4), stderr=subprocess.PIPE, text=True,
        )
        for number in "01"
    ]  # fmt: skip
    try:
        metrics, end = tmp_path / "metrics.jsonl", time.monotonic() + 400
        while not any(tmp_path.iterdir()) or read(metrics).count("\n") < steps:
            assert time.monotonic() < end and all(process.poll() is None for process in processes)
            time.sleep(0.05)
        for number in to:
            processes[number].send_signal(getattr(signal, which))
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    (step,) = saved_steps(tmp_path / "checkpoints")
    line = f"stopped at step {step}; `{tmp_path}` can go on, or be converted"
    assert all(words.splitlines()[-1] == line and "Traceback" not in words for words in said)
    assert [json.loads(words)["step"] for words in read(metrics).splitlines()] == list(range(1, step + 1))
    assert step == 1 or steps
