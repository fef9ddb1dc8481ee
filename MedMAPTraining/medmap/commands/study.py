"""``medmap segment STUDY``: a DICOM study from its folder to results, in NIfTI and in DICOM."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medmap.bundle.format import default_bundle_path
from medmap.bundle.loading import Bundle, load_bundle
from medmap.commands.segment import Addition, Options, OutputLayout, Result, segment_files
from medmap.dicom import check_libraries, quiet_libraries
from medmap.errors import InputDataError, UsageError
from medmap.io.nifti import write_volume
from medmap.progress import Cancel, Progress
from medmap.task import Task

if TYPE_CHECKING:
    from medmap.dicom.series import Series
    from medmap.dicom.study import Assignment, Study


@dataclass(frozen=True)
class StudyOptions:
    """What a user decides about a study.

    Attributes:
        choices: pairs of a modality and the number of the series that it is; ``none`` leaves the
            modality out.
        number: which study of the folder, from 1; None where there is only one.
    """

    choices: tuple[tuple[str, str], ...] = ()
    number: int | None = None


@dataclass(frozen=True)
class Listing:
    """What a folder holds and what would be done with it.

    Attributes:
        studies: of the folder, the earliest first.
        number: of the study that ``assignment`` is about, from 1.
        assignment: which series would be which modality.
        remarks: on the files of the folder.
        task: of the bundle.
    """

    studies: tuple[Study, ...]
    number: int
    assignment: Assignment
    remarks: tuple[str, ...]
    task: Task


def list_study(folder: Path, bundle: Path | Bundle | None, options: StudyOptions) -> Listing:
    """Find the series of a study and decide which modality each is; nothing is written.

    Raises:
        UnavailableError: pydicom is not installed.
        MissingInputError, InputDataError, UsageError: as ``medmap.dicom.study``.
    """
    check_libraries()
    from medmap.dicom.study import assign_modalities, choose_study, read_studies

    task = _loaded(bundle).task
    with quiet_libraries():
        studies, remarks = read_studies(folder)
        study = choose_study(studies, options.number)
        assignment = assign_modalities(study, task, chosen_series(options, task))
    number = studies.index(study) + 1
    return Listing(tuple(studies), number, assignment, tuple(remarks), task)


def segment_study(
    folder: Path,
    output: Path,
    bundle: Path | Bundle | None,
    study_options: StudyOptions,
    options: Options,
    *,
    progress: Progress,
    cancel: Cancel,
) -> tuple[Result, list[str]]:
    """Segment one study; nothing is left behind on any error.

    The series go through temporary NIfTI files, so that whatever happens to scans from NIfTI files
    happens to them too.

    Args:
        folder: of the study.
        output: folder for the results; made if it does not exist.
        bundle: its folder, or a loaded one; None takes the default bundle.
        study_options: series and study that the user chose.
        options: see ``medmap segment --help``.
        progress: called with the completed fraction and a text.
        cancel: asked now and then; True stops the run.

    Returns:
        The result, and remarks on the study.

    Raises:
        InputDataError: it is not clear which series are which modality.
    """
    bundle = _loaded(bundle)
    progress(0.0, "reading the study")
    listing = list_study(folder, bundle, study_options)
    return segment_assignment(
        listing.assignment,
        listing.remarks,
        output,
        bundle,
        options,
        progress=progress,
        cancel=cancel,
    )


def segment_assignment(
    assignment: Assignment,
    remarks: Sequence[str],
    output: Path,
    bundle: Bundle,
    options: Options,
    *,
    progress: Progress,
    cancel: Cancel,
) -> tuple[Result, list[str]]:
    """Segment a study whose series are assigned; as ``segment_study`` otherwise."""
    _check_assignment(assignment)
    task = bundle.task
    remarks = list(remarks)
    with tempfile.TemporaryDirectory(prefix="medmap-") as temporary:
        scans = []
        for name, series in assignment.chosen.items():
            title = task.modality(name).title
            remarks += [f"{title} (series {series.key}): {note}." for note in series.notes]
            with quiet_libraries():
                scans.append((name, _as_nifti(series, title, Path(temporary))))
        additions, reason = _additions(assignment.chosen, task, bundle.id)
        if reason:
            remarks.append(reason)
        layout = OutputLayout(
            additions=additions, fields={"dicom": _report_fields(assignment, remarks)}
        )
        result = segment_files(
            scans, output, bundle, options, progress=progress, cancel=cancel, layout=layout
        )
    return result, remarks


def _loaded(bundle: Path | Bundle | None) -> Bundle:
    if isinstance(bundle, Bundle):
        return bundle
    return load_bundle(bundle or default_bundle_path())


def chosen_series(options: StudyOptions, task: Task) -> dict[str, str]:
    """Number of the chosen series by modality name.

    Raises:
        UsageError: the task has no such modality, or a modality is given two series.
    """
    choices: dict[str, str] = {}
    for word, key in options.choices:
        name = task.find(word)
        if name in choices:
            raise UsageError(
                f"{task.modality(name).title} is given two series.", "Give one series for each."
            )
        choices[name] = key
    return choices


def _check_assignment(assignment: Assignment) -> None:
    """Raises InputDataError where a user has to decide, or where nothing was recognized."""
    if assignment.questions:
        raise InputDataError(
            " ".join(assignment.questions),
            "Choose the series of this modality, or leave the modality out.",
            option=f"series {assignment.example}",
        )
    if not assignment.chosen:
        raise InputDataError(
            f"None of the {len(assignment.choices)} series is recognized as an input.",
            "Look at the list of series and choose one for each modality.",
            option="list",
        )


def _as_nifti(series: Series, title: str, folder: Path) -> Path:
    from medmap.dicom.pixels import read_volume

    volume = read_volume(series, title)
    # Not compressed: the file lives for the length of the run.
    path = folder / f"series-{series.key}.nii"
    write_volume(path, volume.array, volume.affine)
    return path


def files_sha256(assignment: Assignment) -> dict[str, str]:
    """Hash of the files of each assigned series, by modality."""
    from medmap.dicom.pixels import file_hash

    return {name: file_hash(series) for name, series in assignment.chosen.items()}


def _report_fields(assignment: Assignment, remarks: Sequence[str]) -> dict:
    series = []
    for choice in assignment.choices:
        entry = {
            "series": choice.series.key,
            "description": choice.series.header.description,
            "reason": choice.reason,
        }
        if choice.modality:
            entry["modality"] = choice.modality
        series.append(entry)
    return {
        "series": series,
        "remarks": list(remarks),
        "files_sha256": files_sha256(assignment),
    }


def _additions(
    chosen: Mapping[str, Series], task: Task, bundle: str
) -> tuple[tuple[Addition, ...], str]:
    """DICOM objects to write, or why none are written."""
    if any(label.code is None for label in task.labels):
        return (), f"No DICOM objects: the labels of {task.name} have no codes."
    for series in chosen.values():
        missing = _missing_for_objects(series)
        if missing:
            return (), f"No DICOM objects: series {series.key} has {missing}."
    from medmap.dicom.results import ResultObjects

    objects = ResultObjects(chosen, task, bundle)
    additions = (
        Addition("DICOM segmentation", "segmentation.dcm", objects.write_labels),
        Addition("DICOM regions", "regions.dcm", objects.write_regions),
        Addition("DICOM measurements", "measurements.dcm", objects.write_report),
    )
    return additions, ""


def _missing_for_objects(series: Series) -> str:
    """What a series lacks that DICOM objects refer to; empty if it lacks nothing."""
    header = series.header
    if not header.frame_of_reference:
        return "no frame of reference"
    images = {(item.sop_instance, item.frame) for item in series.slices}
    has_names = all(item.sop_instance for item in series.slices)
    are_distinct = len(images) == len(series.slices)
    if not has_names or not header.study_uid or not are_distinct:
        return "no UIDs that distinguish its images"
    files = {item.path for item in series.slices}
    if len(files) > 1 and any(item.frame for item in series.slices):
        return "several files with several frames each"
    return ""
