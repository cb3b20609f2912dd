"""Tables that are too wide for the terminal are shown in parts: no number is cut."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table


def number_column(header: str) -> Column:
    """A column of numbers, which is never narrowed; long headers carry their own line breaks."""
    return Column(header, justify="right", no_wrap=True)


def text_column(header: str = "", at_least: int | None = None) -> Column:
    """A column of text, which is wrapped, and between letters where need be."""
    return Column(header, overflow="fold", min_width=at_least)


def new_table(*columns: Column, gap: int = 2) -> Table:
    """A table without lines, whose columns stand `gap` apart."""
    table = Table(*columns, box=None, pad_edge=False, padding=(0, gap, 0, 0))
    table.show_header = any(str(column.header) for column in columns)
    return table


def show_table(console: Console, table: Table, around: int = 0) -> None:
    """Print a table, in parts of fewer columns where it is too wide for the terminal; each part has the first column.

    Args:
        console: where.
        table: of `new_table`.
        around: empty lines above and below.
    """
    parts = [_of(table, columns) for columns in _parts(table, console)]
    for i, part in enumerate(parts):
        console.print(Padding(part, (1 if i else around, 0, 0, 0)))
    if around:
        console.print("\n" * (around - 1))


def _parts(table: Table, console: Console) -> Iterator[list[Column]]:
    first, *rest = _groups(table.columns)
    room = console.width - _width(table, first, console)
    part, left = list(first), room
    for group in rest:
        width = _width(table, group, console) + table.padding[1]
        if width > left and len(part) > len(first):
            yield part
            part, left = list(first), room
        part, left = [*part, *group], left - width
    yield part


def _groups(columns: Sequence[Column]) -> list[list[Column]]:
    """A column without a header, such as bars or ratios, belongs to the one before it."""
    groups: list[list[Column]] = []
    for column in columns:
        if groups and not str(column.header):
            groups[-1].append(column)
        else:
            groups.append([column])
    return groups


def _width(table: Table, columns: Sequence[Column], console: Console) -> int:
    """The least that the columns need side by side."""
    wide = console.options.update(width=10_000)
    measured = [(c, Measurement.get(console, wide, _of(table, [c]))) for c in columns]
    gaps = table.padding[1] * (len(columns) - 1)
    return sum(m.maximum if c.no_wrap else m.minimum for c, m in measured) + gaps


def _of(table: Table, columns: Sequence[Column]) -> Table:
    part = new_table(gap=table.padding[1])
    part.show_header = table.show_header
    part.columns = [replace(column, _index=i) for i, column in enumerate(columns)]
    part.rows = table.rows
    return part
