"""How results look in a terminal and in a notebook."""

from collections.abc import Sequence
from html import escape

from rich.console import Group
from rich.table import Table
from rich.text import Text


class Shown:
    """A result that shows itself as tables: by rich's `print` in a terminal, and as HTML in a notebook."""

    def tables(self) -> Sequence[Table]:
        """Return what a reader sees, most important first."""
        raise NotImplementedError

    def __rich__(self) -> Group:
        return Group(*self.tables())

    def _repr_html_(self) -> str:
        return "\n".join(table_html(table) for table in self.tables())


def headed(*columns: str) -> Table:
    """Return an empty table: the first column is text, the others are figures."""
    table = Table(title=None, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    return table


def table_html(table: Table) -> str:
    """Return a table as HTML."""
    head = "".join(f"<th>{_cell(column.header)}</th>" for column in table.columns)
    columns = [[_cell(cell) for cell in column.cells] for column in table.columns]
    styles = [f' style="text-align: {column.justify}"' if column.justify != "left" else "" for column in table.columns]
    lines = [
        "<tr>" + "".join(f"<td{style}>{cell}</td>" for style, cell in zip(styles, row, strict=True)) + "</tr>"
        for row in zip(*columns, strict=True)
    ]
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"


def _cell(content: object) -> str:
    return escape(content.plain if isinstance(content, Text) else str(content))
