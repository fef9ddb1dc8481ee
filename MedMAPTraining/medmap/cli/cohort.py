"""``medmap segment-cohort``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from medmap.cli.base import (
    Affine,
    AssumeOrientation,
    BundleOption,
    Device,
    app,
    err,
    out,
    showing_progress,
)


@app.command("segment-cohort")
def segment_cohort(
    source: Annotated[
        Path,
        typer.Argument(
            help="CSV table (case, one column per modality), BIDS data set, folder of cases in "
            "BraTS layout, or folder of DICOM studies."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder for the results; created if its parent exists."
        ),
    ],
    bundle: BundleOption = None,
    device: Device = "auto",
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes [default: one per GPU; 1 on the CPU].")
    ] = 0,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Use the machines of this Ray cluster (auto: the one this machine belongs to).",
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Segment finished cases again.")] = False,
    affine: Affine = None,
    assume_orientation: AssumeOrientation = False,
) -> None:
    """Segment many patients; rerun the same command to resume.

    Finished cases are kept, failed ones are tried again. A case that fails is listed with the reason in
    results.csv and does not stop the others. BIDS data sets give BIDS derivatives, other cohorts one
    folder per case as medmap segment writes it. The exit code is 1 if cases failed.
    """
    from medmap.commands.cohort import RESULTS, CohortOptions
    from medmap.commands.cohort import segment_cohort as run

    options = CohortOptions(bundle, device, workers, ray, again, affine, assume_orientation)
    with showing_progress() as report:
        cohort = run(source, output, options, report)
    rows = cohort.rows
    if cohort.warning:
        err.print(f"warning: {cohort.warning}", soft_wrap=True, markup=False)
    counts = Counter(row["state"] for row in rows)
    for row in rows:
        if row["state"] == "failed":
            err.print(f"failed: {row['case']}: {row['error']}", soft_wrap=True, markup=False)
    out.print(
        f"{counts['done']} segmented, {counts['kept']} kept from before, {counts['failed']} failed"
    )
    out.print(f"results: {output / RESULTS}", soft_wrap=True, markup=False)
    if counts["failed"]:
        raise typer.Exit(1)
