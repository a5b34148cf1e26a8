"""Ctrl-C where Python does not get its turn."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE = 2.0  # seconds that handlers of Python's are given


@contextmanager
def second_interrupt_ends(said: str) -> Iterator[None]:
    """Within, a second Ctrl-C ends the process with status 130 and a line, also while XLA compiles.

    That takes minutes, in which the main thread runs no handler, so that two signals are one when it does. Signals that
    Python has a handler for are written to a pipe at once, and another thread reads it. For commands: whatever is in
    hand is left as it is, on disk too. Only in the main thread; elsewhere it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    inside, outside = os.pipe()
    os.set_blocking(outside, False)
    ended = threading.Event()

    def watch() -> None:
        came = 0
        while number := os.read(inside, 1):
            came += number[0] == signal.SIGINT
            if came == 2 and not ended.wait(_PATIENCE):
                print(said, file=sys.stderr, flush=True)
                os._exit(130)

    before = signal.set_wakeup_fd(outside, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.close(outside)
        thread.join()
        os.close(inside)
