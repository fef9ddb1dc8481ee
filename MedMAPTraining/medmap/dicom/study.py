"""A study on disk: its series, and which of them is which modality."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

from medmap.detection.modality_detection import (
    Candidate,
    Detection,
    SeriesEvidence,
    detect_modalities,
    score_modalities,
)
from medmap.detection.sequence_parameters import SequenceParameters
from medmap.dicom.files import FolderContent, read_folder
from medmap.dicom.headers import Header
from medmap.dicom.pixels import image_hash
from medmap.dicom.series import Series, series_of
from medmap.errors import InputDataError, MissingInputError, UsageError
from medmap.task import Task

NO_SERIES = "none"
"""Chosen for a modality that shall stay absent."""


@dataclass(frozen=True)
class Study:
    """One examination of one patient.

    Attributes:
        identifier: ``study-`` and eight digits of a hash of its UIDs; names no one.
        days: after the first study of the folder; 0 where no date is recorded.
        series: its series, ordered by number.
    """

    identifier: str
    days: int
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Choice:
    """Outcome for one series.

    Attributes:
        series: the series.
        modality: name of the modality that it is used as; empty if it is not used.
        reason: why.
    """

    series: Series
    modality: str
    reason: str


@dataclass(frozen=True)
class Assignment:
    """Which series is which modality.

    Attributes:
        chosen: series by modality name, in the order of the task.
        choices: one per series of the study, in its order.
        questions: modalities that a user has to decide, as sentences; empty if all is clear.
        example: a choice that answers the first question (``flair=12``).
    """

    chosen: dict[str, Series]
    choices: tuple[Choice, ...]
    questions: tuple[str, ...]
    example: str


def read_studies(folder: Path, *, by_folder: bool = False) -> tuple[list[Study], list[str]]:
    """Find the studies of a folder, the earliest first, and remarks on its files.

    Images of one patient and one date are one study, whatever their study UIDs: archives that
    remove names give each series a study of its own.

    Args:
        folder: to search, with all folders in it.
        by_folder: what lies in different folders directly below it is never one study, unless it
            has one study UID: archives that remove names may give all patients one name and date.

    Raises:
        MissingInputError: no such folder, or no DICOM in it.
    """
    if folder.name.upper() == "DICOMDIR" and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise MissingInputError("There is no such folder.", "Check the path.")
    content = read_folder(folder)
    if not content.headers:
        raise _nothing(content)
    headers_by_study: dict[tuple[str, str], list[Header]] = defaultdict(list)
    folder_by_uid: dict[str, str] = {}
    for header in content.headers:
        patient, day = _study_key(header)
        if by_folder:
            first_folder = str(header.path.relative_to(folder).parent).split(os.sep)[0]
            # One study UID in several folders is one study: the folder of its first file stands.
            own_folder = folder_by_uid.setdefault(header.study_uid, first_folder)
            patient = f"{patient}\n{own_folder}"
        headers_by_study[patient, day].append(header)
    headers_with_images = _with_images(headers_by_study)
    keys = sorted(headers_with_images, key=lambda key: (key[1], key[0]))
    first_day = keys[0][1]
    studies = []
    for key in keys:
        headers = headers_with_images[key]
        days = _days_between(first_day, key[1])
        studies.append(Study(_identifier(headers), days, tuple(series_of(headers))))
    return studies, _remarks(content)


def _with_images(
    headers_by_study: Mapping[tuple[str, str], list[Header]],
) -> Mapping[tuple[str, str], list[Header]]:
    """Studies that show something; all of them if none does.

    Reports and directories that belong to no examination are none themselves.
    """
    with_images = {}
    for key, headers in headers_by_study.items():
        if any(header.samples for header in headers):
            with_images[key] = headers
    return with_images or headers_by_study


def _nothing(content: FolderContent) -> MissingInputError:
    """Why a folder has no study."""
    if content.missing:
        return MissingInputError(
            f"The folder holds a DICOMDIR, but none of the {content.missing} files that it lists.",
            "Copy the whole disc.",
        )
    if content.damaged:
        return MissingInputError(
            f"All DICOM files of the folder are damaged ({content.damaged}).",
            "Export the study again.",
        )
    return MissingInputError(
        "The folder holds no DICOM files.",
        "Give the folder of a study as it was exported, or NIfTI files by modality.",
    )


def choose_study(studies: Sequence[Study], number: int | None) -> Study:
    """The study that is meant; studies are never mixed.

    Args:
        studies: as ``read_studies`` returns them.
        number: from 1; None where there is only one.

    Raises:
        UsageError: there are several and none is chosen, or there is no such number.
    """
    if number is not None:
        if not 1 <= number <= len(studies):
            raise UsageError(
                f"There is no study {number}.", f"The folder holds {_count(len(studies))}."
            )
        return studies[number - 1]
    if len(studies) == 1:
        return studies[0]
    listed = []
    for position, study in enumerate(studies, 1):
        listed.append(f"{position} ({_when(study)}, {len(study.series)} series)")
    raise InputDataError(
        f"The folder holds {len(studies)} studies: {', '.join(listed)}.",
        "Choose one of them; studies are not mixed.",
        option=f"study {len(studies)}",
    )


def assign_modalities(
    study: Study, task: Task, choices: Mapping[str, str] | None = None
) -> Assignment:
    """Decide which series is which modality.

    Args:
        study: the study.
        task: whose modalities are looked for.
        choices: series key by modality name as the user chose them, or ``NO_SERIES``.

    Raises:
        UsageError: a chosen series does not exist, or is chosen twice.
        InputDataError: a chosen series is no volume.
    """
    fixed = _fixed_series(study, choices or {})
    evidence = _evidence(study, task, fixed)
    detection = detect_modalities(evidence.values(), task)
    chosen: dict[str, Series] = {}
    reasons: dict[str, str] = {}
    for name in task.modality_names:
        series = fixed.get(name)
        reason = "chosen"
        # Fixed to no series: the user's word counts, even where detection found one.
        if name not in fixed and name in detection.assigned:
            candidate = detection.assigned[name]
            series = candidate.series.source
            reason = _reason_text(candidate)
        if series is not None:
            chosen[name] = series
            reasons[series.key] = reason
    questions, example = _questions(detection, task, fixed)
    listed = _choices(study, detection, chosen, reasons)
    return Assignment(chosen, listed, questions, example)


def _fixed_series(study: Study, choices: Mapping[str, str]) -> dict[str, Series | None]:
    series_by_key = {series.key.lower(): series for series in study.series}
    fixed: dict[str, Series | None] = {}
    for modality, key in choices.items():
        if key.lower() == NO_SERIES:
            fixed[modality] = None
            continue
        series = series_by_key.get(key.lower())
        if series is None:
            series_keys = ", ".join(entry.key for entry in study.series)
            raise UsageError(
                f"There is no series {key}.", f"The study has the series {series_keys}."
            )
        if series.stack is None:
            raise InputDataError(
                f"Series {key} cannot be used: {series.unusable}.",
                "Choose another one, or export it again.",
            )
        if series in fixed.values():
            raise UsageError(
                f"Series {key} is chosen for two modalities.", "Give one series for each."
            )
        fixed[modality] = series
    return fixed


def _evidence(
    study: Study, task: Task, fixed: Mapping[str, Series | None]
) -> dict[str, SeriesEvidence]:
    """Evidence by series key; what the user fixed, copies, and reformats are no candidates."""
    chosen_keys = {series.key for series in fixed.values() if series is not None}
    evidence = {}
    for series in study.series:
        unusable = series.unusable
        if series.key in chosen_keys:
            unusable = "chosen for another modality"
        evidence[series.key] = evidence_of(series, unusable)
    unused = _copies(study, evidence, task)
    unused |= _uncorrected(study, evidence, task)
    unused |= _reformats(study, evidence, task)
    for key, reason in unused.items():
        evidence[key] = replace(evidence[key], unusable=reason)
    return evidence


def evidence_of(series: Series, unusable: str = "") -> SeriesEvidence:
    """What the detector gets to know of a series."""
    header = series.header
    return SeriesEvidence(
        name=series.key,
        description=header.description,
        protocol=header.protocol,
        contrast_agent=header.contrast_agent,
        image_type=" ".join(header.image_type),
        scanner=header.modality,
        parameters=SequenceParameters(
            repetition_time=header.repetition_time,
            echo_time=header.echo_time,
            inversion_time=header.inversion_time,
            scanning_sequence=header.scanning_sequence,
        ),
        unusable=unusable,
        source=series,
    )


def _copies(study: Study, evidence: Mapping[str, SeriesEvidence], task: Task) -> dict[str, str]:
    """Reasons of series that hold the same voxels as an earlier one, by key."""
    reasons = {}
    for group in _on_one_grid(study, evidence, task):
        first_by_hash: dict[str, str] = {}
        for series in group:
            voxels = image_hash(series)
            if voxels in first_by_hash:
                original = first_by_hash[voxels]
                reasons[series.key] = f"the same images as series {original}"
            else:
                first_by_hash[voxels] = series.key
    return reasons


def _uncorrected(
    study: Study, evidence: Mapping[str, SeriesEvidence], task: Task
) -> dict[str, str]:
    """Reasons of series that are there once more, corrected by the scanner, by key.

    Siemens stores an acquisition with and without the correction for the receive coil (NORM) and
    for distortion (DIS2D, DIS3D) under one description.
    """
    reasons = {}
    for group in _on_one_grid(study, evidence, task):
        by_acquisition: dict[tuple[str, str], list[Series]] = defaultdict(list)
        for series in group:
            if series.header.acquired:
                acquisition = (series.header.acquired, series.header.description)
                by_acquisition[acquisition].append(series)
        for versions in by_acquisition.values():
            best = max(versions, key=_corrections)
            for series in versions:
                if _corrections(series) < _corrections(best):
                    reasons[series.key] = f"series {best.key} is the same with corrections"
    return reasons


def _corrections(series: Series) -> int:
    """How much the scanner has corrected; the coil's shading matters more than distortion."""
    types = {part.upper() for part in series.header.image_type}
    count = 0
    if "NORM" in types:
        count += 2
    if types & {"DIS2D", "DIS3D"}:
        count += 1
    return count


