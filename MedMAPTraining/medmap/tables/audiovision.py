"""MCKD's Table 2: the classification example beside the recipes, scored for every cell."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from medmap.errors import UnavailableError
from medmap.io.atomic import make_folder, write_text
from medmap.tables.options import TableOptions
from medmap.tables.values import Figure, Grid
from medmap.training.printed import PrintedTable, recipes_folder

Report = Callable[[float, str], None]

RATES = {"lower": 0.0, "upper": 1.0}
"""Share of complete training pairs of the two bounds, whatever the row's rate."""
METHODS = {
    "lower": "mean-fill",
    "upper": "mean-fill",
    "autoencoder": "autoencoder",
    "gan": "gan",
    "full2miss": "full2miss",
    "smil": "smil",
    "shaspec": "shaspec",
    "mckd": "MCKD",
}
"""The example's method by column."""
MINUTES_PER_TRAINING = 0.6
"""60 epochs on a core of a server: twice the 17 s that 30 epochs took (the example's page)."""


def example() -> ModuleType:
    """The example's script. Raises UnavailableError where only the package is installed."""
    folder = recipes_folder().parent / "examples/audiovision"
    if not folder.is_dir():
        raise UnavailableError(
            "The audiovision example is not beside this MedMAP.", "Use a checkout of the sources."
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module("av_table")


def trainings(table: PrintedTable) -> list[tuple[str, float]]:
    """Method and rate of every training that the table needs, each once."""
    needed: dict[tuple[str, float], None] = {}
    for cell in table.cells:
        method = cell.keys["method"]
        # Some methods are trained at one rate, whatever the table's column.
        rate = RATES.get(method, cell.keys["rate"])
        needed[method, rate] = None
    return list(needed)


def states(table: PrintedTable, options: TableOptions) -> dict[str, str]:
    """``done`` or ``to do`` of every training, by what it is."""
    results = _read(_results_file(table, options))
    by_training = {}
    for method, rate in trainings(table):
        state = "to do"
        if (method, rate) in results:
            state = "done"
        by_training[f"{method}, {rate:.0%} complete pairs"] = state
    return by_training


def accuracies(table: PrintedTable, options: TableOptions, report: Report) -> Grid:
    """Train what has no result yet, and both figures of every cell.

    ``data`` holds folders of ``mnist`` and ``sounds``; glyphs and tones stand in for them in a
    rehearsal.

    Raises:
        UnavailableError: no data are given, or the example is not there.
    """
    script = example()
    make_folder(options.output)
    path = _results_file(table, options)
    results = _read(path)
    epochs = 1 if options.rehearsal else script.EPOCHS
    seed = int(str(options.settings.get("seed", 0)))
    parts = None
    needed = trainings(table)
    for number, (method, rate) in enumerate(needed):
        report(number / len(needed), f"{method}, {rate:.0%} complete pairs")
        if (method, rate) in results:
            continue
        if parts is None:
            parts = script.pair(*_data(script, options), seed=seed)
        scored = script.score(
            parts,
            rate,
            METHODS[method],
            seed,
            epochs,
            table.missing,
            options.output / "runs" / f"{table.name}-{method}-{100 * rate:.0f}",
        )
        tested = "image" if table.missing == "sound" else "sound"
        results[method, rate] = scored["both" if method == "upper" else tested]
        _write(path, results)
    return _grid(table, results)


def _grid(table: PrintedTable, results: Mapping[tuple[str, float], float]) -> Grid:
    grid = []
    for row in table.rows:
        line = []
        for cell in row.cells:
            method = cell.keys["method"]
            rate = RATES.get(method, cell.keys["rate"])
            ours = results.get((method, rate))
            figure = Figure(ours, cell.printed, method, 2, cell.is_shown)
            line.append(figure)
        grid.append(line)
    return grid


def _data(script: ModuleType, options: TableOptions) -> tuple:
    """Pictures, digits and sounds."""
    if {"mnist", "sounds"} <= set(options.data):
        images, digits = script.read_mnist(options.data["mnist"])
        return images, digits, script.read_sounds(options.data["sounds"])
    if options.rehearsal:
        return script.synthetic()
    raise UnavailableError(
        "The table needs MNIST and the Free Spoken Digit Dataset.",
        "Name the folders of both, as mnist and sounds.",
        option="data",
    )


def _results_file(table: PrintedTable, options: TableOptions) -> Path:
    return options.output / f"{table.name}-results.csv"


def _read(path: Path) -> dict[tuple[str, float], float]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {
            (row["method"], float(row["rate"])): float(row["accuracy"])
            for row in csv.DictReader(file)
        }


def _write(path: Path, results: Mapping[tuple[str, float], float]) -> None:
    lines = ["method,rate,accuracy"]
    for (method, rate), value in results.items():
        lines.append(f"{method},{rate},{value}")
    text = "\n".join(lines) + "\n"
    write_text(path, text)
