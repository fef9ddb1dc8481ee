"""``medmap cohort describe``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from medmap.cli.base import Overwrite, app, interrupts, out, showing_progress
from medmap.cli.tables import print_table

if TYPE_CHECKING:
    from medmap.evaluation.cohort_description import CohortDescription

cohorts = typer.Typer(help="Describe cohorts.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cohorts, name="cohort")


@cohorts.callback()
def _cohorts() -> None:
    """Keep ``describe`` a command of its own: typer would merge a single one into the group."""


@cohorts.command("describe")
def describe(
    source: Annotated[
        Path, typer.Argument(help="Folder of cases, BIDS data set, or CSV table, as for training.")
    ],
    task: Annotated[str, typer.Option(help="Task that names the modalities.")] = "BraTS",
    sites: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="CSV table with the columns case and site."),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--output", "-o", help="Folder for cohort.json and modalities.png."),
    ] = None,
    intensities: Annotated[
        bool, typer.Option(help="Read every scan and compare the intensities of the sites.")
    ] = True,
    overwrite: Overwrite = False,
) -> None:
    """Count who has which modalities, and compare the intensities of sites.

    Prints and writes counts and percentiles only: no name of a case, no path, no voxel.
    """
    from medmap.commands.cohort_description import DescribeOptions
    from medmap.commands.cohort_description import describe as run
    from medmap.task import find_task

    options = DescribeOptions(output, sites, intensities, overwrite)
    with showing_progress() as progress, interrupts() as cancel:
        description = run(source, find_task(task), options, progress, cancel)
    _print_subsets(description)
    _print_sites(description)
    _print_intensities(description)
    out.print("Missing rates as a recipe has them:")
    out.print(json.dumps(description.missingness), soft_wrap=True, markup=False)


def _print_subsets(description: CohortDescription) -> None:
    """Bars in text: one row for each modality subset."""
    largest_count = max(description.subsets.values())
    rows = []
    for subset, count in description.subsets.items():
        modalities = subset.split("+")
        dots = []
        for name in description.task.modality_names:
            dot = "○"
            if name in modalities:
                dot = "●"
            dots.append(dot)
        # The largest bar has 20 characters, the smallest one.
        length = max(1, round(20 * count / largest_count))
        rows.append([*dots, str(count), "█" * length])
    titles = [modality.title for modality in description.task.modalities]
    title = f"{description.cases} cases, {description.labeled} with reference labels"
    if description.unusable:
        title += f", {description.unusable} not usable as they lie there"
    print_table(title, [*titles, "cases", ""], rows)


def _print_sites(description: CohortDescription) -> None:
    names = description.task.modality_names
    rows = []
    for site, count in description.sites.items():
        available = description.available[site]
        cells = [str(available[name]) for name in names]
        rows.append([site, str(count), *cells])
    rates = [f"{100 * description.missing_rates[name]:.1f} %" for name in names]
    rows.append(["missing", "", *rates])
    titles = [modality.title for modality in description.task.modalities]
    print_table("Cases with each modality, by site", ["site", "cases", *titles], rows)


def _print_intensities(description: CohortDescription) -> None:
    rows = []
    for site, modalities in description.intensities.items():
        for name, values in modalities.items():
            spacing = " x ".join(f"{size:g}" for size in values.spacing_mm)
            percentiles = [f"{value:g}" for value in values.percentiles]
            title = description.task.modality(name).title
            cases = str(values.cases)
            rows.append([site, title, cases, *percentiles, spacing])
    if rows:
        headings = ["site", "modality", "cases", "1 %", "median", "99 %", "voxel (mm)"]
        title = "Intensities within the brain: medians over cases of three percentiles"
        print_table(title, headings, rows, keys=2)
    if description.unreadable:
        out.print(f"{description.unreadable} scans could not be read.")
