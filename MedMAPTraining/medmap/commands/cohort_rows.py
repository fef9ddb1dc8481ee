"""The table ``results.csv`` of a cohort: one row per case."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path

from medmap.commands.cohort_jobs import Job
from medmap.io.atomic import write_text
from medmap.task import Task

Row = dict[str, str | float | int]
RESULTS = "results.csv"


def result_row(job: Job, state: str, started: float, report: dict) -> Row:
    """Row of a case that has a result.

    Args:
        job: the case.
        state: ``done``, or ``kept`` from an earlier run.
        started: monotonic time at which work on it began.
        report: of ``medmap segment``; it holds all findings, the row only warnings.
    """
    findings = []
    for finding in report["findings"]:
        if finding["level"] != "info":
            findings.append(finding["message"])
    return {
        "case": job.case.case_id,
        "state": state,
        "scans": "+".join(report["modalities"]["used"]),
        **{f"{name}_ml": ml for name, ml in report["volumes_ml"].items()},
        "findings": " | ".join(findings),
        "seconds": round(time.monotonic() - started, 2),
        "error": "",
        "exit_code": 0,
        "label_map": (job.folder / job.layout.label_map).relative_to(job.root).as_posix(),
    }


def failed_row(job: Job, started: float, error: str, code: int) -> Row:
    """Row of a case without a result.

    Args:
        job: the case.
        started: monotonic time at which work on it began.
        error: cause and remedy.
        code: exit code that ``medmap segment`` would have.
    """
    return {
        "case": job.case.case_id,
        "state": "failed",
        "scans": "+".join(job.case.scans),
        "findings": "",
        "seconds": round(time.monotonic() - started, 2),
        "error": error,
        "exit_code": code,
        "label_map": "",
    }


def write_rows(path: Path, rows: Sequence[Row], task: Task) -> None:
    """Write the table so far; at any moment the file is complete."""
    volumes = [f"{region.name}_ml" for region in task.regions]
    columns = [
        "case",
        "state",
        "scans",
        *volumes,
        "findings",
        "seconds",
        "error",
        "exit_code",
        "label_map",
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
