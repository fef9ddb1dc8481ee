"""Label maps and the references that they are compared with, by the names of their cases."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError
from medmap.io.cases import ONE_FILE, Case
from medmap.io.cohorts import find_cases
from medmap.io.labels import no_labels
from medmap.task import Task
from medmap.task.conventions import LabelConvention

_NIFTI = re.compile(r"(?P<stem>.+)\.nii(\.gz)?", re.IGNORECASE)
_PROBABILITY = re.compile(r"(^|_)probability_\w+\.nii(\.gz)?$", re.IGNORECASE)
# BIDS: the entities behind subject and session say what a file is, not whose.
_BIDS_CASE = re.compile(
    r"(?P<case>sub-[a-z0-9]+(_ses-[a-z0-9]+)?)(_[a-z]+-[a-z0-9+]+)*", re.IGNORECASE
)

ENDINGS = frozenset(
    "seg segm segmentation dseg label labels mask gt truth pred prediction".split()  # noqa: SIM905
)
"""What programs call a label map: behind the name of its case, or in the case's folder."""


@dataclass(frozen=True)
class Pair:
    """A label map and its reference.

    Attributes:
        case: name of the case.
        prediction: the label map.
        reference: what it is compared with.
        convention: of the reference's values, where its data set describes them.
    """

    case: str
    prediction: Path
    reference: Path
    convention: LabelConvention | None = None


def find_pairs(predictions: Path, labels: Path, task: Task) -> tuple[list[Pair], list[str]]:
    """Match label maps with references by the name of the case.

    A case is named by its file (``Case_1.nii.gz``, ``Case_1_seg.nii.gz``, ``Case_1-seg.nii``,
    ``sub-1_space-orig_dseg.nii.gz``) or, where files are called alike, by its folder
    (``Case_1/segmentation.nii.gz``). References may also be a cohort in any layout of the task,
    such as the one that a network was trained on.

    Args:
        predictions: a folder of label maps.
        labels: a folder of label maps, or a cohort with labels.
        task: gives the layouts of cohorts, and what its label files are called.

    Returns:
        The pairs in the order of their names, and warnings about maps without a reference.

    Raises:
        MissingInputError: a folder does not exist or holds no label map.
        InputDataError: two maps of one case, or references without a prediction.
    """
    predicted = _maps_by_case(predictions, task)
    references = _labeled_cases(labels, task)
    absent = [case for case in references if case not in predicted]
    if absent:
        raise InputDataError(
            f"{len(absent)} of {len(references)} cases of {labels.name} have no prediction in "
            f"{predictions.name}, such as {', '.join(absent[:3])}.",
            "Add them, or score against a folder that holds the labels of the "
            "predicted cases only.",
        )
    pairs = []
    for name in sorted(references):
        reference, convention = references[name]
        pairs.append(Pair(name, predicted[name], reference, convention))
    unmatched = sorted(set(predicted) - set(references))
    warnings = []
    if unmatched:
        warnings.append(
            f"{len(unmatched)} predictions have no reference and were not scored, such as "
            f"{', '.join(unmatched[:3])}."
        )
    return pairs, warnings


_Reference = tuple[Path, LabelConvention | None]


def _labeled_cases(labels: Path, task: Task) -> dict[str, _Reference]:
    """The references by the name of their case."""
    references: dict[str, _Reference] = {}
    cases = _cohort_cases(labels, task)
    for case in cases:
        if case.label_fault:
            raise InputDataError(case.label_fault, ONE_FILE)
        if case.label is not None:
            references[case.case_id] = (case.label, case.convention)
    if references:
        return references
    # Files that are not named as labels are scans in a cohort, and label maps elsewhere.
    if cases and (labels.is_file() or not _files_named_as_labels(labels, task)):
        raise no_labels(f"No case in {labels.name} has reference labels.", task)
    for name, path in _maps_by_case(labels, task).items():
        references[name] = (path, None)
    return references


def _cohort_cases(labels: Path, task: Task) -> list[Case]:
    """Cases of a cohort; none where the folder is not one, as label maps alone are not."""
    try:
        return find_cases(labels, task)
    except MissingInputError:
        return []


def _maps_by_case(folder: Path, task: Task) -> dict[str, Path]:
    """The label maps of a folder by the name of their case."""
    if not folder.is_dir():
        raise MissingInputError(f"There is no folder {folder}.", "Check the path.")
    # Where some files are named as labels, the others beside them are scans.
    chosen = _files_named_as_labels(folder, task) or sorted(_nifti_files(folder))
    if not chosen:
        raise MissingInputError(
            f"{folder.name} holds no label map.", "Give a folder of .nii or .nii.gz files."
        )
    maps: dict[str, Path] = {}
    for path in chosen:
        case = _case_name(path, _endings(task))
        if case in maps:
            first = maps[case].relative_to(folder).as_posix()
            second = path.relative_to(folder).as_posix()
            raise InputDataError(
                f"{first} and {second} in {folder.name} are two label maps of {case}.",
                "Leave one of them, and name each map after its case: <case>.nii.gz, "
                f"<case>_{task.label_endings[0]}.nii.gz, or <case>/segmentation.nii.gz.",
            )
        maps[case] = path
    return maps


def _endings(task: Task) -> frozenset[str]:
    return ENDINGS | frozenset(task.label_endings)


def _files_named_as_labels(folder: Path, task: Task) -> list[Path]:
    endings = _endings(task)
    return sorted(path for path in _nifti_files(folder) if _is_named_as_labels(path, endings))


def _nifti_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or _PROBABILITY.search(path.name):
            continue
        if path.is_file() and _NIFTI.fullmatch(path.name):
            yield path


def _stem(path: Path) -> str:
    match = _NIFTI.fullmatch(path.name)
    return match["stem"] if match else path.name


def _without_ending(stem: str, endings: Collection[str]) -> str:
    """``Case_1`` for ``Case_1_seg``; the stem itself where it ends in something else."""
    match = re.fullmatch(r"(.+)[_.-]([a-z0-9]+)", stem, re.IGNORECASE)
    if match is not None and match[2].lower() in endings:
        return match[1]
    return stem


def _is_named_as_labels(path: Path, endings: Collection[str]) -> bool:
    stem = _stem(path)
    return stem.lower() in endings or _without_ending(stem, endings) != stem


def _case_name(path: Path, endings: Collection[str]) -> str:
    """``Case_1`` for Case_1_seg.nii.gz and for Case_1/segmentation.nii.gz."""
    stem = _stem(path)
    if stem.lower() in endings:
        return path.parent.name
    name = _without_ending(stem, endings)
    match = _BIDS_CASE.fullmatch(name)
    return match["case"] if match else name
