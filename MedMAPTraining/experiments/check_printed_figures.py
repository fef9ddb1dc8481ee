"""Do the papers' tables in ``recipes/papers`` hold the figures that the papers print?

    python MedMAPTraining/experiments/check_printed_figures.py PAPERS

PAPERS is a folder with the texts of the papers (``medmap_journal.txt``, ``medmap_conference.txt``,
``passion.txt``, ``mckd.txt``). Every row's figures must stand there in their order, close together.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from medmap.training.printed import PrintedTable, printed_tables

TEXTS = {
    "journal": "medmap_journal.txt",
    "conference": "medmap_conference.txt",
    "passion": "passion.txt",
    "mckd": "mckd.txt",
}
NUMBER = re.compile(r"(?<![\d.])-?\d+\.\d+(?:e-\d+)?")
SLACK = 6
"""Numbers of other rows that may stand between those of a row, such as differences beside them."""


def numbers_of(text: str) -> list[float]:
    """Every decimal number of a text, in its order, without marks of bold and italics."""
    return [float(number) for number in NUMBER.findall(text.replace("*", ""))]


def stands_in(figures: Sequence[float], numbers: Sequence[float]) -> bool:
    """Whether the figures stand among the numbers in their order, close together."""
    starts = [index for index, number in enumerate(numbers) if number == figures[0]]
    for start in starts:
        end = start + len(figures) + SLACK
        window = iter(numbers[start:end])
        # ``in`` takes from the iterator up to the figure, so that the next one has to follow it.
        if all(figure in window for figure in figures):
            return True
    return False


def differing_rows(table: PrintedTable, numbers: Sequence[float]) -> list[str]:
    """Titles of the rows whose figures do not stand in the text."""
    titles = []
    for row in table.rows:
        figures = [cell.printed for cell in row.cells if cell.printed is not None]
        if figures and not stands_in(figures, numbers):
            titles.append(" / ".join(row.titles))
    return titles


def main() -> None:
    """The command line; exits with 1 where a row differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("papers", type=Path)
    options = parser.parse_args()
    streams = {}
    for paper, name in TEXTS.items():
        streams[paper] = numbers_of((options.papers / name).read_text(encoding="utf-8"))
    has_difference = False
    for table in printed_tables().values():
        paper = table.name.partition("-")[0]
        if paper not in streams:
            continue
        titles = differing_rows(table, streams[paper])
        count = sum(cell.printed is not None for cell in table.cells)
        print(f"{table.name:16} {count:4} figures, {len(titles)} rows differ", *titles)
        has_difference |= bool(titles)
    sys.exit(has_difference)


if __name__ == "__main__":
    main()
