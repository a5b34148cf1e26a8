"""What a machine lacks, in words for one line in place of JAX's own."""

from __future__ import annotations

import os

_LONGEST = 300


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def check_accelerator() -> None:
    """Raises ValueError if JAX was asked for an accelerator that is not here. Begins its backend."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter, without a word, where there is no plugin for it
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ValueError(
            f"JAX_PLATFORMS is {asked!r}, and there is no such accelerator here ({one_line(error)[:_LONGEST]}); "
            "expected cpu, or one that is here and whose package is installed (.[cuda12], .[cuda13] or .[tpu])"
        ) from error


def out_of_memory(error: RuntimeError | MemoryError) -> str | None:
    """That memory did not do, of a device or of the host; None if it is anything else."""
    said = one_line(error)[:_LONGEST]
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said:
        return f"out of memory: {said}. Take smaller pictures or fewer at once, 8-bit weights, or more devices"
    return None
