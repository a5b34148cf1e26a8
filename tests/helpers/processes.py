"""Runs parts of `tests.helpers.parallel` in processes of their own, and reads what they found."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
# What XLA says of a sharding that it can turn into another only by gathering the array whole.
GATHERED_WHOLE = "Involuntary full rematerialization"


def launch(part: str, out: Path, *process: str) -> subprocess.Popen:
    """Starts a part; `process` is the number of one of two processes and the port where they meet."""
    # Compiling is nearly all they do, and what is tested is not how fast the code is.
    env = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-m", "tests.helpers.parallel", part, str(out), *process]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def arrays(process: subprocess.Popen, out: Path) -> dict[str, np.ndarray]:
    """What a part found; it must end well, and gather no array whole against its will."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert GATHERED_WHOLE not in output, output
    return dict(np.load(out))


def by_two(part: str, folder: Path) -> list[dict[str, np.ndarray]]:
    """What both of two processes found that did a part together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    outs = [folder / f"{n}.npz" for n in range(2)]
    processes = [launch(part, out, str(n), port) for n, out in enumerate(outs)]
    return [arrays(process, out) for process, out in zip(processes, outs, strict=True)]


def named(found: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The entries "name/..." without that."""
    return {key.split("/", 1)[1]: value for key, value in found.items() if key.startswith(f"{name}/")}
