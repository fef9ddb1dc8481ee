"""Folds for cross-validation: stratified, and without dividing the examinations of a patient."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError, UsageError
from medmap.training.splits import Split

CASE = "case"
PATIENT = "patient"
RARE = "rare"
"""Stratum of the patients whose own stratum has fewer patients than there are folds."""

_EXAMINATION = re.compile(
    # BIDS, sub-07_ses-pre.
    r"[_-]ses-\w+$"
    # UCSF, LUMIERE and others: a word for the examination, then its number.
    r"|[_-](?:ses|session|timepoint|tp|visit|week|scan)[_-]?\d\w*(?:-\d+)?$"
    # BraTS 2023 and later, BraTS-GLI-00005-100; the last number is the examination.
    r"|(?<=[A-Za-z]-\d{5})-\d{3}$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class CaseTable:
    """What is known of the cases besides their images.

    Attributes:
        path: the file.
        rows: values by column, by the case's name.
    """

    path: Path
    rows: Mapping[str, Mapping[str, str]]

    @staticmethod
    def read(path: Path) -> CaseTable:
        """Read a table with a column ``case``, separated by commas, semicolons or tabs.

        Raises:
            MissingInputError: it cannot be read.
            InputDataError: it has no column ``case``, or names a case twice.
        """
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise MissingInputError(
                f"The table {path.name} cannot be read ({error}).", "Check its path."
            ) from error
        heading = lines[0] if lines else ""
        # Spreadsheets write commas, semicolons or tabs, by country: the most frequent one it is.
        delimiter = max(",;\t", key=heading.count)
        rows: dict[str, dict[str, str]] = {}
        for row in csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True):
            values = _cells(row)
            name = values.get(CASE, "")
            if not name or name in rows:
                fault = f"names {name} twice" if name else "has a row without a case"
                raise InputDataError(
                    f"The table {path.name} {fault}.",
                    "Write a column case with the name of each case's folder.",
                )
            rows[name] = values
        return CaseTable(path, rows)

    def column(self, name: str, cases: Sequence[str]) -> dict[str, str]:
        """A column's value of each case. Raises InputDataError where some have none."""
        values = {}
        columns = sorted({column for row in self.rows.values() for column in row})
        if name.lower() not in columns:
            raise InputDataError(
                f"The table {self.path.name} has no column {name}.",
                f"Use one of {', '.join(columns)}, or add it.",
            )
        for case in cases:
            values[case] = self.rows.get(case, {}).get(name.lower(), "")
        missing = [case for case, value in values.items() if not value]
        if missing:
            raise InputDataError(
                f"The table {self.path.name} has no {name} for {len(missing)} of {len(cases)} "
                f"cases, such as {missing[0]}.",
                "Complete the table; write 'unknown' where the value is not known.",
            )
        return values


def patient_of(case: str) -> str:
    """Name of the patient of a case: without session, timepoint or number of the examination."""
    patient = case
    while (shorter := _EXAMINATION.sub("", patient)) != patient:
        patient = shorter
    return patient


def _cells(row: Mapping[str, str | None]) -> dict[str, str]:
    """A row's cells by heading, in lower case and without spaces around them."""
    values = {}
    for column, value in row.items():
        # Cells beyond the last heading have None for one.
        if isinstance(column, str):
            values[column.strip().lower()] = (value or "").strip()
    return values


def patients_of(cases: Sequence[str], table: CaseTable | None) -> dict[str, str]:
    """Patient of each case: from the table's column ``patient``, else from the case's name."""
    if table is not None:
        names_patients = any(PATIENT in row for row in table.rows.values())
        if names_patients:
            return table.column(PATIENT, cases)
    return {case: patient_of(case) for case in cases}


def strata_of(cases: Sequence[str], table: CaseTable | None, columns: Sequence[str]) -> dict:
    """Stratum of each case: the values of the columns, joined.

    Raises:
        UsageError: columns without a table.
        InputDataError: a case has no value.
    """
    if columns and table is None:
        raise UsageError(
            "Stratifying needs a table of the cases.", "Name the table.", option="table"
        )
    strata = dict.fromkeys(cases, "")
    if table is None:
        return strata
    for name in columns:
        for case, value in table.column(name, cases).items():
            strata[case] = f"{strata[case]} {value}".strip()
    return strata