def _on_one_grid(
    study: Study, evidence: Mapping[str, SeriesEvidence], task: Task
) -> list[list[Series]]:
    """Groups of at least two series that may be inputs and share their grid."""
    by_place: dict[tuple, list[Series]] = defaultdict(list)
    for series in study.series:
        if series.stack is None:
            continue
        if not score_modalities(evidence[series.key], task).scores:
            continue
        first = series.slices[0]
        shape = (first.rows, first.columns, len(series.slices))
        # Rounded: exports write the same affine with different last digits.
        affine = series.stack.affine.round(2).tobytes()
        by_place[(*shape, affine)].append(series)
    return [group for group in by_place.values() if len(group) > 1]


def _reformats(study: Study, evidence: Mapping[str, SeriesEvidence], task: Task) -> dict[str, str]:
    """Reasons of reformats whose original is there, by key."""
    originals: dict[str, str] = {}
    for series in study.series:
        if series.is_derived or series.stack is None:
            continue
        for score in score_modalities(evidence[series.key], task).scores:
            originals.setdefault(score.modality, series.key)
    reasons = {}
    for series in study.series:
        if not series.is_derived or series.stack is None:
            continue
        for score in score_modalities(evidence[series.key], task).scores:
            if score.modality in originals:
                original = originals[score.modality]
                reasons[series.key] = f"a reformat; series {original} is an original"
    return reasons


