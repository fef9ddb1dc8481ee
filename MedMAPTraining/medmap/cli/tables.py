"""Tables that keep their numbers on a terminal of 80 columns: no cell is folded or cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from medmap.cli.base import out

_GAP = 2
"""Blanks between columns."""


def print_table(
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str] | None],
    *,
    keys: int = 1,
) -> None:
    """Print a table; one that is wider than the terminal is printed in several parts.

    Args:
        title: above the table.
        headings: [C] of the columns.
        rows: [C] cells each; None draws a line.
        keys: how many of the first columns name the row: they are repeated in every part.
    """
    out.print(title, soft_wrap=True, markup=False)
    widths = _widths(headings, rows)
    for columns in _parts(widths, keys, out.width):
        _print_part(columns, headings, rows, keys)


def _widths(headings: Sequence[str], rows: Sequence[Sequence[str] | None]) -> list[int]:
    filled_rows = [row for row in rows if row is not None]
    lines = [headings, *filled_rows]
    widths = []
    for column in range(len(headings)):
        lengths = [len(line[column]) for line in lines]
        widths.append(max(lengths))
    return widths


def _parts(widths: Sequence[int], keys: int, width: int) -> list[list[int]]:
    """Columns of each part, so that every part fits into the width if a single column does."""
    used_by_keys = sum(widths[:keys]) + _GAP * keys
    parts: list[list[int]] = []
    available = 0
    for column in range(keys, len(widths)):
        needed = widths[column] + _GAP
        # The gap behind the last column is not printed.
        fits = needed - _GAP <= available
        if not parts or not fits:
            # A new part begins with the columns that name the row.
            parts.append([*range(keys)])
            available = width - used_by_keys
        parts[-1].append(column)
        available -= needed
    return parts


def _print_part(
    columns: Sequence[int],
    headings: Sequence[str],
    rows: Sequence[Sequence[str] | None],
    keys: int,
) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        justify: Literal["left", "right"] = "right"
        if column < keys:
            justify = "left"
        table.add_column(headings[column], justify=justify, no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*(row[column] for column in columns))
    out.print(table, markup=False)
    out.print()
