"""Ctrl-C and SIGTERM of a run by two processes: all save after the same step, whichever the signal came to."""

import json
import signal
import socket
import subprocess
import sys
import time

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


@pytest.mark.slow
@pytest.mark.parametrize(("which", "to"), [("SIGINT", [1]), ("SIGINT", [0, 1]), ("SIGTERM", [0])])
def test_all_processes_save(which, to, tmp_path):
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
        while not (metrics.exists() and metrics.read_text().count("\n") > 2):
            assert time.monotonic() < end and all(process.poll() is None for process in processes)
            time.sleep(0.05)
        for number in to:
            processes[number].send_signal(getattr(signal, which))
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    (step,) = saved_steps(tmp_path / "checkpoints")
    line = f"stopped at step {step}; `{tmp_path}` can go on, or be converted"
    assert all(words.splitlines()[-1] == line and "Traceback" not in words for words in said)
    assert [json.loads(words)["step"] for words in metrics.read_text().splitlines()] == list(range(1, step + 1))
