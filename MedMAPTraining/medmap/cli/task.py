"""``medmap task``: tasks from files, and those that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.table import Table

from medmap.cli.base import Labels, app, err, out

if TYPE_CHECKING:
    from medmap.task import Task

tasks = typer.Typer(
    help="Check and list tasks: modalities, labels and regions.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(tasks, name="task")


@tasks.command("list")
def list_tasks() -> None:
    """List the tasks that come with MedMAP."""
    from medmap.task import TASKS, find_task
    from medmap.task.files import shipped_tasks

    table = Table("task", "modalities", "regions")
    for name in [*TASKS, *shipped_tasks()]:
        task = find_task(name)
        regions = ", ".join(region.name for region in task.regions)
        table.add_row(name, ", ".join(task.modality_names), regions)
    out.print(table)


@tasks.command("check")
def check_task(
    source: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="TOML, JSON, dataset.json, or a name.")
    ],
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also find the cases of this folder or table."),
    ] = None,
    labels: Labels = "",
) -> None:
    """Check the description of a task, and show what it says."""
    from medmap.io.cohorts import check_layouts
    from medmap.task import find_task

    task = find_task(source)
    check_layouts(task)
    _print_task(task)
    if data is not None:
        _print_cohort(task, data, labels)


def _print_task(task: Task) -> None:
    from medmap.task.conventions import names_of_conventions

    out.print(f"{task.name}: {task.target}, {task.organ}", soft_wrap=True, markup=False)
    modalities = Table("modality", "title", "also called")
    for modality in task.modalities:
        aliases = ", ".join(modality.aliases)
        modalities.add_row(modality.name, modality.title, aliases)
    out.print(modalities)
    labels = Table("label", "title", "value")
    for label in task.labels:
        values = (label.value, *label.alternative_values)
        labels.add_row(label.name, label.title, ", ".join(str(value) for value in values))
    out.print(labels)
    regions = Table("region", "title", "labels")
    for region in task.regions:
        regions.add_row(region.name, region.title, " + ".join(region.labels))
    out.print(regions)
    stripped = "with everything around the organ"
    if task.skull_stripped:
        stripped = "skull-stripped"
    dimensions = "volumes"
    if task.spatial_dims == 2:
        dimensions = "slice by slice"
    out.print(f"images: {stripped}; segmented: {dimensions}", soft_wrap=True)
    out.print(f"layouts: {', '.join(task.layouts)}", soft_wrap=True)
    out.print(f"label files end in: {', '.join(task.label_endings)}", soft_wrap=True)
    out.print(f"label conventions: {', '.join(names_of_conventions(task))}", soft_wrap=True)


def _print_cohort(task: Task, data: Path, labels: str) -> None:
    from medmap.io.cohorts import find_cohort
    from medmap.io.labels import with_conventions

    cohort = find_cohort(data, task)
    cases, reading = with_conventions(cohort.cases, task, labels)
    labeled = sum(case.label is not None for case in cases)
    complete = sum(len(case.scans) == len(task.modalities) for case in cases)
    out.print(
        f"{len(cases)} cases, {labeled} with labels, {complete} with every modality",
        soft_wrap=True,
    )
    if reading.statement:
        out.print(reading.statement, soft_wrap=True, markup=False)
    for case in cases:
        for fault in (case.fault, case.label_fault):
            if fault:
                err.print(f"fault: {fault}", soft_wrap=True, markup=False)
    if cohort.warning:
        err.print(f"warning: {cohort.warning}", soft_wrap=True, markup=False)
