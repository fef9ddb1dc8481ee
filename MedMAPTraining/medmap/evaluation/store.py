"""An evaluation on disk.

The scores of a case are written as soon as it is scored, so that a stopped evaluation can be
resumed; then come the tables. Cases are recognized by the content of their files, never by name
alone: a corrected label map or another cohort with the same case names is scored again.

``evaluation.json`` describes what was evaluated and holds the summary, ``scores.csv`` every score,
``table.csv`` the table of subsets, ``cases/`` the scores of single cases and ``pictures/`` one
slice of each, for the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError, OutputError
from medmap.evaluation.scoring import ScoreRow, read_rows, row_from, write_rows
from medmap.evaluation.summary import table_csv
from medmap.evaluation.tables import Summary
from medmap.io.atomic import make_folder, write_json, write_text
from medmap.io.cases import LABEL, Case
from medmap.io.content import file_record, same_content
from medmap.report.slices import Slice, load_slice, save_slice
from medmap.task import Task

FORMAT = 1
ABOUT = "evaluation.json"
SCORES = "scores.csv"
TABLE = "table.csv"
CASES = "cases"
PICTURES = "pictures"
WEIGHTS = "weights.json"
COMPARISON = "comparison.csv"
CALIBRATION = "calibration.json"
RELIABILITY = "reliability.png"

_RESULTS = (ABOUT, SCORES, TABLE, COMPARISON, CALIBRATION, RELIABILITY)
"""What a finished evaluation consists of, besides the single cases."""


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, read back.

    Attributes:
        folder: where it lies.
        about: bundle, weights, data, part, versions; see ``commands.evaluation``.
        task: of the bundle.
        rows: every score.
        summary: as ``summarize`` made it.
    """

    folder: Path
    about: dict
    task: Task
    rows: tuple[ScoreRow, ...]
    summary: Summary

    @property
    def labels(self) -> dict[str, str]:
        """``scoring.labels_hash`` of each case's reference; empty for evaluations without it."""
        return dict(self.about.get("labels", {}))

    @property
    def title(self) -> str:
        """The bundle's name."""
        return str(self.about.get("bundle", self.folder.name))

    def picture(self, case: str) -> Slice | None:
        """The kept slice of a case, if there is one."""
        path = self.folder / PICTURES / f"{case}.npz"
        return load_slice(path) if path.is_file() else None

    @staticmethod
    def read(folder: str | Path) -> Evaluation:
        """Read a finished evaluation. Raises MissingInputError or InputDataError."""
        folder = Path(folder)
        if not (folder / ABOUT).is_file():
            raise MissingInputError(
                f"{folder.name} holds no finished evaluation.",
                "Give the output folder of medmap evaluate.",
            )
        try:
            content = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}")
            about = dict(content["about"])
            task = Task.from_dict(content["task"])
            summary = Summary.from_dict(content["summary"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputDataError(
                f"{folder.name}/{ABOUT} is not understood ({error}).", "Evaluate again."
            ) from error
        return Evaluation(folder, about, task, tuple(read_rows(folder / SCORES)), summary)


@dataclass(frozen=True)
class StoredCase:
    """What an earlier run stored of a case.

    Attributes:
        rows: its scores.
        labels: ``scoring.labels_hash`` of the reference segmentation.
    """

    rows: list[ScoreRow]
    labels: str


def recorded_weights(folder: Path, weights: str, *, overwrite: bool) -> object:
    """Weights of the evaluation that a folder holds; None where it holds none.

    Raises:
        OutputError: they are others, and must not be overwritten.
    """
    recorded = _json(folder / WEIGHTS)
    if recorded is not None and recorded != weights and not overwrite:
        raise OutputError(
            f"{folder.name} holds an evaluation of another bundle or of other label maps.",
            "Choose another folder, or allow overwriting.",
            option="overwrite",
        )
    return recorded


class Store:
    """An evaluation in progress.

    Args:
        folder: created if need be; results of the same weights that are in it are kept.
        weights: ``identity`` of the bundle.
        overwrite: discard what other weights left there, instead of refusing.
        settings: which scores are computed; a case that was scored with others is scored again.

    Attributes:
        resumed: whether an evaluation of the same weights had been started in the folder.
        changed: cases that had been scored before from other files, in the order of ``done``.

    Raises:
        OutputError: the folder holds an evaluation of other weights, or cannot be written.
    """

    def __init__(
        self, folder: str | Path, weights: str, *, overwrite: bool = False, settings: str = ""
    ):
        self.settings = settings
        self.folder = make_folder(Path(folder))
        recorded = recorded_weights(self.folder, weights, overwrite=overwrite)
        if recorded is not None and recorded != weights:
            self._discard()
        self.resumed = recorded == weights
        self.changed: list[str] = []
        write_json(self.folder / WEIGHTS, weights)
        make_folder(self.folder / CASES)

    def _discard(self) -> None:
        """Delete what an evaluation of other weights left."""
        for pattern in (f"{CASES}/*.json", f"{PICTURES}/*.npz"):
            for path in self.folder.glob(pattern):
                path.unlink()
        for name in _RESULTS:
            (self.folder / name).unlink(missing_ok=True)

    def done(self, case: Case) -> StoredCase | None:
        """The scores of a case that was scored before from the same files, or None."""
        content = _json(self._path(case))
        if not isinstance(content, dict) or content.get("settings", "") != self.settings:
            return None
        if content.get("reading") != _reading(case):
            return None
        recorded = content.get("files")
        if not _same_files(_records(case, recorded), recorded):
            self.changed.append(case.case_id)
            return None
        try:
            rows = [row_from(entry) for entry in content["rows"]]
            return StoredCase(rows, str(content["labels"]))
        except (KeyError, TypeError, ValueError):
            return None

    def add(
        self, case: Case, rows: Sequence[ScoreRow], picture: Slice | None, labels: str = ""
    ) -> None:
        """Keep the scores of one case.

        Args:
            case: the case.
            rows: its scores.
            picture: one slice for the report.
            labels: ``scoring.labels_hash`` of the reference segmentation.
        """
        # The picture first: the scores mark the case as done.
        if picture is not None:
            save_slice(make_folder(self.folder / PICTURES) / f"{case.case_id}.npz", picture)
        content = {
            "files": _records(case),
            "labels": labels,
            "settings": self.settings,
            "reading": _reading(case),
            "rows": [_plain(row) for row in rows],
        }
        write_json(self._path(case), content)

    def _path(self, case: Case) -> Path:
        return self.folder / CASES / f"{case.case_id}.json"

    def finish(
        self, about: Mapping, task: Task, rows: Sequence[ScoreRow], summary: Summary
    ) -> None:
        """Write the tables; this makes it an evaluation that ``Evaluation.read`` takes."""
        write_rows(self.folder / SCORES, rows)
        write_text(self.folder / TABLE, table_csv(summary, task))
        content = {
            "format": FORMAT,
            "about": dict(about),
            "task": task.to_dict(),
            "summary": summary.to_dict(),
        }
        write_json(self.folder / ABOUT, content)


def _plain(row: ScoreRow) -> dict[str, str | float | None]:
    """A row for JSON, which knows no nan: None instead."""
    values = asdict(row)
    for name, value in values.items():
        if isinstance(value, float) and math.isnan(value):
            values[name] = None
    return values


def _records(case: Case, earlier: object = None) -> dict[str, dict[str, str | int]]:
    """``file_record`` of every file of a case, by modality or ``label``."""
    files = dict(case.scans)
    if case.label:
        files[LABEL] = case.label
    earlier_records: Mapping = {}
    if isinstance(earlier, Mapping):
        earlier_records = earlier
    records = {}
    for role, path in files.items():
        records[role] = file_record(path, earlier_records.get(role))
    return records


def _reading(case: Case) -> list:
    """How the files of a case are read; another way gives other scores."""
    convention = case.convention.description if case.convention else ""
    return [convention, case.affine, case.assume_orientation]


def _same_files(records: Mapping, earlier: object) -> bool:
    """Whether two sets of records name the same roles with the same bytes."""
    if not isinstance(earlier, Mapping):
        return False
    if set(records) != set(earlier):
        return False
    return all(same_content(record, earlier[role]) for role, record in records.items())


def _json(path: Path) -> object:
    """What a JSON file holds; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
