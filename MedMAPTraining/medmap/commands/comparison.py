"""Paired comparison of two evaluations: the tests, their CSV, and their record."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.errors import InputDataError, MedMAPError
from medmap.evaluation import Evaluation, PairedTest, ScoreRow, compare, read_rows, significance
from medmap.evaluation.scoring import check_same_labels
from medmap.evaluation.store import ABOUT, SCORES
from medmap.io.atomic import write_text
from medmap.task import Task


@dataclass(frozen=True)
class ScoredCohort:
    """Rows of all cases, and ``labels_hash`` of each case's reference."""

    rows: list[ScoreRow]
    labels: dict[str, str]


def compare_evaluations(
    ours: Path, theirs: Path, output: Path | None, metric: str
) -> tuple[list[PairedTest], Task]:
    """Paired tests of two evaluations (folders of ``medmap evaluate``); a CSV of them where asked.

    Raises:
        InputDataError: they are of different tasks, were scored against different references, or
            have no case and subset in common.
    """
    first = Evaluation.read(ours)
    second = Evaluation.read(theirs)
    check_same_labels(first.labels, second.labels)
    same_modalities = first.task.modality_names == second.task.modality_names
    same_regions = first.task.regions == second.task.regions
    if not (same_modalities and same_regions):
        raise InputDataError(
            "The two evaluations are of different tasks.", "Compare bundles of one task."
        )
    tests = compare(first.rows, second.rows, first.task, metric=metric)
    if output:
        write_tests(output, tests)
    return tests, first.task


def write_tests(path: Path, tests: Sequence[PairedTest]) -> None:
    """Paired tests as CSV, atomically."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(tests[0].to_dict()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(test.to_dict() for test in tests)
    write_text(path, buffer.getvalue())


def comparison_record(tests: Sequence[PairedTest], against: Path | None) -> dict[str, object]:
    """The tests of averages, for ``evaluation.json`` and the card; empty without any."""
    if not tests or against is None:
        return {}
    averages = [test.to_dict() for test in tests if test.kind == "average"]
    content = {
        "against": _title_of(against),
        "method": significance.METHOD,
        "tests": averages,
    }
    return {"comparison": content}


def scores_of(path: Path) -> ScoredCohort:
    """Scores of another evaluation: its folder or its CSV."""
    if not path.is_dir():
        return ScoredCohort(read_rows(path), {})
    if not (path / ABOUT).is_file():
        return ScoredCohort(read_rows(path / SCORES), {})
    evaluation = Evaluation.read(path)
    return ScoredCohort(list(evaluation.rows), evaluation.labels)


def _title_of(path: Path) -> str:
    """The bundle's name where the path is an evaluation's folder, else the file's."""
    try:
        return Evaluation.read(path).title
    except MedMAPError:
        return path.stem
