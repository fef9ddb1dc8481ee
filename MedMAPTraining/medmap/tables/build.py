"""From a table's name to its files: plan, trainings, evaluations, figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medmap.io.atomic import make_folder, write_text
from medmap.tables.execution import Failures, execute
from medmap.tables.plan import Plan, TableOptions, write_recipes
from medmap.tables.rendering import csv_text, latex, markdown
from medmap.tables.values import Scores, grid_of
from medmap.training.printed import PrintedTable

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class BuiltTable:
    """What came of a table.

    Attributes:
        text: as Markdown.
        files: Markdown, CSV and LaTeX.
        failures: why jobs could not be done, by their name.
    """

    text: str
    files: tuple[Path, ...]
    failures: Failures


def printed_text(table: PrintedTable) -> str:
    """The paper's own figures, as Markdown."""
    return markdown(table, grid_of(table, None))


def build_table(
    table: PrintedTable, plan: Plan, options: TableOptions, report: Report
) -> BuiltTable:
    """Train and evaluate what is missing, then write the table; run again to resume.

    Raises:
        Cancelled: a stop was asked for.
        OutputError: the folder cannot be written.
    """
    make_folder(options.output)
    write_recipes(plan, table, options)
    failures = execute(plan.jobs, options.devices, options.ray, report)
    return write_table(table, options, failures)


def write_table(table: PrintedTable, options: TableOptions, failures: Failures) -> BuiltTable:
    """Write the table of whatever is evaluated, beside the runs."""
    scores = Scores(options.output.absolute())
    grid = grid_of(table, scores)
    remarks = _remarks(table, options, scores)
    text = markdown(table, grid, remarks)
    contents = {"md": text, "csv": csv_text(table, grid), "tex": latex(table, grid, remarks)}
    files = []
    for ending, content in contents.items():
        path = options.output / f"{table.name}.{ending}"
        write_text(path, content)
        files.append(path)
    return BuiltTable(text, tuple(files), failures)


def _remarks(table: PrintedTable, options: TableOptions, scores: Scores) -> list[str]:
    remarks = []
    if options.rehearsal:
        remarks.append(
            "REHEARSAL: small networks, few steps. It shows that everything runs; the figures mean "
            "nothing"
        )
    counts = sorted({scores.cases(run) for run in table.runs} - {0})
    if counts:
        numbers = ", ".join(str(count) for count in counts)
        remarks.append(f"Our figures: means over {numbers} test cases, one seed")
    changes = [f"{name} {value}" for name, value in options.settings.items()]
    if options.steps is not None:
        changes.append(f"steps {options.steps}")
    if changes:
        remarks.append(f"Changed in every recipe: {', '.join(changes)}")
    return remarks
