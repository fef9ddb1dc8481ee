"""Label files of a case or a cohort, as values of the task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from medmap.errors import InputDataError, MissingInputError
from medmap.io.cases import ONE_FILE, Case
from medmap.io.nifti import read_nifti
from medmap.io.nifti_bytes import read_verified
from medmap.task import Task
from medmap.task.conventions import (
    CONVENTIONS,
    LabelConvention,
    LabelReading,
    distinct_values,
    recognize,
    whole_numbers,
)
from medmap.volume import Volume

THREADS = 4
"""Label files that are looked through at a time; unpacking them releases Python's lock."""


def read_case_labels(case: Case, task: Task) -> Volume:
    """The reference labels of a case as values of the task.

    Raises:
        InputDataError: the case has none, or they cannot be used.
    """
    if case.label is None:
        raise InputDataError(
            f"The case {case.case_id} has no reference labels.",
            f"Add <case>_{task.label_endings[0]}.nii.gz.",
        )
    if case.label_fault:
        raise InputDataError(case.label_fault, ONE_FILE)
    volume = read_nifti(
        case.label,
        modality="seg",
        affine=case.affine,
        assume_orientation=case.assume_orientation,
    )
    convention = case.convention or recognize_file(case.label, task, volume)[0]
    return replace(volume, array=convention.to_task(volume.array, task, volume.name))


def no_labels(cause: str, task: Task) -> InputDataError:
    """The error for cases without label files, which another task may call otherwise."""
    ending = task.label_endings[0]
    return InputDataError(
        cause,
        f"Add <case>_{ending}.nii.gz, or choose the task whose label files these are; "
        f"this one is {task.name}.",
        option="task",
    )


def with_conventions(
    cases: Sequence[Case], task: Task, chosen: str = ""
) -> tuple[list[Case], LabelReading]:
    """Decide for a cohort what the values of its label files mean.

    A label file that cannot be read takes no part in the decision: its own case reports it later.

    Args:
        cases: the cohort.
        task: whose labels they are.
        chosen: name of a convention that the user chose; empty: recognize it.

    Returns:
        The cases, each with its convention, and what reports state.

    Raises:
        InputDataError: the values have several meanings, or none in the task.
        UsageError: there is no convention of the chosen name.
    """
    if chosen:
        cases = [replace(case, convention=None) for case in cases]
    described = {}
    undecided = []
    for case in cases:
        if case.label is not None and case.convention is None:
            undecided.append(case)
        elif case.convention is not None:
            described[case.case_id] = case.convention
    values = {}
    with ThreadPoolExecutor(THREADS) as pool:
        occurring = pool.map(_occurring_values, undecided)
        for case, values_of_case in zip(undecided, occurring, strict=True):
            values[case.case_id] = values_of_case
    recognized = recognize(values, task, chosen)
    conventions = {**described, **recognized.conventions}
    # What a data set states about itself, then what was recognized.
    reasons = {entry.name: entry.source for entry in described.values()}
    reasons.update(recognized.reasons)
    decided = [replace(case, convention=conventions.get(case.case_id)) for case in cases]
    return decided, LabelReading(conventions, reasons)


def recognize_file(
    path: Path, task: Task, volume: Volume, chosen: str = ""
) -> tuple[LabelConvention, str]:
    """Decide what the values of a single label file mean, by the names of its folder and itself.

    Returns the convention and what reports state; errors as ``with_conventions``.
    """
    values = distinct_values(whole_numbers(volume.array, path.name))
    stem = path.name.split(".nii")[0]
    folder = path.absolute().parent.name
    # Releases call the file after the case, or keep plain names in a folder of the case's name.
    name = folder
    if any(entry.matches(stem) for entry in CONVENTIONS):
        name = stem
    reading = recognize({name: values}, task, chosen)
    return reading.conventions[name], reading.statement


def _occurring_values(case: Case) -> tuple[int, ...]:
    """Values of a case's label file; none if it cannot be used."""
    if case.label is None:
        return ()
    try:
        header, data = read_verified(case.label)
        array = np.frombuffer(data, header.dtype, math.prod(header.dims), header.offset)
        # What is scaled is read as numbers; nearly all label files are not.
        has_no_slope = header.slope in (0, 1) or math.isnan(header.slope)
        is_scaled = not has_no_slope or header.inter != 0
        if is_scaled:
            array = read_nifti(case.label, assume_orientation=True).array
        return tuple(distinct_values(whole_numbers(array, case.label.name)))
    except (InputDataError, MissingInputError):
        return ()
