"""The DICOM part of ``medmap segment-cohort``: its studies, their series, and what a user chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medmap.commands.study import StudyOptions, chosen_series
from medmap.dicom import check_libraries, quiet_libraries
from medmap.errors import MedMAPError, UsageError
from medmap.task import Task

if TYPE_CHECKING:
    from medmap.dicom.study import Assignment, Study


@dataclass(frozen=True)
class SeriesChoice:
    """A series that the user chose for a modality.

    Attributes:
        modality: its name, title, or alias.
        series: number of the series; ``none`` leaves the modality out.
        study: name of the study that it is about; empty for every study.
    """

    modality: str
    series: str
    study: str = ""


@dataclass(frozen=True)
class StudyListing:
    """What one study of a cohort holds and what would be done with it.

    Attributes:
        study: the study.
        folder: where it lies, from 1, among the folders of the cohort in the order of their names;
            0 where it lies in several of them or in none. Names of folders may name patients.
        assignment: which series would be which modality; None where that cannot be said.
        error: why it cannot be said.
    """

    study: Study
    folder: int
    assignment: Assignment | None
    error: MedMAPError | None = None


@dataclass(frozen=True)
class CohortListing:
    """What the folder of a cohort holds.

    Attributes:
        studies: one listing per study.
        folder_count: number of folders directly in that of the cohort.
        task: of the bundle.
        warning: on its files; empty if nothing is to be said.
    """

    studies: tuple[StudyListing, ...]
    folder_count: int
    task: Task
    warning: str = ""


def find_studies(source: Path) -> tuple[dict[str, Study], list[str]]:
    """Studies of a folder by their names, and remarks on its files.

    Raises:
        UnavailableError: pydicom is not installed.
        MissingInputError: no such folder, or no DICOM in it.
    """
    check_libraries()
    from medmap.dicom.study import read_studies

    with quiet_libraries():
        studies, remarks = read_studies(source.absolute(), by_folder=True)
    by_name: dict[str, Study] = {}
    for study in studies:
        name = study.identifier
        number = 2
        # Without UIDs, studies have one name; each keeps a result of its own.
        while name in by_name:
            name = f"{study.identifier}-{number}"
            number += 1
        by_name[name] = replace(study, identifier=name)
    return by_name, remarks


def list_studies(
    source: Path, studies: Mapping[str, Study], task: Task, choices: Sequence[SeriesChoice]
) -> CohortListing:
    """Decide which series of every study is which modality; nothing is written.

    Args:
        source: folder of the cohort.
        studies: as ``find_studies`` returns them.
        task: whose modalities are looked for.
        choices: what the user chose.

    Raises:
        As ``check_choices``; faults of one study stay in its listing.
    """
    check_choices(choices, studies, task)
    folders = sorted(path for path in source.absolute().iterdir() if path.is_dir())
    listings = []
    for study in studies.values():
        folder = _folder_number(study, folders)
        try:
            assignment = assign_study(study, task, choices)
        except MedMAPError as error:
            listings.append(StudyListing(study, folder, None, error))
        else:
            listings.append(StudyListing(study, folder, assignment))
    return CohortListing(tuple(listings), len(folders), task)


def check_choices(
    choices: Sequence[SeriesChoice], studies: Mapping[str, Study], task: Task
) -> None:
    """Refuse choices that no study could follow, before anything is computed.

    Raises:
        UsageError: there is no such study or modality, or a modality is given two series.
    """
    for choice in choices:
        if choice.study and choice.study not in studies:
            raise UsageError(
                f"There is no study {choice.study}.",
                "Look at the list of series, which names the studies.",
                option="list",
            )
    for name in {choice.study for choice in choices}:
        chosen_series(_options(choices, name), task)


def assign_study(study: Study, task: Task, choices: Sequence[SeriesChoice]) -> Assignment:
    """Which series of a study is which modality; what was chosen for it alone comes first.

    Raises:
        UsageError: a chosen series does not exist, or is chosen twice.
        InputDataError: a chosen series is no volume.
    """
    from medmap.dicom.study import assign_modalities

    chosen = chosen_series(_options(choices, ""), task)
    chosen |= chosen_series(_options(choices, study.identifier), task)
    with quiet_libraries():
        assignment = assign_modalities(study, task, chosen)
    if not assignment.example:
        return assignment
    # The answer to a question is about this study; others may have another series of this number.
    return replace(assignment, example=f"{study.identifier}:{assignment.example}")


def _options(choices: Sequence[SeriesChoice], study: str) -> StudyOptions:
    """The choices for one study alone, or for every study (``""``)."""
    pairs = [(choice.modality, choice.series) for choice in choices if choice.study == study]
    return StudyOptions(tuple(pairs))


def _folder_number(study: Study, folders: Sequence[Path]) -> int:
    """Number of the folder that holds all of a study, from 1; 0 if there is none."""
    numbers: set[int] = set()
    for series in study.series:
        parents = series.header.path.parents
        for number, path in enumerate(folders, 1):
            if path in parents:
                numbers.add(number)
    if len(numbers) != 1:
        return 0
    return numbers.pop()
