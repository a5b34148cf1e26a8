"""Rejection sampling: random choices are made anew until they fit together, a bounded number of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from internvlu_jax.small_world.scenes.layout import NoPlaceError

_T = TypeVar("_T")


def first_accepted(make: Callable[[], _T], accept: Callable[[_T], bool], tries: int, what: str) -> _T:
    """The first of so many that `make` gives, without NoPlaceError, and `accept` takes.

    Raises:
        NoPlaceError: none; says that no `what` was found.
    """
    for _ in range(tries):
        try:
            made = make()
        except NoPlaceError:
            continue
        if accept(made):
            return made
    raise NoPlaceError(f"no {what} was found in {tries} tries")
