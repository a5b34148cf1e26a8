"""The progress bar of the sampler, and a word on what has no steps, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def steps_bar(total: int, show: bool) -> Iterator[Callable[[], None] | None]:
    """Yields a function that advances the bar by one step, or None if no bar is wanted."""
    if not show:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("drawing", total=total)
        yield lambda: bar.advance(task)


@contextmanager
def status(message: str) -> Iterator[None]:
    """A spinner while something without steps runs."""
    from rich.console import Console

    with Console(stderr=True).status(message):
        yield