def _reason_text(candidate: Candidate) -> str:
    return f"{candidate.reason} ({candidate.confidence:.0%} sure)"


def _questions(
    detection: Detection, task: Task, fixed: Mapping[str, Series | None]
) -> tuple[tuple[str, ...], str]:
    """Sentences for the modalities that are open, and a choice that answers the first of them."""
    texts = []
    example = ""
    for question in detection.questions:
        if question.modality in fixed:
            continue
        title = task.modality(question.modality).title
        first = question.candidates[0]
        described = [describe(candidate.series.source) for candidate in question.candidates]
        if len(described) == 1:
            texts.append(f"{title} may be series {described[0]}: {first.reason}.")
        else:
            listed = ", ".join(described[:-1]) + f" or {described[-1]}"
            texts.append(f"{title} may be series {listed}.")
        if not example:
            example = f"{title}={first.series.source.key}"
    return tuple(texts), example


def describe(series: Series) -> str:
    """A series for display: ``5 ('AX T1 POST', 23 slices of 5 mm)``."""
    description = series.header.description or "without description"
    if series.stack is None:
        return f"{series.key} ('{description}')"
    slice_step = series.stack.affine[:3, 2]
    thickness = float((slice_step**2).sum() ** 0.5)
    count = len(series.slices)
    return f"{series.key} ('{description}', {count} slices of {thickness:.3g} mm)"


