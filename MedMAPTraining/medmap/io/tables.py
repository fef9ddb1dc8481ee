"""Tables of cohorts: CSV files with a row for each case, as spreadsheet programs write them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError
from medmap.io.cases import LABEL, Case, CaseFiles, Cohort, kinds_of_endings
from medmap.task import Task

ENCODINGS = ("utf-8-sig", "utf-16", "cp1252", "latin-1")
"""Tried in this order: with and without a mark, Excel's "Unicode text", Windows, anything."""
DELIMITERS = (",", ";", "\t")
MISSING = ("", "n/a", "na", "nan", "none", "-")
"""Cells of modalities that a case lacks, in lower case; BIDS writes ``n/a``."""


CASE = "case"


@dataclass(frozen=True)
class _Table:
    """Stripped cells, as many in each row as there are titles."""

    path: Path
    titles: list[str]
    rows: list[list[str]]


def table(path: Path, task: Task) -> Cohort:
    """The cases of a table: columns ``case``, one per modality, and ``label``.

    Cells may be empty where a case lacks a modality; paths are relative to the table. Commas,
    semicolons and tabs separate alike.

    Raises:
        MissingInputError: the table cannot be opened.
        InputDataError: it lacks columns or names, or names a case twice.
    """
    content = _read(path)
    kinds = _kinds_of_columns(content, task)
    case_column = kinds.index(CASE)
    names = [row[case_column] for row in content.rows]
    for number, name in enumerate(names, 1):
        if name.lower() in MISSING:
            raise InputDataError(
                f"Row {number} of the table {path.name} has no case name.",
                "Fill the column case in every row.",
            )
        if names.count(name) > 1:
            raise InputDataError(
                f"The table {path.name} names {name!r} twice.", "Give each case a name of its own."
            )
    cases = []
    for name, row in zip(names, content.rows, strict=True):
        cases.append(_case(name, row, kinds, path.parent, task))
    return Cohort(cases)


def _read(path: Path) -> _Table:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingInputError(
            f"The table {path.name} cannot be read ({error.strerror}).", "Check the path."
        ) from error
    text = _decoded(data)
    if "\0" in text:
        raise InputDataError(
            f"{path.name} is no table of text.", "Save it as CSV (a spreadsheet program can)."
        )
    first_line = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first_line.count)
    try:
        lines = list(csv.reader(text.splitlines(), delimiter=delimiter))
    except csv.Error as error:
        raise InputDataError(
            f"The table {path.name} is not understood ({error}).", "Save it as CSV again."
        ) from error
    cells = []
    for line in lines:
        stripped = [cell.strip() for cell in line]
        if any(stripped):
            cells.append(stripped)
    titles = cells[0] if cells else []
    rows = []
    for line in cells[1:]:
        padded = line + [""] * (len(titles) - len(line))
        rows.append(padded[: len(titles)])
    return _Table(path, titles, rows)


def _decoded(data: bytes) -> str:
    for encoding in ENCODINGS:
        # Any two bytes are UTF-16, so that it counts only where the file says so.
        if encoding == "utf-16" and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            continue
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("latin-1")


def _kinds_of_columns(content: _Table, task: Task) -> list[str]:
    """What each column is: ``case``, a modality, ``label``, or "" for what is not understood.

    Raises InputDataError for a table without cases or modalities.
    """
    kind_of_title = {**kinds_of_endings(task), LABEL: LABEL, CASE: CASE}
    kinds = [kind_of_title.get(title.lower(), "") for title in content.titles]
    has_columns = CASE in kinds and bool(set(kinds) & set(task.modality_names))
    if has_columns and content.rows:
        return kinds
    titles = ", ".join(title for title in content.titles if title)
    problem = "is empty"
    if has_columns:
        problem = "has no rows"
    elif titles:
        problem = f"has the columns {titles}"
    modalities = ", ".join(task.modality_names)
    raise InputDataError(
        f"The table {content.path.name} {problem}.",
        f"Write the columns case, {modalities} and, if there are any, label, and a row for each "
        "case.",
    )


def _case(name: str, row: Sequence[str], kinds: Sequence[str], root: Path, task: Task) -> Case:
    files = CaseFiles(name)
    for cell, kind in zip(row, kinds, strict=True):
        if kind not in ("", CASE) and cell.lower() not in MISSING:
            files.add(kind, root / cell)
    case = files.case(task)
    # The results of a case go into a folder of its name.
    if name.startswith(".") or "/" in name or "\\" in name:
        return replace(
            case,
            fault=f"{name!r} cannot be the name of a folder.",
            remedy="Name the case without slashes and without a dot in front.",
        )
    if not case.fault and not case.scans:
        return replace(case, fault=f"{name} has no scan.", remedy="Fill a column of a modality.")
    return case
