"""Work for tests without the checks of every call that they run under, in a process of its own or in this one.

Thousands of examples or readings take a fraction of the time there. What the process calls, what it is given and what
it returns have to be picklable, and the module must not import the tests' own configuration.
"""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from jaxtyping import config


@functools.cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def unchecked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or raises."""
    return _pool().submit(function, *arguments).result()


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    """Within it calls in this process are not checked."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


def close() -> None:
    """Ends the process: it does not end by itself with one that is ended without ceremony, as tests' workers are."""
    if _pool.cache_info().currsize:
        _pool().shutdown()
        _pool.cache_clear()
