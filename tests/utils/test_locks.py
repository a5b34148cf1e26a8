"""One process at a time: said by whom, and free again however that process ends."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from internvlu_jax.utils.locks import locked
from tests.helpers.bucket import in_process

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from internvlu_jax.utils.locks import locked
with locked(sys.argv[1]):
    print(1, flush=True)
    time.sleep(99)
"""


def test_a_bucket_has_no_locks(monkeypatch):
    said = "gs://bucket/run is in a bucket, where nothing can be held"
    with in_process(monkeypatch), pytest.raises(ValueError, match=said), locked(Path("gs://bucket/run")):
        pass
    assert not Path("gs:").exists()


def test_a_second_one_is_refused_until_the_first_has_ended(tmp_path):
    with locked(tmp_path / "new/run"):
        here = rf"new/run is in use by process {os.getpid()} on .+ since \d{{4}}-.*; wait for it or end it"
        for _ in range(2):
            with pytest.raises(ValueError, match=here), locked(tmp_path / "new/run"):
                pass
        with locked(tmp_path / "other"):
            pass
    with pytest.raises(KeyError), locked(tmp_path / "new/run"):
        raise KeyError
    assert not list((tmp_path / "new/run").iterdir())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_a_process_that_is_killed(tmp_path, how):
    other = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline()
        with pytest.raises(ValueError, match=rf"in use by process {other.pid} on"), locked(tmp_path):
            pass
    finally:
        other.send_signal(how)
        other.communicate()
    with locked(tmp_path):
        assert re.match(rf"process {os.getpid()} on ", (tmp_path / ".lock").read_text())


def test_of_many_at_once_one_at_a_time_has_it(tmp_path):
    """Each adds to a number without care; that none is lost shows that they took turns."""
    code = (
        "import sys, time; from pathlib import Path; from internvlu_jax.utils.locks import locked\n"
        "number, done = Path(sys.argv[1]) / 'number', 0\n"
        "while done < 20:\n"
        "    try:\n"
        "        with locked(sys.argv[1]):\n"
        "            number.write_text(str(int(number.read_text()) + 1)); done += 1\n"
        "    except ValueError: time.sleep(0.001)\n"
    )
    (tmp_path / "number").write_text("0")
    parts = [subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=ROOT) for _ in range(3)]
    assert [part.wait(60) for part in parts] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "60"
