"""What a machine lacks, in words for one line in place of JAX's own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

_LONGEST = 300


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def check_accelerator() -> None:
    """Begins JAX's backend, prepared. Raises ValueError if an accelerator was asked for that is not here."""
    import jax

    from internvlu_jax.utils.devices import prepare_cpu

    prepare_cpu()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter, without a word, where there is no plugin for it
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ValueError(
            f"JAX_PLATFORMS is {asked!r}, and there is no such accelerator here ({one_line(error)[:_LONGEST]}); "
            "expected cpu, or one that is here and whose package is installed (.[cuda12], .[cuda13] or .[tpu])"
        ) from error


def out_of_memory(error: RuntimeError | MemoryError) -> str:
    """That memory did not do, of a device or of the host. Raises the error itself if it is anything else."""
    said = one_line(error)[:_LONGEST]
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said:
        return f"out of memory: {said}. Take smaller pictures or fewer at once, 8-bit weights, or more devices"
    raise error


def interrupted(workdir: str | Path) -> str:
    """That Ctrl-C ended a run, and what can be done then."""
    return f"interrupted; `{workdir}` can go on from its last checkpoint"


def say(text: str, end: str = "\n") -> None:
    """Prints text on standard output, with escapes where that cannot hold it: nothing is lost over a character."""
    try:
        print(text, end=end, flush=True)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)


def nobody_reads() -> int:
    """The exit status of a command whose reader has gone away, as `head` does; what is still to be written is lost."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return 128 + signal.SIGPIPE


def failed(who: str, said: str, status: int) -> int:
    """The exit status of a command, after a line on standard error."""
    print(f"{who}: {said}", file=sys.stderr)
    return status
