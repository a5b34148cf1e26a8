"""One of two processes of a run fails, as of its data or of its disk: it says why, and both end soon."""

import json
import shutil
import socket
import subprocess
import sys

import pytest

from experiments.configs.debug import TOY
from internvlu_jax.checkpoints.run_checkpoints import saved_steps
from tests.parallel.test_training import ROOT, environment

CODE = """
import sys
from pathlib import Path
from experiments.train import Arguments, Cluster, run
from internvlu_jax.training import loop
from tests.helpers.parallel_training import KINDS
from tests.helpers.training import with_data
workdir, port, number, fails = sys.argv[1:]
def fail(*_):
    raise OSError("no space here")
if fails == "disk" and number == "1":
    loop.next_step = fail
cfg = with_data(KINDS["fsdp"], sources=(("t2i.jsonl", 1.0),), max_broken=1.0)
sys.exit(run(Arguments(Path(workdir), cfg, Cluster(False, f"localhost:{port}", 2, int(number)))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["data", "disk"])
def test_both_end_and_say_why(fails, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = []
    for number in "01":
        shutil.copytree(TOY, tmp_path / number)
        if fails == "data" and number == "1":
            record = json.loads((tmp_path / number / "t2i.jsonl").read_text().splitlines()[0])
            (tmp_path / number / record["image"]).unlink()
        command = [sys.executable, "-c", CODE, str(tmp_path / "run"), port, number, fails]
        env = {**environment(4), "PYTHONPATH": str(ROOT)}
        processes.append(subprocess.Popen(command, cwd=tmp_path / number, env=env, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    if fails == "data":
        line = "error: process 1 has read other records than process 0; expected that all hosts see the same files"
        assert codes == [2, 2] and all(line in words for words in said), said
    else:
        assert codes[1] == 1 and said[1].splitlines()[-1] == "error: no space here" and codes[0] != 0, (codes, said)
    assert saved_steps(tmp_path / "run/checkpoints") == []
