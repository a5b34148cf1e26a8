"""How a script is a command: `python -m experiments.NAME`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import tyro

from internvlu_jax.utils.failures import failed, nobody_reads, one_line
from internvlu_jax.utils.signals import interrupts_unwrapped


def command(main: Callable[[Any], int | None], arguments: Any, module: str, description: str | None = None) -> NoReturn:
    """Calls `main` with what the command line says, and exits with the status that it gives, or 0.

    A ValueError is what a user can put right: one line, and status 2.

    Args:
        arguments: the type of what `main` takes.
        module: by which it is run.
    """
    try:
        with interrupts_unwrapped():
            status = main(tyro.cli(arguments, prog=f"python -m {module}", description=description))
    except BrokenPipeError:
        status = nobody_reads()
    except ValueError as error:
        status = failed("error", one_line(error), 2)
    sys.exit(status)
