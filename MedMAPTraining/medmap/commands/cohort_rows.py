"""The table ``results.csv`` of a cohort: one row per case."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from medmap.commands.cohort_jobs import Job
from medmap.io.atomic import append_bytes, encoded, write_bytes
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


class RowFile:
    """``results.csv``, which grows by a row as each case ends.

    Rows are appended: a file that is written anew after every case costs a terabyte for 100,000
    cases. It is written anew where appending does not do: for the first row, which replaces what an
    earlier run left (with its last line, which a kill may have torn); where a row brings a column
    that the file lacks; and where another program has changed the file.

    Args:
        path: of the file.
        task: names the columns of volumes.
    """

    def __init__(self, path: Path, task: Task):
        self._path = path
        volumes = [f"{region.name}_ml" for region in task.regions]
        self._columns = ["case", "state", "scans", *volumes, "findings", "seconds"]
        self._columns += ["error", "exit_code", "label_map"]
        self._rows: list[Row] = []
        self._size: int | None = None

    def add(self, row: Row) -> None:
        """Append the row of a case. Raises OutputError or IOFailure."""
        self._rows.append(row)
        further_columns = [name for name in row if name not in self._columns]
        self._columns += further_columns
        # Somebody else may have changed or deleted the file since the last row.
        is_ours = self._size == _size_of(self._path)
        if further_columns or self._size is None or not is_ours:
            self._write_anew()
            return
        line = encoded(self._text([row]))
        append_bytes(self._path, line)
        self._size += len(line)

    def finish(self, rows: Sequence[Row]) -> None:
        """Write all rows in their final order. Raises OutputError or IOFailure."""
        self._rows = list(rows)
        self._write_anew()

    def _write_anew(self) -> None:
        header = dict(zip(self._columns, self._columns, strict=True))
        content = encoded(self._text([header, *self._rows]))
        write_bytes(self._path, content)
        self._size = len(content)

    def _text(self, rows: Sequence[Mapping[str, str | float | int]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue()


def _size_of(path: Path) -> int | None:
    """Bytes of a file; None if it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return None
