"""An evaluation on disk: one file a case as soon as it is scored, so that a stopped one goes on; then the tables.

``evaluation.json`` says what was evaluated and holds the summary, ``scores.csv`` every score, ``table.csv`` the table
of subsets, ``cases/`` the scores of single cases and ``pictures/`` one slice of each, for the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError, OutputError
from medmap.evaluation.scoring import Row, read_rows, row_from, write_rows
from medmap.evaluation.summary import table_csv
from medmap.io.atomic import make_folder, write_json, write_text
from medmap.io.cohorts import Case
from medmap.report.slices import Slice, load_slice, save_slice
from medmap.task import Task

FORMAT = 1
ABOUT, SCORES, TABLE, CASES, PICTURES = (
    "evaluation.json",
    "scores.csv",
    "table.csv",
    "cases",
    "pictures",
)


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation, read back.

    Attributes:
        folder: where it lies.
        about: bundle, weights, data, part, versions; see ``workflow.evaluation``.
        task: of the bundle.
        rows: every score.
        summary: as ``summarize`` made it.
    """

    folder: Path
    about: dict
    task: Task
    rows: tuple[Row, ...]
    summary: dict

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
                "Give the --output folder of medmap evaluate.",
            )
        try:
            data = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}")
            about, task, summary = (
                dict(data["about"]),
                Task.from_dict(data["task"]),
                dict(data["summary"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputDataError(
                f"{folder.name}/{ABOUT} is not understood ({error}).", "Evaluate again."
            ) from error
        return Evaluation(folder, about, task, tuple(read_rows(folder / SCORES)), summary)


class Store:
    """An evaluation in the making.

    Args:
        folder: created if need be; results of the same weights that are in it are kept.
        weights: ``identity`` of the bundle.
        overwrite: discard what other weights left there, instead of refusing.

    Raises:
        OutputError: the folder holds an evaluation of other weights, or cannot be written.
    """

    def __init__(self, folder: str | Path, weights: str, *, overwrite: bool = False):
        self.folder = make_folder(Path(folder))
        mark = self.folder / "weights.json"
        found = _json(mark)
        if found is not None and found != weights:
            if not overwrite:
                raise OutputError(
                    f"{self.folder.name} holds an evaluation of another bundle.",
                    "Choose another folder or add --overwrite.",
                )
            for old in [
                *self.folder.glob(f"{CASES}/*.json"),
                *self.folder.glob(f"{PICTURES}/*.npz"),
            ]:
                old.unlink()
            (self.folder / ABOUT).unlink(missing_ok=True)
        self.begun = found == weights
        write_json(mark, weights)
        make_folder(self.folder / CASES)

    def done(self, case: Case) -> list[Row] | None:
        """The scores of a case that was scored before from the same files, or None."""
        found = _json(self.folder / CASES / f"{case.case_id}.json")
        if not isinstance(found, dict) or found.get("files") != _stamp(case):
            return None
        try:
            return [row_from(entry) for entry in found["rows"]]
        except (KeyError, TypeError, ValueError):
            return None

    def add(self, case: Case, rows: Sequence[Row], picture: Slice | None) -> None:
        """Keep the scores of one case; the picture first, since the scores mark the case as done."""
        if picture is not None:
            save_slice(make_folder(self.folder / PICTURES) / f"{case.case_id}.npz", picture)
        plain = [{k: None if v != v else v for k, v in asdict(row).items()} for row in rows]
        write_json(
            self.folder / CASES / f"{case.case_id}.json", {"files": _stamp(case), "rows": plain}
        )

    def finish(self, about: Mapping, task: Task, rows: Sequence[Row], summary: Mapping) -> None:
        """Write the tables; this makes it an evaluation that ``Evaluation.read`` takes."""
        write_rows(self.folder / SCORES, rows)
        write_text(self.folder / TABLE, table_csv(summary, task))
        content = {
            "format": FORMAT,
            "about": dict(about),
            "task": task.to_dict(),
            "summary": dict(summary),
        }
        write_json(self.folder / ABOUT, content)


def _stamp(case: Case) -> dict[str, int]:
    """Name and size of every file of a case: enough to notice that it was replaced."""
    files = [*case.scans.values(), *([case.label] if case.label else [])]
    return {path.name: path.stat().st_size for path in sorted(files)}


def _json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
