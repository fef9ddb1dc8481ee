"""The DICOM part of ``medmap segment``: options, the list of series, and the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from medmap.cli.base import err, out
from medmap.errors import MissingInputError, UsageError

if TYPE_CHECKING:
    from medmap.commands.segment import Options, Result
    from medmap.commands.study import StudyOptions
    from medmap.dicom.study import Assignment, Choice
    from medmap.progress import Cancel, Progress
    from medmap.task import Task

StudyArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="[STUDY]", help="Folder of a DICOM study, instead of files by modality."
    ),
]
SeriesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--series",
        metavar="NAME=NUMBER",
        help="The series of a modality in a DICOM study, such as FLAIR=12; repeatable. "
        "FLAIR=none leaves FLAIR out.",
    ),
]
StudyNumber = Annotated[
    int | None,
    typer.Option("--study", metavar="NUMBER", help="Which study, where the folder holds several."),
]
ListOption = Annotated[
    bool,
    typer.Option("--list", help="Show the series of a study and what each is; write nothing."),
]


def study_options(series: list[str] | None, number: int | None) -> StudyOptions:
    """Options of a study from the command line's words. Raises UsageError."""
    from medmap.commands.study import StudyOptions

    choices = tuple(parse_series(text) for text in series or [])
    return StudyOptions(choices, number)


def parse_series(text: str) -> tuple[str, str]:
    """Modality and number of ``FLAIR=12``. Raises UsageError."""
    name, equals, key = text.partition("=")
    if not (name and equals and key):
        raise UsageError(
            f"'{text}' is not of the form NAME=NUMBER.", "Write for instance --series FLAIR=12."
        )
    return name.strip(), key.strip()


def print_series(folder: Path, bundle: Path | None, options: StudyOptions) -> None:
    """Print the series of a study, what each is taken for, and why."""
    from medmap.commands.study import list_study

    _check_folder(folder)
    listing = list_study(folder, bundle, options)
    for remark in listing.remarks:
        err.print(f"warning: {remark}", soft_wrap=True, markup=False)
    if len(listing.studies) > 1:
        out.print(f"study {listing.number} of {len(listing.studies)}")
    print_assignment(listing.assignment, listing.task)


def print_assignment(assignment: Assignment, task: Task) -> None:
    """Print a table of series, what each is taken for and why, and the open questions."""
    table = Table("series", "description", "slices", "voxels (mm)", "modality", "reason")
    for choice in assignment.choices:
        table.add_row(*_cells(choice, task))
    out.print(table)
    for question in assignment.questions:
        out.print(question, soft_wrap=True, markup=False)
    if assignment.questions:
        out.print(f"Answer with --series {assignment.example}.", soft_wrap=True, markup=False)


def _cells(choice: Choice, task: Task) -> list[str]:
    series = choice.series
    slices = ""
    voxels = ""
    modality = ""
    if series.stack is not None:
        edges = series.stack.affine[:3, :3]
        spacing = (edges**2).sum(axis=0) ** 0.5
        slices = str(len(series.slices))
        voxels = " x ".join(f"{float(value):.3g}" for value in spacing)
    if choice.modality:
        modality = task.modality(choice.modality).title
    cells = [
        series.key,
        series.header.description,
        slices,
        voxels,
        modality,
        choice.reason,
    ]
    # Square brackets in descriptions would be taken for markup.
    return [escape(cell) for cell in cells]


def run_study(
    folder: Path,
    output: Path,
    bundle: Path | None,
    study: StudyOptions,
    options: Options,
    progress: Progress,
    cancel: Cancel,
) -> Result:
    """Segment a study, and print the remarks on it."""
    from medmap.commands.study import segment_study

    _check_folder(folder)
    result, remarks = segment_study(
        folder, output, bundle, study, options, progress=progress, cancel=cancel
    )
    for remark in remarks:
        err.print(f"note: {remark}", soft_wrap=True, markup=False)
    return result


def _check_folder(folder: Path) -> None:
    """Raises MissingInputError or UsageError unless it is a folder. Its name may name a patient."""
    if folder.is_file() and folder.name.upper() != "DICOMDIR":
        raise UsageError(
            "The study is a file, not a folder.",
            "Give the folder with the DICOM files; NIfTI files go with --t1, --t1ce, --t2, "
            "--flair.",
        )
    if not folder.exists():
        raise MissingInputError("There is no such folder.", "Check the path.")
