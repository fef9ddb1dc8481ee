"""``medmap split``: files of folds, made or checked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.errors import InputDataError, UsageError
from medmap.evaluation.folds import (
    CaseTable,
    check_folds,
    make_folds,
    patients_of,
    strata_of,
)
from medmap.io.atomic import check_output, write_text
from medmap.io.cohorts import find_cases
from medmap.io.labels import no_labels
from medmap.task import Task
from medmap.training.splits import Split, read_folds, read_split


@dataclass(frozen=True)
class SplitOptions:
    """Options of ``medmap split`` besides data and output; see its help."""

    folds: int = 5
    test_share: float = 0.0
    table: Path | None = None
    stratify: tuple[str, ...] = ()
    seed: int = 0
    nnunet: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class FoldReport:
    """Folds and what is to be known of them.

    Attributes:
        folds: parts by name, per fold.
        patients: number of patients.
        strata: number of cases of each stratum in the validation part, per fold.
        remarks: sentences.
    """

    folds: list[Split]
    patients: int
    strata: list[dict[str, int]]
    remarks: list[str]


def write_folds(data: Path, output: Path, task: Task, options: SplitOptions) -> FoldReport:
    """Divide a cohort into folds and write the file.

    Raises:
        UsageError, InputDataError, MissingInputError: cohort, table or numbers do not fit.
        OutputError: the file exists.
    """
    if options.nnunet and options.test_share:
        raise UsageError(
            "nnU-Net's file of folds has no test part.", "Keep no test part, or choose our format."
        )
    check_output(output, overwrite=options.overwrite)
    cases = _labeled_cases(data, task)
    table = CaseTable.read(options.table) if options.table else None
    patients = patients_of(cases, table)
    strata = strata_of(cases, table, options.stratify)
    folds = make_folds(
        patients, strata, folds=options.folds, test_share=options.test_share, seed=options.seed
    )
    write_text(output, json.dumps(_content(folds, data, options), indent=1) + "\n")
    return _report(folds, patients, strata, [])


def check_split(data: Path, path: Path, task: Task, options: SplitOptions) -> FoldReport:
    """Check a file of folds, or a split, against a cohort.

    Raises:
        InputDataError: with every fault.
    """
    folds = read_folds(path)
    if folds is None:
        folds = [read_split(path)]
    cases = _labeled_cases(data, task)
    table = CaseTable.read(options.table) if options.table else None
    patients = patients_of(cases, table)
    faults, remarks = check_folds(folds, patients)
    if faults:
        raise InputDataError(
            f"{path.name} cannot be used as it is. {' '.join(faults)}", "Make the folds again."
        )
    return _report(folds, patients, strata_of(cases, table, options.stratify), remarks)


def _labeled_cases(data: Path, task: Task) -> list[str]:
    names = [case.case_id for case in find_cases(data, task) if case.label is not None]
    if not names:
        raise no_labels(f"No case in {data.name} has reference labels.", task)
    return names


def _content(folds: Sequence[Split], data: Path, options: SplitOptions) -> object:
    entries = [{"train": fold["train"], "val": fold["val"]} for fold in folds]
    if options.nnunet:
        return entries
    about = f"{len(folds)} folds of {data.resolve().name}, seed {options.seed}"
    if options.stratify:
        about += f", stratified by {', '.join(options.stratify)}"
    content: dict[str, object] = {"about": f"{about}.", "folds": entries}
    if "test" in folds[0]:
        content["test"] = folds[0]["test"]
    return content


def _report(
    folds: list[Split], patients: dict[str, str], strata: dict[str, str], remarks: list[str]
) -> FoldReport:
    counts = []
    for fold in folds:
        names = [name for name in fold.get("val", ()) if name in strata]
        count_of_stratum = Counter(strata[name] for name in names)
        counts.append(dict(sorted(count_of_stratum.items())))
    patient_count = len(set(patients.values()))
    return FoldReport(folds, patient_count, counts, remarks)
