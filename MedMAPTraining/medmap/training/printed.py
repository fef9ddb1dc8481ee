"""The tables that the papers print, as data: which run and which score stands in every cell.

A file in ``recipes/papers`` holds one table. Rows and columns are partial descriptions of cells; a
cell is the column's keys with the row's over them:

* ``run``: row of ``recipes/tables`` whose bundle is scored. ``{key}`` in it takes the cell's key of
  that name; a mapping is chosen from by the cell's ``data``.
* ``subset``: a modality subset (``t1ce+flair``), or ``full``, ``single``, ``missing 2``, ``all``.
* ``region``: a region, or ``mean`` of all regions.
* ``score``: ``dice`` (default, in percent) or ``hd95`` (mm).
* ``feed``: the modality that is given in the place of the bundle's only one.
* ``minus``: keys of a second cell, whose value is subtracted.
* ``percent_over``: other runs; the cell is the gain over the best of them in percent.
* ``statistic`` ``p-value`` with ``against``: one-tailed paired t-test over the subsets.
* ``force``: keys of the column that stand above the row's.

A list as ``subset`` or ``feed`` means the mean over it. ``printed`` of a row holds the paper's
figures, None where a cell is empty; without it every cell is computed and none is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medmap.errors import BundleError, MissingInputError


@dataclass(frozen=True)
class PrintedCell:
    """One cell of a table.

    Attributes:
        keys: what it shows, see the module.
        printed: the paper's figure; None where it has none.
        is_shown: False where the paper leaves the cell empty.
    """

    keys: Mapping
    printed: float | None
    is_shown: bool = True

    @property
    def run(self) -> str:
        """Name of the row of ``recipes/tables`` that is scored; "" for cells without one."""
        return run_of(self.keys)

    @property
    def operands(self) -> tuple[Mapping, ...]:
        """Keys of every cell that the value is computed from."""
        operands = [self.keys]
        if "minus" in self.keys:
            operands.append({**self.keys, **self.keys["minus"]})
        for run in self.keys.get("percent_over", ()):
            operands.append({**self.keys, "run": run})
        if "against" in self.keys:
            operands.append({**self.keys, "run": self.keys["against"]})
        return tuple(operands)


@dataclass(frozen=True)
class PrintedRow:
    """A row: its titles, from the outer to the inner one, and a cell for each column."""

    titles: tuple[str, ...]
    cells: tuple[PrintedCell, ...]


@dataclass(frozen=True)
class PrintedTable:
    """One table of a paper.

    Attributes:
        name: by which ``medmap table`` finds it.
        title, source: what it shows, and where it is printed.
        columns: titles of every column, from the outer to the inner one.
        kind: ``segmentation``, or ``audiovision`` for the classification example.
        split: that rows without one are trained and tested on.
        missing: the modality that training pairs of the audiovision example lack.
        notes: misprints and conventions.
    """

    name: str
    title: str
    source: str
    columns: tuple[tuple[str, ...], ...]
    rows: tuple[PrintedRow, ...]
    kind: str = "segmentation"
    split: str = ""
    missing: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def cells(self) -> Iterable[PrintedCell]:
        """Every cell that the paper fills, row by row."""
        for row in self.rows:
            for cell in row.cells:
                if cell.is_shown:
                    yield cell

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of all runs that cells need, each once, in the order of the table."""
        names: dict[str, None] = {}
        for cell in self.cells:
            for keys in cell.operands:
                if run_of(keys):
                    names[run_of(keys)] = None
        return tuple(names)


def run_of(keys: Mapping) -> str:
    """Name of the run that keys of a cell stand for; "" without one."""
    run = keys.get("run", "")
    if isinstance(run, Mapping):
        run = run[keys["data"]]
    for name, value in keys.items():
        if isinstance(value, str):
            run = run.replace("{" + name + "}", value)
    return run


def recipes_folder() -> Path:
    """Where recipes lie: beside the package in a checkout, else where the package was installed.

    Raises:
        MissingInputError: neither is there.
    """
    candidates = (
        Path(__file__).resolve().parents[2] / "recipes",
        Path(sys.prefix) / "share/medmap/recipes",
    )
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise MissingInputError(
        "The folder of recipes is not beside this MedMAP.", "Name a recipe by its file."
    )


def printed_tables(folder: Path | None = None) -> dict[str, PrintedTable]:
    """Every table by name. Raises BundleError for one that is not understood."""
    folder = folder or recipes_folder() / "papers"
    tables = {}
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tables[path.stem] = _table(path.stem, content)
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"The table {path.name} is not understood ({error}).", "Correct it."
            ) from error
    return tables


def find_table(name: str) -> PrintedTable:
    """A table by its name. Raises MissingInputError for an unknown one."""
    tables = printed_tables()
    if name not in tables:
        raise MissingInputError(f"There is no table {name}.", f"Use one of {', '.join(tables)}.")
    return tables[name]


def published_means(tables: Mapping[str, PrintedTable]) -> dict[str, dict[str, float]]:
    """Mean Dice in percent that the papers print of each run, by subset and region.

    Means are cells over all regions or over several subsets; single cells are in the tables alone.
    """
    means: dict[str, dict[str, float]] = {}
    for table in tables.values():
        for cell in table.cells:
            keys = cell.keys
            is_dice = keys.get("score", "dice") == "dice"
            is_plain = len(cell.operands) == 1 and is_dice and "feed" not in keys
            if cell.printed is None or not cell.run or not is_plain:
                continue
            region = keys.get("region", "")
            subset = keys.get("subset", "")
            if region == "mean" or subset in ("all", "full"):
                run_means = means.setdefault(cell.run, {})
                run_means[f"{subset} {region}"] = cell.printed
    return means


def _table(name: str, content: Mapping) -> PrintedTable:
    columns = content["columns"]
    rows = tuple(_row(row, columns) for row in content["rows"])
    titles = tuple(tuple(column["title"]) for column in columns)
    optional = {key: content[key] for key in ("kind", "split", "missing") if key in content}
    return PrintedTable(
        name=name,
        title=content["title"],
        source=content["source"],
        columns=titles,
        rows=rows,
        notes=tuple(content["notes"]),
        **optional,
    )


def _row(row: Mapping, columns: list[Mapping]) -> PrintedRow:
    figures = row.get("printed", [None] * len(columns))
    if len(figures) != len(columns):
        raise ValueError(f"{len(figures)} figures in {len(columns)} columns")
    cells = []
    for column, figure in zip(columns, figures, strict=True):
        keys = {**column, **row, **column.get("force", {})}
        for layout_key in ("title", "printed", "force"):
            keys.pop(layout_key, None)
        # The paper leaves a cell empty; a row without figures is not in the paper.
        is_shown = figure is not None or "printed" not in row
        cells.append(PrintedCell(keys, figure, is_shown=is_shown))
    return PrintedRow(tuple(row["title"]), tuple(cells))