def make_folds(
    patients: Mapping[str, str],
    strata: Mapping[str, str],
    *,
    folds: int,
    test_share: float,
    seed: int,
) -> list[Split]:
    """Divide the cases into folds; each is once the validation part.

    Args:
        patients: patient by case; the cases of a patient stay together.
        strata: stratum by case; each stratum is spread evenly over the folds.
        folds: number of folds.
        test_share: share of the cases that is kept aside as ``test``; 0 keeps none.
        seed: of the shuffle.

    Returns:
        Per fold ``train``, ``val`` and, with a share, ``test``.

    Raises:
        UsageError: fewer patients than folds, or an impossible share.
    """
    cases = sorted(patients)
    if not 0 <= test_share < 0.9:
        raise UsageError(f"The share of test is {test_share}.", "Choose one from 0 to 0.9.")
    test: list[str] = []
    if test_share:
        # One of n groups of equal size is the share 1/n, spread over the strata like a fold.
        count = max(2, round(1 / test_share))
        groups = _groups(cases, patients, strata, count, seed)
        test = groups[0]
        cases = sorted(set(cases) - set(test))
    splits: list[Split] = []
    for validation in _groups(cases, patients, strata, folds, seed):
        validated = set(validation)
        train = [case for case in cases if case not in validated]
        split: Split = {
            "train": tuple(train),
            "val": tuple(validation),
        }
        if test:
            split["test"] = tuple(test)
        splits.append(split)
    return splits


def _groups(
    cases: Sequence[str],
    patients: Mapping[str, str],
    strata: Mapping[str, str],
    count: int,
    seed: int,
) -> list[list[str]]:
    """The cases in so many groups of about the same size and composition."""
    from sklearn.model_selection import StratifiedGroupKFold

    patient_list = [patients[case] for case in cases]
    if count < 2 or len(set(patient_list)) < count:
        raise UsageError(
            f"{len(set(patient_list))} patients cannot be divided into {count} parts.",
            "Choose at least two folds, and no more than there are patients.",
            option="folds",
        )
    strata_list = _without_rare(cases, patients, strata, count)
    # By patient: scans of one patient in two parts would flatter the scores.
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    groups = []
    for _, positions in splitter.split(cases, strata_list, patient_list):
        groups.append([cases[position] for position in positions])
    return groups


def _patients_by_stratum(
    cases: Sequence[str], patients: Mapping[str, str], strata: Mapping[str, str]
) -> dict[str, set[str]]:
    members: dict[str, set[str]] = {}
    for case in cases:
        patients_of_stratum = members.setdefault(strata[case], set())
        patients_of_stratum.add(patients[case])
    return members


def _without_rare(
    cases: Sequence[str], patients: Mapping[str, str], strata: Mapping[str, str], count: int
) -> list[str]:
    """Stratum of each case; those that cannot reach every fold are one."""
    members = _patients_by_stratum(cases, patients, strata)
    rare = {stratum for stratum, names in members.items() if len(names) < count}
    rare_patients: set[str] = set()
    for stratum in rare:
        rare_patients |= members[stratum]
    replacement = RARE
    has_frequent = len(members) > len(rare)
    if len(rare_patients) < count and has_frequent:
        # Too few even together: they go with the largest stratum.
        replacement = max(members, key=lambda stratum: len(members[stratum]))
    frequent_strata = []
    for case in cases:
        stratum = strata[case]
        if stratum in rare:
            stratum = replacement
        frequent_strata.append(stratum)
    return frequent_strata


def check_folds(folds: Sequence[Split], patients: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Faults and remarks of a set of folds.

    Args:
        folds: to check.
        patients: patient by case, of every case on disk.

    Returns:
        Faults that make scores wrong, and remarks on what may be intended; sentences.
    """
    faults = []
    remarks = []
    validated: Counter[str] = Counter()
    for number, fold in enumerate(folds):
        cases = [name for names in fold.values() for name in names]
        unknown = [name for name in cases if name not in patients]
        if unknown:
            faults.append(
                f"Fold {number}: {len(unknown)} cases are not in the data, such as {unknown[0]}."
            )
        faults += _divided_patients(number, fold, patients)
        validated.update(fold.get("val", ()))
    repeated = sorted(name for name, count in validated.items() if count > 1)
    if repeated:
        faults.append(
            f"{len(repeated)} cases are validated in several folds, such as {repeated[0]}."
        )
    test = set(folds[0].get("test", ()))
    # No fault: a study may leave out cases on purpose.
    unused = sorted(set(patients) - set(validated) - test)
    if unused:
        remarks.append(
            f"{len(unused)} cases on disk are validated in no fold, such as {unused[0]}."
        )
    return faults, remarks


def _divided_patients(number: int, fold: Split, patients: Mapping[str, str]) -> list[str]:
    """Sentences about patients whose cases lie in several parts of a fold."""
    parts_of: dict[str, set[str]] = {}
    for part, names in fold.items():
        for name in names:
            # A case that the data lacks is a fault of its own; here it is its own patient.
            patient = patients.get(name, name)
            parts_of_patient = parts_of.setdefault(patient, set())
            parts_of_patient.add(part)
    divided = sorted(patient for patient, parts in parts_of.items() if len(parts) > 1)
    if not divided:
        return []
    example = divided[0]
    parts = " and ".join(sorted(parts_of[example]))
    return [
        f"Fold {number}: {len(divided)} patients are divided, such as {example} between {parts}."
    ]
