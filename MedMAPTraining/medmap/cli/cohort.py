"""``medmap segment-cohort``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmap.cli.base import (
    Affine,
    AssumeOrientation,
    BundleOption,
    Device,
    KeepPrepared,
    Prepare,
    app,
    err,
    out,
    showing_progress,
)
from medmap.cli.study import parse_series, print_assignment
from medmap.errors import UsageError

if TYPE_CHECKING:
    from medmap.commands.cohort import SegmentedCohort
    from medmap.commands.cohort_studies import CohortListing, SeriesChoice, StudyListing

SeriesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--series",
        metavar="[STUDY:]NAME=NUMBER",
        help="The series of a modality in DICOM studies, such as FLAIR=12 for all of them or "
        "study-1a2b3c4d:FLAIR=12 for one; repeatable. FLAIR=none leaves FLAIR out.",
    ),
]
ListOption = Annotated[
    bool,
    typer.Option(
        "--list", help="Show the series of every DICOM study and what each is; write nothing."
    ),
]


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
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the results; created if its parent exists."
        ),
    ] = None,
    series: SeriesOption = None,
    list_series: ListOption = False,
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
    prepare: Prepare = "auto",
    keep_prepared: KeepPrepared = False,
) -> None:
    """Segment many patients; rerun the same command to resume.

    Finished cases are kept, failed ones are tried again. A case that fails is listed with the
    reason in results.csv and does not stop the others. BIDS data sets give BIDS derivatives, other
    cohorts one folder per case as medmap segment writes it. The exit code is 1 if cases failed.

    DICOM studies are named by a hash of their UIDs; medmap segment-cohort STUDIES --list shows the
    series of each.
    """
    from medmap.commands.cohort import CohortOptions, list_cohort
    from medmap.commands.cohort import segment_cohort as run
    from medmap.preparation.plan import preparation_mode

    options = CohortOptions(
        bundle,
        device,
        workers,
        ray,
        again,
        affine,
        assume_orientation,
        prepare=preparation_mode(prepare),
        series=tuple(_parse_choice(text) for text in series or []),
        keep_prepared=keep_prepared,
    )
    if list_series:
        _print_listing(list_cohort(source, options))
        return
    if output is None:
        raise UsageError("No folder for the results was given.", "Give one with --output.")
    with showing_progress() as report:
        cohort = run(source, output, options, report)
    _print_cohort(cohort, output)


def _parse_choice(text: str) -> SeriesChoice:
    """``FLAIR=12`` or ``study-1a2b3c4d:FLAIR=12``. Raises UsageError."""
    from medmap.commands.cohort_studies import SeriesChoice

    modality, number = parse_series(text)
    study, _, name = modality.rpartition(":")
    return SeriesChoice(name.strip(), number, study.strip())


def _print_listing(listing: CohortListing) -> None:
    """Print a table per study; exits with 1 if one of them cannot be listed."""
    if listing.warning:
        err.print(f"warning: {listing.warning}", soft_wrap=True, markup=False)
    for entry in listing.studies:
        out.print(_heading(entry, listing.folder_count), soft_wrap=True, markup=False)
        if entry.assignment is not None:
            print_assignment(entry.assignment, listing.task)
        if entry.error is not None:
            reason = f"{entry.error.cause} {entry.error.command_line_remedy}"
            name = entry.study.identifier
            err.print(f"failed: {name}: {reason}", soft_wrap=True, markup=False)
    if any(entry.error is not None for entry in listing.studies):
        raise typer.Exit(1)


def _heading(entry: StudyListing, folder_count: int) -> str:
    """``study-1a2b3c4d: folder 2 of 3``: names of folders may name patients."""
    identifier = entry.study.identifier
    if entry.folder == 0:
        return identifier
    return f"{identifier}: folder {entry.folder} of {folder_count}"


def _print_cohort(cohort: SegmentedCohort, output: Path) -> None:
    """Print what became of the cases; exits with 1 if one of them failed."""
    from medmap.commands.cohort_rows import RESULTS

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
