"""Cohorts on disk: one function finds the cases of every layout that a task may lie in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from medmap.errors import MissingInputError, UsageError
from medmap.io.cases import Case, Cohort
from medmap.io.layouts import bids, flat, folders, is_bids, myops
from medmap.io.nnunet import nnunet
from medmap.io.tables import table
from medmap.plugins import provided_names
from medmap.task import Task

__all__ = ["LAYOUTS", "Case", "Cohort", "find_cases", "find_cohort", "is_bids"]

LAYOUTS: dict[str, Callable[[Path, Task], Cohort | None]] = {
    "bids": bids,
    "nnunet": nnunet,
    "myops": myops,
    "folders": folders,
    "flat": flat,
}
"""How cases may lie in a folder; each finds its cases, or returns None."""


def find_cohort(
    folder: str | Path,
    task: Task,
    *,
    affine: str | None = None,
    assume_orientation: bool = False,
) -> Cohort:
    """Find the cases of a folder or a table, and the images that belong to none.

    Modalities go by their names and aliases, in upper or lower case. A file is a table
    (``medmap.io.tables``); a folder is tried with the layouts of the task, in its order.

    Args:
        folder: the folder or the CSV file.
        task: the modalities, and how cases may lie (``Task.layouts``).
        affine, assume_orientation: how the files will be read, as for ``read_nifti``.

    Raises:
        MissingInputError: no such folder, or no case in it.
        InputDataError: the table is malformed, or two cases have one name.
    """
    folder = Path(folder)
    check_layouts(task)
    cohort = _search(folder, task)
    cases = []
    for case in cohort.cases:
        cases.append(replace(case, affine=affine, assume_orientation=assume_orientation))
    return replace(cohort, cases=cases)


def find_cases(folder: str | Path, task: Task) -> list[Case]:
    """The cases of ``find_cohort``; errors likewise."""
    return find_cohort(folder, task).cases


def check_layouts(task: Task) -> None:
    """Raises UsageError for a task with a layout that does not exist."""
    for name in task.layouts:
        if name not in LAYOUTS:
            raise UsageError(
                f"The task {task.name} names the layout '{name}', which does not exist.",
                f"Use some of {', '.join(LAYOUTS)}.",
            )


def _search(folder: Path, task: Task) -> Cohort:
    if folder.is_file():
        return table(folder, task)
    if not folder.is_dir():
        raise MissingInputError(f"There is no folder {folder}.", "Check the path.")
    for name in [*provided_names("layout"), *task.layouts]:
        if name not in LAYOUTS:
            raise UsageError(
                f"The layout {name} of the task {task.name} is unknown.",
                "Load the plug-in that has it.",
                option="plugin",
            )
        cohort = LAYOUTS[name](folder, task)
        if cohort is not None:
            return cohort
    modalities = ", ".join(task.modality_names)
    raise MissingInputError(
        f"{folder.name} holds no case of the task {task.name} ({modalities}).",
        f"Expected <case>/<case>_{task.modality_names[-1]}.nii.gz and so on, a BIDS data set, "
        "an nnU-Net data set, or a CSV table.",
    )
