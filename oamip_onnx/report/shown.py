"""How results look in a terminal and in a notebook."""

from collections.abc import Iterable, Sequence
from html import escape

from rich.console import Group
from rich.table import Table
from rich.text import Text

from oamip_onnx.report.grid import Grid, Labelled

Part = Table | Grid | Labelled | Text


class Shown:
    """A result that shows itself as tables: by rich's `print` in a terminal, and as HTML in a notebook."""

    def tables(self) -> Sequence[Table]:
        """Return what a reader sees, most important first."""
        raise NotImplementedError

    def parts(self) -> Sequence[Part]:
        """Return what `print` of rich shows, in order: the tables, and what stands between them."""
        return self.tables()

    def __rich__(self) -> Group:
        return Group(*self.parts())

    def _repr_html_(self) -> str:
        return "\n".join(map(_part_html, self.parts()))


class ShownInParts(Shown):
    """A result with words between its tables, or with tables that a narrow terminal shows as lists."""

    def parts(self) -> Sequence[Part]:
        """Return what `print` of rich shows, in order."""
        raise NotImplementedError

    def tables(self) -> list[Table]:
        """Return the tables alone, whatever their width."""
        return [
            part if isinstance(part, Table) else part.table() for part in self.parts() if not isinstance(part, Text)
        ]


def filled(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table of texts as they are: the first column holds words, the others figures."""
    table = Table(title=None, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def table_html(table: Table) -> str:
    """Return a table as HTML."""
    title = f"<caption>{_cell(table.title)}</caption>\n" if table.title else ""
    cells = "".join(f"<th>{_cell(column.header)}</th>" for column in table.columns)
    head = f"<thead><tr>{cells}</tr></thead>\n" if table.show_header else ""
    columns = [[_cell(cell) for cell in column.cells] for column in table.columns]
    styles = [f' style="text-align: {column.justify}"' if column.justify != "left" else "" for column in table.columns]
    lines = [
        "<tr>" + "".join(f"<td{style}>{cell}</td>" for style, cell in zip(styles, row, strict=True)) + "</tr>"
        for row in zip(*columns, strict=True)
    ]
    return f"<table>\n{title}{head}<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"


def milliseconds(value: float) -> str:
    """Return a time with three decimals below 10 ms, two below 100 ms, else one."""
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def change(ratio: float) -> str:
    """Return a ratio as the change it stands for, such as +12.3 %."""
    return f"{100 * (ratio - 1):+.1f} %"


def byte_size(count: int) -> str:
    """Return a number of bytes in the unit that suits it, such as 1.5 MiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _part_html(part: Part) -> str:
    if isinstance(part, Text):
        return f"<p>{escape(part.plain)}</p>"
    return table_html(part if isinstance(part, Table) else part.table())


def _cell(content: object) -> str:
    return escape(content.plain if isinstance(content, Text) else str(content))
