"""Which cases an evaluation scores, and with what: a bundle, or the members of an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medmap.bundle.loading import Bundle
from medmap.errors import BundleError, InputDataError, MedMAPError, MissingInputError, UsageError
from medmap.io.cases import Case
from medmap.networks import Ensemble
from medmap.progress import Progress
from medmap.training.splits import part_of, read_folds, read_split

Assignment = tuple[Case, Bundle]
"""A case and the bundle, or the member of an ensemble, that segments it."""


def assigned_cases(
    cases: Sequence[Case],
    data_name: str,
    bundle: Bundle,
    split: Path | None,
    *,
    part: str = "",
    fold: int | None = None,
    cross_validate: bool = False,
) -> list[Assignment]:
    """The cohort's cases, those of one part of the split, or those of all folds.

    Args:
        cases: of the cohort.
        data_name: of the cohort, for messages.
        bundle: to be evaluated.
        split: its file; None takes every case.
        part: of the split.
        fold: of a split with folds.
        cross_validate: give the validation part of each fold to the ensemble's member that was not
            trained on it.

    Raises:
        MissingInputError: no case has reference labels.
        InputDataError: cases of the split are not in the data.
        UsageError, BundleError: split, fold and bundle do not fit together.
    """
    if split is None:
        if cross_validate or fold is not None:
            raise UsageError("A fold needs a split with folds.", "Name its file.", option="split")
        if not any(case.label for case in cases):
            ending = bundle.task.label_endings[0]
            raise MissingInputError(
                f"No case in {data_name} has reference labels.", f"Add <case>_{ending}.nii.gz."
            )
        return [(case, bundle) for case in cases]
    if not cross_validate:
        part_names = part_of(read_split(split, fold), part)
        return [(case, bundle) for case in _named(part_names, cases, data_name)]
    assignments: list[Assignment] = []
    for number, names in enumerate(_validation_parts(split, bundle)):
        member = bundle.member(number)
        assignments += [(case, member) for case in _named(names, cases, data_name)]
    return assignments


def _validation_parts(split: Path, bundle: Bundle) -> list[Sequence[str]]:
    """Names of the validation cases of each member."""
    folds = read_folds(split)
    if folds is None:
        raise UsageError(f"{split.name} has no folds.", "Name a file of folds.", option="split")
    network = bundle.network
    members = len(network.members) if isinstance(network, Ensemble) else 1
    if members != len(folds):
        raise BundleError(
            f"{split.name} has {len(folds)} folds, and the bundle {bundle.id} {members} networks.",
            "Use the ensemble that was trained on these folds.",
        )
    return [part_of(fold, "val") for fold in folds]


def _named(names: Sequence[str], cases: Sequence[Case], data_name: str) -> list[Case]:
    """The cases of these names. Raises InputDataError where one is not there."""
    by_name = {case.case_id: case for case in cases}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise InputDataError(
            f"{len(missing)} cases of the split are not in {data_name}, such as "
            f"{', '.join(missing[:3])}.",
            "Complete the folder or correct the split: a part must be scored as a whole.",
        )
    return [by_name[name] for name in names]


def training_cases_among(assignments: Sequence[Assignment], report: Progress) -> list[str]:
    """Names of the cases that their bundle was trained on, by the voxels of their scans."""
    names = []
    for number, (case, bundle) in enumerate(assignments):
        training_cases = bundle.training_cases
        if training_cases is None or not training_cases.hashes:
            continue
        report(0.0, f"looking for training cases ({number + 1} of {len(assignments)})")
        try:
            # One scan after the other: the first usually tells.
            scans = (case.read([name])[name] for name in case.scans)
            if training_cases.includes(scans):
                names.append(case.case_id)
        except MedMAPError:
            # Scoring the case says what is wrong with it.
            continue
    return names


def training_warning(names: Sequence[str], cases: int) -> str:
    """A sentence about training cases in an evaluation."""
    return (
        f"{len(names)} of {cases} cases were in the bundle's training, such as {names[0]}: "
        "their scores do not say how it does on new patients."
    )
