"""``medmap segment-cohort``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from medmap.cli.base import BundleOption, Device, app, err, out, showing_progress


@app.command("segment-cohort")
def segment_cohort(
    source: Annotated[
        Path,
        typer.Argument(
            help="CSV (case, one column a modality), BIDS data set, or folder of cases in BraTS layout."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for the results; its last level is created."),
    ],
    bundle: BundleOption = None,
    device: Device = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="Processes [default: one a GPU; 1 on the CPU].")
    ] = 0,
    ray: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="ADDRESS", help="Use the machines of this Ray cluster (auto: the one around)."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Do finished cases anew.")] = False,
) -> None:
    """Segment many patients. Safe to interrupt and call again: finished cases are kept, failed ones tried again.

    A case that fails is written down with its reason in results.csv, and the rest goes on. BIDS data sets give BIDS
    derivatives, other cohorts a folder a case as medmap segment writes it. Exit code 1 says that some cases failed.
    """
    from medmap.commands.cohort import RESULTS, CohortOptions
    from medmap.commands.cohort import segment_cohort as run

    options = CohortOptions(bundle, device, workers, ray, again)
    with showing_progress() as report:
        rows = run(source, output, options, report)
    counts = {
        state: sum(row["state"] == state for row in rows) for state in ("done", "kept", "failed")
    }
    for row in rows:
        if row["state"] == "failed":
            err.print(f"failed: {row['case']}: {row['error']}", soft_wrap=True, markup=False)
    out.print(
        f"{counts['done']} segmented, {counts['kept']} kept from before, {counts['failed']} failed"
    )
    out.print(f"results: {output / RESULTS}", soft_wrap=True)
    if counts["failed"]:
        raise typer.Exit(1)