def _choices(
    study: Study, detection: Detection, chosen: Mapping[str, Series], reasons: Mapping[str, str]
) -> tuple[Choice, ...]:
    """Every series of the study with its modality, or why it has none."""
    modality_by_key = {series.key: name for name, series in chosen.items()}
    rejections = {evidence.source.key: reason for evidence, reason in detection.rejected}
    open_by_key: dict[str, list[str]] = defaultdict(list)
    for question in detection.questions:
        for candidate in question.candidates:
            open_by_key[candidate.series.source.key].append(question.modality)
    listed = []
    for series in study.series:
        key = series.key
        modality = modality_by_key.get(key, "")
        if modality:
            reason = reasons[key]
        elif key in rejections:
            reason = rejections[key]
        elif key in open_by_key:
            reason = f"may be {' or '.join(open_by_key[key])}"
        else:
            reason = "another series fits better"
        listed.append(Choice(series, modality, reason))
    return tuple(listed)


def _study_key(header: Header) -> tuple[str, str]:
    """Patient and date; without one of them the study's UID, which then distinguishes studies."""
    if header.patient and header.date:
        return header.patient, header.date
    study = f"{header.patient}\n{header.study_uid}"
    return study, header.date


def _identifier(headers: Sequence[Header]) -> str:
    """A name that stays the same from run to run. A hash of names or dates could be guessed."""
    uids = {header.study_uid for header in headers} - {""}
    if not uids:
        uids = {item.sop_instance for header in headers for item in header.slices}
    # The smallest: sets have no order, and files are found in any.
    digest = hashlib.sha256(min(uids, default="").encode()).hexdigest()
    return f"study-{digest[:8]}"


def _days_between(first: str, later: str) -> int:
    """Days from one date to a later one; 0 where one of them cannot be read."""
    start = _date(first)
    end = _date(later)
    if start is None or end is None:
        return 0
    return (end - start).days


def _date(text: str) -> date | None:
    try:
        return datetime.strptime(text[:8], "%Y%m%d").date()
    except ValueError:
        return None


def _when(study: Study) -> str:
    if study.days == 0:
        return "the first"
    if study.days == 1:
        return "1 day later"
    return f"{study.days} days later"


def _count(studies: int) -> str:
    if studies == 1:
        return "one study"
    return f"{studies} studies"


def _remarks(content: FolderContent) -> list[str]:
    remarks = []
    if content.damaged:
        remarks.append(f"Damaged DICOM files that were passed over: {content.damaged}.")
    if content.missing:
        remarks.append(f"Files that the DICOMDIR lists and that are missing: {content.missing}.")
    return remarks
