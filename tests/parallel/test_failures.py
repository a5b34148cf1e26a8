"""One of two processes of a run fails, as of its data or of its disk: it says why, and both end soon.

Where it is the data, what was done before is saved, and the same command goes on.
"""

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
import itertools
import sys
from pathlib import Path
from experiments.train import Arguments, Cluster, run
from internvlu_jax.data.examples import DataError
from internvlu_jax.data.loader import Loader
from internvlu_jax.training import loop
from tests.helpers.parallel_training import KINDS
from tests.helpers.training import with_data
workdir, port, number, fails = sys.argv[1:]
def fail(*_):
    raise OSError("no space here")
if fails == "disk" and number == "1":
    loop.next_step = fail
made, steps = Loader._step, itertools.count()
def make(loader):
    if next(steps) == 2:
        raise DataError("no more of it")
    return made(loader)
if fails == "later data" and number == "1":
    Loader._step = make
cfg = with_data(KINDS["fsdp"], sources=(("t2i.jsonl", 1.0),), max_broken=1.0)
sys.exit(run(Arguments(Path(workdir), cfg, Cluster(False, f"localhost:{port}", 2, int(number)))))
"""


def both(folder, fails: str) -> tuple[list[int], list[str]]:
    """Exit codes and messages of the two processes of a run, of which the second may fail in some way."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = []
    for number in "01":
        command = [sys.executable, "-c", CODE, str(folder / "run"), port, number, fails]
        env = {**environment(4), "PYTHONPATH": str(ROOT)}
        processes.append(subprocess.Popen(command, cwd=folder / number, env=env, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


@pytest.fixture
def folder(tmp_path):
    """With the same records for each process."""
    for number in "01":
        shutil.copytree(TOY, tmp_path / number)
    return tmp_path


@pytest.mark.slow
def test_other_data_end_both(folder):
    record = json.loads((folder / "1/t2i.jsonl").read_text().splitlines()[0])
    (folder / "1" / record["image"]).unlink()
    codes, said = both(folder, "")
    line = "error: process 1 has read other records than process 0; expected that all hosts see the same files"
    assert codes == [2, 2] and all(line in words for words in said), said
    assert saved_steps(folder / "run/checkpoints") == []


@pytest.mark.slow
def test_a_full_disk_ends_both(folder):
    codes, said = both(folder, "disk")
    assert codes[1] == 1 and said[1].splitlines()[-1] == "error: no space here" and codes[0] != 0, (codes, said)
    assert saved_steps(folder / "run/checkpoints") == []


@pytest.mark.slow
def test_data_that_end_later_lose_no_step(folder):
    codes, said = both(folder, "later data")
    assert codes == [2, 2] and "error: the data of process 1 ended" in said[0] and "no more of it" in said[1], said
    assert saved_steps(folder / "run/checkpoints") == [2]
    codes, said = both(folder, "")
    assert codes == [0, 0] and saved_steps(folder / "run/checkpoints")[-1] == 3, said
