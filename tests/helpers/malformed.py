"""Files as users bring them, damaged at random: every reader of the product against every kind of damage.

    python -m tests.helpers.malformed [TRIALS] [SEED]

prints for every reader how many inputs were taken and refused, and what broke the rule: a reader gives what it read, or
ends with ValueError or OSError that names the file, soon and within 1 GB.
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.helpers.damage import damaged
from tests.helpers.malformed_readers import READERS, Reader

SECONDS, BYTES = 30, 10**9  # that one trial may take; the seconds of a machine that is busy


@dataclass
class Count:
    """What became of the trials of one reader. faults: what broke the rule."""

    taken: int = 0
    refused: int = 0
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


class Hang(BaseException):
    """A trial took too long."""


@contextmanager
def _limited() -> Iterator[None]:
    def late(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def memory(name: str) -> int:
    """Bytes that this process has ("VmRSS"), or the most that it ever had ("VmHWM")."""
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def run(name: str, trials: int, seed: int, folder: Path) -> Count:
    """Trials of one reader; each damages one file, and puts it right again."""
    reader, count = READERS[name], Count()
    folder.mkdir(parents=True)
    reader.make(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for trial in range(trials):
        rng = np.random.default_rng((seed, trial))
        path = files[int(rng.integers(len(files)))]
        sound = path.read_bytes()
        bad = damaged(sound, rng)
        path.write_bytes(bad)
        _try(reader, folder, path, count, f"{name}, trial {trial}, {path.name}")
        path.write_bytes(sound)
    return count


def _try(reader: Reader, folder: Path, path: Path, count: Count, label: str) -> None:
    has, peak, start = memory("VmRSS"), memory("VmHWM"), time.perf_counter()
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder, path.relative_to(folder).as_posix())
        count.taken += 1
    except (ValueError, OSError) as error:
        count.refused += 1
        if path.name not in str(error) and str(folder) not in str(error):
            count.faults.append(f"{label}: names no file: {type(error).__name__}: {str(error)[:200]}")
    except Hang:
        count.faults.append(f"{label}: took over {SECONDS} s")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library is none of Exception
        count.faults.append(f"{label}: {type(error).__name__}: {str(error)[:200]}")
    count.slowest = max(count.slowest, time.perf_counter() - start)
    grown = memory("VmHWM") - has
    if grown > BYTES and memory("VmHWM") > peak:
        count.faults.append(f"{label}: took {grown / 1e9:.1f} GB")


def main(trials: int = 30_000, seed: int = 0) -> int:
    """Runs the trials, the readers in turn; returns 1 if a rule was broken."""
    each, faults = -(-trials // len(READERS)), []
    with tempfile.TemporaryDirectory() as folder:
        for name in READERS:
            count = run(name, each, seed, Path(folder) / name.replace(" ", "_"))
            faults += count.faults
            print(
                f"{name:22} {each} inputs: {count.taken} taken, {count.refused} refused, {len(count.faults)} faults, "
                f"slowest {count.slowest:.2f} s",
                flush=True,
            )
            for fault in count.faults[:20]:
                print(f"    {fault}")
    print(f"{each * len(READERS)} inputs, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
