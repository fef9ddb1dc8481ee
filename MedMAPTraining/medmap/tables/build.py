"""From a table's name to its files: plan, trainings, evaluations, figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medmap.evaluation.tables import counted
from medmap.io.atomic import write_text
from medmap.tables.audiovision import accuracies
from medmap.tables.execution import Failures, execute
from medmap.tables.options import TableOptions
from medmap.tables.plan import Plan, write_recipes
from medmap.tables.rendering import csv_text, latex, markdown
from medmap.tables.values import Grid, Scores, grid_of
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
    if table.kind == "audiovision":
        grid = accuracies(table, options, report)
        remarks = [*_changes(options), "Ours: one seed"]
        return _write(table, options, grid, remarks, {})
    write_recipes(plan, table, options)
    failures = execute(plan.jobs, options.devices, options.ray, report)
    scores = Scores(options.output.absolute(), plan.folds)
    counts = sorted({scores.cases(run) for run in table.runs} - {0})
    remarks = _changes(options)
    if counts:
        numbers = ", ".join(counted(count, "test case") for count in counts)
        remarks.append(f"Our figures: means over {numbers}, one seed")
    grid = grid_of(table, scores)
    return _write(table, options, grid, remarks, failures)


def _write(
    table: PrintedTable,
    options: TableOptions,
    grid: Grid,
    remarks: list[str],
    failures: Failures,
) -> BuiltTable:
    """Write the table of whatever is measured, beside the runs."""
    text = markdown(table, grid, remarks)
    contents = {
        "md": text,
        "csv": csv_text(table, grid),
        "tex": latex(table, grid, remarks),
    }
    files = []
    for ending, content in contents.items():
        path = options.output / f"{table.name}.{ending}"
        write_text(path, content)
        files.append(path)
    return BuiltTable(text, tuple(files), failures)


def _changes(options: TableOptions) -> list[str]:
    """What was not as the recipes have it."""
    remarks = []
    if options.rehearsal:
        remarks.append(
            "REHEARSAL: small networks, few steps. It shows that everything runs; the figures mean "
            "nothing"
        )
    changes = [f"{name} {value}" for name, value in options.settings.items()]
    if options.steps is not None:
        changes.append(f"steps {options.steps}")
    if changes:
        remarks.append(f"Changed in every recipe: {', '.join(changes)}")
    for data_set, path in options.folds.items():
        remarks.append(
            f"{data_set or 'Every data set'}: means over the folds of {path.name}, each scored on "
            "the cases that it does not train on"
        )
    return remarks
