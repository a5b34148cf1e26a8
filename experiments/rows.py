"""Rows of figures, by the names of their columns, as a table on a terminal or in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

Row = dict[str, str | float]


def show(rows: Sequence[Row], title: str | None = None) -> None:
    """Prints rows; one without a column leaves it empty."""
    table = Table(*_columns(rows), title=title, title_justify="left")
    for row in rows:
        table.add_row(*_texts(row, rows))
    Console(width=140).print(table)


def markdown(rows: Sequence[Row]) -> list[str]:
    """The lines of a table."""
    names = _columns(rows)
    lines = [names, *(_texts(row, rows) for row in rows)]
    first, *others = (f"| {' | '.join(line)} |" for line in lines)
    return [first, "|" + "---|" * len(names), *others]


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _texts(row: Row, rows: Sequence[Row]) -> list[str]:
    values = (row.get(column, "") for column in _columns(rows))
    return [value if isinstance(value, str) else f"{value:.4g}" for value in values]
