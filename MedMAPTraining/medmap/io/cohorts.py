"""How cohorts lie on disk: BraTS of every year, BIDS, MyoPS. One function finds the cases of all of them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError
from medmap.io.nifti import read_nifti
from medmap.task import Task
from medmap.volume import Volume


@dataclass(frozen=True)
class Case:
    """One patient on disk: files by modality name, and the reference label map if there is one."""

    case_id: str
    scans: dict[str, Path]
    label: Path | None
    fault: str = ""
    """Why the case cannot be used as it lies there: two files for one modality, say; empty if it can."""

    def check(self) -> None:
        """Raises InputDataError when the case cannot be used as it lies there."""
        if self.fault:
            raise InputDataError(
                self.fault, "Leave one file for each modality, or name the files in a CSV."
            )

    def read(self, names: Sequence[str] | None = None) -> dict[str, Volume]:
        """The scans (or those named) as volumes. Raises InputDataError when it is not clear which files they are."""
        self.check()
        return {
            name: read_nifti(path, modality=name)
            for name, path in self.scans.items()
            if not names or name in names
        }


def find_cases(folder: str | Path, task: Task) -> list[Case]:
    """Cases of a folder or a table; names of modalities and their aliases count, in any case of letters.

    Table: a CSV file with the columns ``case``, one for each modality (empty where there is no scan), and ``label``;
    paths are relative to the file. BIDS: ``sub-*/[ses-*/]anat/`` with the suffixes T1w, T2w and FLAIR, T1w with the
    entity ``ce`` being T1ce, and ``_dseg`` as label; cases are named ``sub-x_ses-y``.
    BraTS: one sub-folder a case, files named ``<case>_<modality>.nii.gz``, ``_seg``, with ``_`` or ``-``; cases may lie
    deeper, as they are downloaded (below ``HGG`` and ``LGG`` in 2018 and 2019, below the archive's name). MyoPS: the
    files of all cases side by side in a folder (``train25``), labels ``<case>_gd.nii.gz`` there or in the folder whose
    name says more (``train25_myops_gd``). Given all of the challenge, the cases that have labels are found.

    Raises:
        MissingInputError: no such folder, or no case in it.
    """
    folder = Path(folder)
    if folder.is_file():
        return _from_table(folder, task)
    if not folder.is_dir():
        raise MissingInputError(
            f"There is no folder {folder}.", "Check the path given with --data."
        )
    if is_bids(folder):
        return _from_bids(folder, task)
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if any(_named(path, _MYOPS_LABELS) for sub in inner for path in sub.iterdir()):
        cases = [case for case in _side_by_side([folder, *inner], task) if case.label]
    else:
        cases = [case for case in (_case(path, task) for path in inner) if case.scans]
        cases = cases or _deeper(folder, task)
        cases = cases or _side_by_side(
            [folder, *sorted(folder.parent.glob(f"{folder.name}_*"))], task
        )
    if not cases:
        raise MissingInputError(
            f"{folder.name} holds no case in {task.name} layout.",
            f"Expected <case>/<case>_{task.modality_names[-1]}.nii.gz and so on.",
        )
    return cases


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS data set with anatomical scans."""
    return any(_anatomy(folder))


def _anatomy(folder: Path) -> Iterator[Path]:
    yield from sorted([*folder.glob("sub-*/anat"), *folder.glob("sub-*/ses-*/anat")])


_BIDS_SUFFIXES = {"T1w": "t1", "T2w": "t2", "FLAIR": "flair", "dseg": "label"}


def _from_bids(folder: Path, task: Task) -> list[Case]:
    cases = []
    for anatomy in _anatomy(folder):
        name = "_".join(part for part in anatomy.relative_to(folder).parts if part != "anat")
        found: dict[str, list[Path]] = {}
        for path in sorted(anatomy.iterdir()):
            match = re.fullmatch(
                r"(sub-\w+?)((?:_[a-zA-Z]+-[a-zA-Z0-9+]+)*)_([a-zA-Z0-9]+)\.nii(\.gz)?", path.name
            )
            if match and match[3] in _BIDS_SUFFIXES:
                meant = (
                    "t1ce" if match[3] == "T1w" and "_ce-" in match[2] else _BIDS_SUFFIXES[match[3]]
                )
                found.setdefault(meant, []).append(path)
        scans = {m: found[m][0] for m in task.modality_names if m in found}
        twice = next((paths for paths in found.values() if len(paths) > 1), None)
        fault = (
            f"{twice[0].name} and {twice[1].name} of {name} are the same kind of file."
            if twice
            else ""
        )
        if scans:
            cases.append(Case(name, scans, found.get("label", [None])[0], fault))
    if not cases:
        raise MissingInputError(
            f"{folder.name} holds no T1w, T2w or FLAIR scan.", "Check the folder."
        )
    return cases


def _from_table(path: Path, task: Task) -> list[Case]:
    """Raises InputDataError for a table that is not understood."""
    words = {alias: m.name for m in task.modalities for alias in (m.name, *m.aliases)} | {
        "label": "label"
    }
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MissingInputError(
            f"The table {path.name} cannot be read ({error}).", "Check the path."
        ) from error
    columns = {
        column: words[column.strip().lower()]
        for column in (rows[0] if rows else ())
        if _known(column, words)
    }
    names = [(row.get("case") or "").strip() for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not rows or not all(names) or twice or not set(columns.values()) - {"label"}:
        what = f"names {twice[0]!r} twice" if twice and all(twice) else "is not understood"
        wanted = ", ".join(task.modality_names)
        raise InputDataError(
            f"The table {path.name} {what}.",
            f"Write the columns case, {wanted} and, if there are any, label.",
        )
    cases = []
    for name, row in zip(names, rows, strict=True):
        files = {
            columns[c]: path.parent / value.strip()
            for c, value in row.items()
            if c in columns and value
        }
        scans = {m: files[m] for m in task.modality_names if m in files}
        odd = name in (".", "..") or "/" in name or "\\" in name or name.startswith(".")
        fault = (
            f"{name!r} cannot be the name of a folder."
            if odd
            else ""
            if scans
            else f"{name} has no scan."
        )
        cases.append(Case(name, scans, files.get("label"), fault))
    return cases


def _known(column: str | None, words: Mapping[str, str]) -> bool:
    return column is not None and column.strip().lower() in words


def _deeper(folder: Path, task: Task) -> list[Case]:
    """Cases in folders of folders. Raises InputDataError where two bear the same name."""
    found: dict[str, Case] = {}
    for path in (p for p in sorted(folder.rglob("*")) if p.is_dir()):
        case = _case(path, task)
        if len(case.scans) < 2:  # not a case's own folder, in which several scans lie
            continue
        if case.case_id in found:
            raise InputDataError(
                f"{folder.name} holds two cases named {case.case_id}.",
                "Give the folder of one data set with --data.",
            )
        found[case.case_id] = case
    return [found[name] for name in sorted(found)]


_MYOPS_LABELS = {"gd": "label"}


def _named(path: Path, endings: Mapping[str, str]) -> tuple[str, str] | None:
    """Case and meaning of a file ``<case>_<ending>.nii.gz``, or None."""
    match = re.fullmatch(r"(.+)[_-]([a-z0-9]+)\.nii(\.gz)?", path.name, re.IGNORECASE)
    return (match[1], endings[match[2].lower()]) if match and match[2].lower() in endings else None


def _side_by_side(folders: Sequence[Path], task: Task) -> list[Case]:
    """Cases whose files lie side by side; a case is what stands in front of the modality's name."""
    endings = _MYOPS_LABELS | {
        alias: m.name for m in task.modalities for alias in (m.name, *m.aliases)
    }
    found: dict[str, dict[str, Path]] = {}
    for path in (
        path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())
    ):
        named = _named(path, endings)
        if named:
            found.setdefault(named[0], {}).setdefault(named[1], path)
    cases = [
        Case(name, {m: files[m] for m in task.modality_names if m in files}, files.get("label"))
        for name, files in sorted(found.items())
    ]
    return [case for case in cases if case.scans]


def _case(folder: Path, task: Task) -> Case:
    endings = {alias: m.name for m in task.modalities for alias in (m.name, *m.aliases)}
    scans, label = {}, None
    for path in sorted(folder.iterdir()):
        match = re.search(r"[_-]([a-z0-9]+)\.nii(\.gz)?$", path.name.lower())
        if match and match[1] in (
            "seg",
            "segm",
        ):  # BraTS20_Training_355 has W39_1998.09.19_Segm.nii
            label = path
        elif match and match[1] in endings:
            scans.setdefault(endings[match[1]], path)
    return Case(folder.name, scans, label)
