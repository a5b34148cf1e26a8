"""Work for tests in a process of its own, without the checks of every call that the tests run under.

Thousands of examples or readings take a fraction of the time there. What is called, what it is given and what it
returns have to be picklable, and its module must not import the tests' own configuration.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


@functools.cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def unchecked(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, or raises."""
    return _pool().submit(function, *arguments).result()


def close() -> None:
    """Ends the process: it does not end by itself with one that is ended without ceremony, as tests' workers are."""
    if _pool.cache_info().currsize:
        _pool().shutdown()
        _pool.cache_clear()
