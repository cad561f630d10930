"""Tables that a narrow terminal shows as lists, and labelled rows; all of them show texts as they are."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console, ConsoleOptions, JustifyMethod, OverflowMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

# A column of sentences gets this width at least, if it needs it; in less, they would be a word a line.
_SENTENCE_COLUMNS = 22
# What the labels of labelled rows take at least: so those of several titles stand below each other.
_LABEL_COLUMNS = 13
# What a column's frame and padding take.
_FRAME = 3


@dataclass(frozen=True)
class Section:
    """Rows of a grid under a heading; an empty heading shows none."""

    heading: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Grid:
    """A table, or the same content as a list where the table would break its words.

    Attributes
    ----------
    headers
        The titles of the columns, which may have two lines; the first column names the row.
    sections
        The rows.
    sentences
        The titles of the columns that hold words, which may be folded; the others hold numbers, and names that stay in
        one piece.
    """

    headers: tuple[str, ...]
    sections: tuple[Section, ...]
    sentences: frozenset[str] = frozenset()

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self._width() <= options.max_width:
            yield self.table()
        else:
            yield from self._list()

    def _width(self) -> int:
        """Return the columns of a terminal that the table needs."""
        width = 1
        for position, header in enumerate(self.headers):
            cells = [row[position] for section in self.sections for row in section.rows]
            cells += [section.heading for section in self.sections if position == 0]
            texts = [line for text in [header, *cells] for line in text.splitlines()]
            wanted = max(map(cell_len, texts), default=0)
            width += (min(wanted, _SENTENCE_COLUMNS) if header in self.sentences else wanted) + _FRAME
        return width

    def table(self) -> Table:
        """Return the table, whatever its width."""
        table = Table(header_style="bold")
        for position, header in enumerate(self.headers):
            sentence = header in self.sentences
            justify: JustifyMethod = "left" if sentence or position == 0 else "right"
            overflow: OverflowMethod = "fold" if sentence else "ellipsis"
            table.add_column(Text(header), justify=justify, no_wrap=not sentence, overflow=overflow)
        for section in self.sections:
            if section.heading:
                table.add_row(Text(section.heading, style="bold"))
            for row in section.rows:
                table.add_row(*(Text(cell) for cell in row))
            table.add_section()
        return table

    def _list(self) -> Iterator[RenderableType]:
        titles = [header.replace("\n", " ") for header in self.headers]
        for section in self.sections:
            if section.heading:
                yield Text(section.heading, style="bold", overflow="fold")
            for name, *cells in section.rows:
                yield Text(name, style="bold", overflow="fold")
                pairs = list(zip(self.headers[1:], titles[1:], cells, strict=True))
                numbers = [Text(f"{title}: {cell}") for header, title, cell in pairs if header not in self.sentences]
                yield Padding(Columns(numbers, padding=(0, 2)), (0, 0, 0, 2))
                for header, _, cell in pairs:
                    if header in self.sentences and cell:
                        yield Padding(Text(cell, overflow="fold"), (0, 0, 0, 2))


@dataclass(frozen=True)
class Labelled:
    """Labels and what they say, side by side; rows that say nothing are left out.

    Attributes
    ----------
    title
        What stands above; an empty title shows none.
    rows
        Label and text of each.
    """

    title: str
    rows: tuple[tuple[str, str], ...]

    def __rich_console__(self, _console: Console, _options: ConsoleOptions) -> Iterator[RenderableType]:
        if self.title:
            yield Text(self.title, style="bold")
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(min_width=_LABEL_COLUMNS, overflow="fold")
        grid.add_column(overflow="fold")
        for label, text in self._said():
            grid.add_row(Text(f"  {label}"), Text(text))
        yield grid

    def table(self) -> Table:
        """Return the rows as a table with the title above it."""
        table = Table(title=Text(self.title) if self.title else None, show_header=False)
        for label, text in self._said():
            table.add_row(Text(label), Text(text))
        return table

    def _said(self) -> list[tuple[str, str]]:
        return [(label, text) for label, text in self.rows if text]
