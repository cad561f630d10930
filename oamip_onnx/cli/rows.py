"""Titles and labelled rows that stay readable on a narrow console."""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_LABEL_COLUMNS = 13


def print_title(console: Console, text: str) -> None:
    """Print a title."""
    console.print(text, style="bold", markup=False)


def print_rows(console: Console, rows: Iterable[tuple[str, str]]) -> None:
    """Print labels and what they say, side by side; rows that say nothing are left out."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(min_width=_LABEL_COLUMNS, overflow="fold")
    grid.add_column(overflow="fold")
    for label, text in rows:
        if text:
            grid.add_row(f"  {escape(label)}", escape(text))
    console.print(grid)
