"""``medmap split``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from medmap.cli.base import Overwrite, TaskOption, app, err, out

if TYPE_CHECKING:
    from medmap.commands.splitting import FoldReport


@app.command()
def split(
    data: Annotated[Path, typer.Option(help="Cases with labels, as for medmap train.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file of folds to write.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(help="Check this file of folds (also nnU-Net's splits_final.json) instead."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    test: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the cases kept aside as test part.")
    ] = 0.0,
    table: Annotated[
        Path | None,
        typer.Option(
            help="CSV table with the column case and, where names do not tell, patient; further "
            "columns to stratify by."
        ),
    ] = None,
    stratify: Annotated[
        str, typer.Option(help="Columns to spread evenly over the folds: site,grade.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffle.")] = 0,
    nnunet: Annotated[
        bool, typer.Option("--nnunet", help="Write the format of nnU-Net's splits_final.json.")
    ] = False,
    task: TaskOption = None,
    overwrite: Overwrite = False,
) -> None:
    """Divide a cohort into folds for cross-validation, or check a file of folds.

    The cases of a patient stay in one part: sessions and timepoints are recognized by the names of
    BIDS and BraTS, other names by the table's column patient.
    """
    from medmap.commands.splitting import SplitOptions, check_split, write_folds
    from medmap.errors import UsageError
    from medmap.task import find_task

    options = SplitOptions(
        folds=folds,
        test_share=test,
        table=table,
        stratify=tuple(name.strip() for name in stratify.split(",") if name.strip()),
        seed=seed,
        nnunet=nnunet,
        overwrite=overwrite,
    )
    chosen_task = find_task(task or "BraTS")
    if check is not None:
        _print_report(check_split(data, check, chosen_task, options))
        out.print(f"{check} is sound.", soft_wrap=True, markup=False)
        return
    if output is None:
        raise UsageError(
            "No file to write is named.", "Name one, or a file to check.", option="output"
        )
    _print_report(write_folds(data, output, chosen_task, options))
    out.print(f"folds: {output}", soft_wrap=True, markup=False)


def _table_of_folds(report: FoldReport) -> Table:
    """Sizes of the parts, and of the strata of the validation part, by fold."""
    names: set[str] = set()
    for counts in report.strata:
        names.update(counts)
    # Without columns to stratify by, all cases are in the stratum "".
    strata = sorted(names - {""})
    grid = Table("fold", title=f"{report.patients} patients")
    for heading in ("train", "val", *strata):
        grid.add_column(heading, justify="right")
    for number, (fold, counts) in enumerate(zip(report.folds, report.strata, strict=True)):
        sizes = [str(len(fold.get(part, ()))) for part in ("train", "val")]
        cells = [str(counts.get(name, 0)) for name in strata]
        grid.add_row(str(number), *sizes, *cells)
    return grid


def _print_report(report: FoldReport) -> None:
    for remark in report.remarks:
        err.print(f"warning: {remark}", soft_wrap=True, markup=False)
    out.print(_table_of_folds(report))
    if report.folds and report.folds[0].get("test"):
        out.print(f"test: {len(report.folds[0]['test'])} cases")
