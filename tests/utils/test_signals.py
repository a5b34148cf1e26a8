"""A second Ctrl-C, where the first one waits for a long computation in C, as XLA's compiler is one."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from internvlu_jax.utils.signals import second_interrupt_ends

ROOT = Path(__file__).parents[2]
BUSY = """
import hashlib, signal
from internvlu_jax.utils.signals import second_interrupt_ends
signal.signal(signal.SIGINT, lambda *_: print("noted", flush=True))
with second_interrupt_ends("interrupted; x"):
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**9)
"""


def test_the_second_one_ends_what_runs_no_handler():
    busy = subprocess.Popen(
        [sys.executable, "-c", BUSY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert busy.stdout.readline() == "ready\n"
        time.sleep(0.2)
        busy.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert busy.poll() is None, "the first one waits"
        busy.send_signal(signal.SIGINT)
        assert busy.wait(timeout=30) == 130
        assert (busy.stdout.read(), busy.stderr.read()) == ("", "interrupted; x\n")
    finally:
        busy.kill()
        busy.communicate()


@pytest.fixture
def interrupts():
    """Ctrl-C as at a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_nothing_is_left_behind(interrupts):
    """And handlers that get their turn decide."""
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt), second_interrupt_ends("x"):
        signal.raise_signal(signal.SIGINT)
    assert signal.set_wakeup_fd(-1) == -1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert threading.active_count() == threads
