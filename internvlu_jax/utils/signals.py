"""Ctrl-C of commands: a line and status 130 at any moment, also while modules are imported or XLA compiles."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

_PATIENCE = 2.0  # seconds that handlers of Python's are given
_STOPS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"  # which bars and spinners hide


def interrupt_is_one_line(names: tuple[str, ...], said: str) -> None:
    """Where Python was started for one of our commands, Ctrl-C from now on ends it with a line and status 130.

    Called by packages before they import what takes seconds. It does nothing for whoever imports them, nor where Ctrl-C
    is ignored already, as in the background of a shell. What handles KeyboardInterrupt or sets a handler of its own
    still does.

    Args:
        names: of packages whose modules are commands (`python -m NAME.module`), and of scripts. said: the line.
    """
    is_command = Path(_started()).name.partition(".")[0] in names
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_command and is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        # An exception may be lost on its way through an import, or come out as another. Nothing is in hand there.
        if _is_importing(frame):
            _leave(said)
        raise KeyboardInterrupt

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            with suppress(OSError):
                sys.stdout.flush()
            _leave(said)
        sys.__excepthook__(kind, error, trace)

    def lost(unraisable: sys.UnraisableHookArgs) -> None:
        """Raised where the interpreter ignores exceptions, as in what runs when an object is freed."""
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            _leave(said)
        sys.__unraisablehook__(unraisable)

    signal.signal(signal.SIGINT, interrupt)
    sys.excepthook, sys.unraisablehook = uncaught, lost


@contextmanager
def interrupts_unwrapped() -> Iterator[None]:
    """Within, an error that somebody made of Ctrl-C is that again: JAX raises ValueError where it compares metadata."""
    try:
        yield
    except Exception as error:
        if any(isinstance(before, KeyboardInterrupt) for before in _before(error)):
            raise KeyboardInterrupt from error
        raise


def _before(error: BaseException) -> Iterator[BaseException]:
    """The errors that an error came of, one after the other."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield before
        yield from _before(before)


def _started() -> str:
    """What Python was started to run: the module after `-m`, which is being looked for, or a script's file."""
    count = len(getattr(sys, "argv", ()))
    return sys.orig_argv[-count].removeprefix("-m") if 0 < count <= len(sys.orig_argv) else ""


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _leave(said: str) -> None:
    """Ends the process at once; by what is safe in a handler of signals."""
    cursor = _SHOW_CURSOR if os.isatty(2) else ""
    os.write(2, f"{cursor}{said}\n".encode())
    os._exit(130)


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
                _leave(said)

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


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM wait, as far as Python has handlers for them; for the main thread.

    A mask alone is not enough: the kernel gives a signal of the process to another thread, JAX has many, and Python
    runs the handler in the main one at once. Where the system's default is set, SIGTERM ends the process as always.
    """
    held: dict[int, Callable[[int, FrameType | None], Any]] = {}
    came: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        if threading.current_thread() is threading.main_thread():
            for stop in _STOPS:
                if callable(handler := signal.getsignal(stop)):
                    held[stop] = handler
                    signal.signal(stop, lambda number, frame: came.append(number))
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in held.items():
            signal.signal(number, handler)
        for number in came:  # not raised anew, which would count as a second one, see `second_interrupt_ends`
            held[number](number, None)


@contextmanager
def children_spared() -> Iterator[None]:
    """Within, processes that are started leave Ctrl-C and SIGTERM, from their first moment on, to this one, where both
    wait (`interrupts_held`).

    They come to all of a group: from a terminal, `timeout`, a service's stop. Such processes end by `kill` alone.
    """
    from multiprocessing.resource_tracker import ensure_running

    ensure_running()  # else the first process of multiprocessing starts it, and that lets both signals through
    with interrupts_held():
        yield
