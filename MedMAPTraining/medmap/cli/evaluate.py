"""``medmap evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from medmap.cli.base import BundleOption, Device, app, out, showing_progress
from medmap.task import BRATS


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of cases in BraTS layout, with labels.")],
    bundle: BundleOption = None,
    table: Annotated[Optional[Path], typer.Option(help="Write Dice per case and subset as CSV.")] = None,  # noqa: UP045
    data_statement: Annotated[str, typer.Option(help="What the data are, for the table.")] = "not stated",
    update_card: Annotated[bool, typer.Option(help="Write the table into the bundle's card.")] = False,
    limits: Annotated[str, typer.Option(help="Known limits, for the card; with --update-card.")] = "",
    device: Device = "auto",
) -> None:
    """Dice of every subset of modalities on a cohort, mean ± SD over cases."""
    from medmap.workflow.training import EvaluateOptions, evaluate_bundle

    with showing_progress() as report:
        options = EvaluateOptions(table, data_statement, update_card, limits, device)
        summary = evaluate_bundle(data, bundle, options, report)
    regions = [region.name for region in BRATS.regions]
    grid = Table("scans", *regions, title=f"Dice, mean ± SD over {summary['cases']} cases: {summary['data']}")
    for subset, scores in summary["subsets"].items():
        grid.add_row(subset, *(f"{scores[r]['mean']:.3f} ± {scores[r]['sd']:.3f}" for r in regions))
    out.print(grid)
