"""Progress on standard error: a bar of steps, and a word on what has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def steps_bar(total: int, show: bool) -> Iterator[Callable[[], None] | None]:
    """The bar of the sampler: yields a function that advances it by one step, or None if no bar is wanted."""
    if not show:
        yield None
        return
    with bar("drawing", total) as advance:
        yield lambda: advance(1)


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time that is left; yields a function that advances it by so many."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def status(message: str) -> Iterator[None]:
    """A spinner while something without steps runs."""
    from rich.console import Console

    with Console(stderr=True).status(message):
        yield
