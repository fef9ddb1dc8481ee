"""A table with our figures and the paper's, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import groupby

from medmap.tables.values import Figure, Grid
from medmap.training.printed import PrintedTable

DASH = "–"
LATEX = {
    "\\": "\\textbackslash{}",
    "_": "\\_",
    "%": "\\%",
    "&": "\\&",
    "#": "\\#",
    "Δ": "$\\Delta$",
    "●": "$\\bullet$",
    "○": "$\\circ$",
    "*": "$\\ast$",
    DASH: "--",
    "α": "$\\alpha$",
}


def markdown(table: PrintedTable, grid: Grid, remarks: Sequence[str] = ()) -> str:
    """A heading, the table, and below it what to know; ours first, the paper's in parentheses."""
    depth = _depth(table)
    column_titles = [" ".join(titles) for titles in table.columns]
    head = [""] * depth + column_titles
    # Titles to the left, figures to the right.
    alignment = "---|" * depth + "--:|" * len(table.columns)
    lines = [
        f"# {table.name}: {table.title}",
        "",
        f"{table.source}. {reading(grid)}",
        "",
        _markdown_line(head),
        f"|{alignment}",
    ]
    for row, figures in zip(table.rows, grid, strict=True):
        texts = [cell_text(figure) for figure in figures]
        cells = [*_padded(row.titles, depth), *texts]
        lines.append(_markdown_line(cells))
    lines.append("")
    for remark in (*remarks, *table.notes):
        lines.append(f"- {remark}")
    return "\n".join(lines) + "\n"


def _markdown_line(cells: Sequence[str]) -> str:
    escaped = [_escaped(text) for text in cells]
    return f"| {' | '.join(escaped)} |"


def csv_text(table: PrintedTable, grid: Grid) -> str:
    """A line for each cell: titles, run, our figure, the paper's and the difference."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "run", "ours", "printed", "difference"])
    for row, figures in zip(table.rows, grid, strict=True):
        for titles, figure in zip(table.columns, figures, strict=True):
            if not figure.is_shown:
                continue
            difference = None
            if figure.ours is not None and figure.printed is not None:
                difference = figure.ours - figure.printed
            line = [
                table.name,
                " / ".join(row.titles),
                " / ".join(titles),
                figure.run,
                _csv_number(figure.ours, figure.digits),
                _csv_number(figure.printed, figure.digits),
                _csv_number(difference, figure.digits),
            ]
            writer.writerow(line)
    return text.getvalue()


def _csv_number(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return number(value, digits)


def latex(table: PrintedTable, grid: Grid, remarks: Sequence[str] = ()) -> str:
    """A ``table`` environment for booktabs and graphicx, with grouped column titles."""
    depth = _depth(table)
    levels = max(len(titles) for titles in table.columns)
    lines = ["\\begin{table}", "\\centering", "\\resizebox{\\linewidth}{!}{%"]
    # Titles to the left, figures to the right.
    alignment = "l" * depth + "r" * len(table.columns)
    lines.append(f"\\begin{{tabular}}{{{alignment}}}")
    lines.append("\\toprule")
    for level in range(levels):
        lines.append(_latex_head(table, level, depth))
    lines.append("\\midrule")
    previous = ""
    for row, figures in zip(table.rows, grid, strict=True):
        titles = _padded(row.titles, depth)
        starts_group = previous and titles[0] != previous
        if starts_group and depth > 1:
            lines.append("\\addlinespace")
        previous = titles[0]
        texts = [cell_text(figure) for figure in figures]
        cells = [_latex(text) for text in (*titles, *texts)]
        lines.append(" & ".join(cells) + " \\\\")
    lines.append("\\bottomrule")
    lines.append("\\end{tabular}}")
    explanation = reading(grid).rstrip(".")
    caption = ". ".join([table.title, table.source, explanation, *remarks])
    lines += [f"\\caption{{{_latex(caption)}}}", "\\end{table}", ""]
    return "\n".join(lines)


def reading(grid: Grid) -> str:
    """How the cells are read."""
    figures = [figure for line in grid for figure in line if figure.is_shown]
    has_ours = any(figure.ours is not None for figure in figures)
    has_printed = any(figure.printed is not None for figure in figures)
    if has_printed and has_ours:
        return "Ours, and the paper's figure in parentheses; – is not measured."
    if has_printed:
        return "The paper's figures in parentheses; – is not measured."
    return "Ours; the paper prints no figures, – is not measured."


def cell_text(figure: Figure) -> str:
    """``58.10 (59.97)``; a dash for what is not measured."""
    if not figure.is_shown:
        return ""
    ours = DASH if figure.ours is None else number(figure.ours, figure.digits)
    if figure.printed is None:
        return ours
    return f"{ours} ({number(figure.printed, figure.digits)})"


def number(value: float, digits: int) -> str:
    """A figure as the tables have it."""
    if digits < 0:
        return f"{value:.1e}"
    # Adding zero takes the sign from a difference that rounds to -0.00.
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _depth(table: PrintedTable) -> int:
    return max(len(row.titles) for row in table.rows)


def _padded(titles: Sequence[str], depth: int) -> list[str]:
    return [*titles, *[""] * (depth - len(titles))]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def _latex_head(table: PrintedTable, level: int, depth: int) -> str:
    """One line of column titles; equal ones beside each other share a cell."""
    cells = [""] * depth
    titles = []
    for column in table.columns:
        # With the titles above it: equal titles of different groups are not joined.
        text = _padded(column, level + 1)[level]
        titles.append((*column[:level], text))
    for title, group in groupby(titles):
        count = len(list(group))
        text = _latex(title[-1])
        if count > 1:
            text = f"\\multicolumn{{{count}}}{{c}}{{{text}}}"
        cells.append(text)
    return " & ".join(cells) + " \\\\"
