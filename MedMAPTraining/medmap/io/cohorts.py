"""Cohorts on disk: BraTS of every year, BIDS, MyoPS, tables. One function finds the cases of all of them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError
from medmap.io.nifti import read_nifti
from medmap.task import Task
from medmap.volume import Volume

LABEL = "label"
"""What the reference label map is called among the modalities of a case."""

_BIDS_SUFFIXES = {"T1w": "t1", "T2w": "t2", "FLAIR": "flair", "dseg": LABEL}
_BIDS_NAME = re.compile(
    r"(?P<case>sub-\w+?)(?P<entities>(?:_[a-zA-Z]+-[a-zA-Z0-9+]+)*)"
    r"_(?P<suffix>[a-zA-Z0-9]+)\.nii(\.gz)?"
)
_MYOPS_LABELS = {"gd": LABEL}
# BraTS20_Training_355 has its label map in W39_1998.09.19_Segm.nii.
_BRATS_LABELS = {"seg": LABEL, "segm": LABEL}


@dataclass(frozen=True)
class Case:
    """One patient on disk: files by modality name, and the reference label map if there is one.

    Attributes:
        case_id: unique in the cohort.
        scans: files by canonical modality name.
        label: the reference label map.
        fault: why the case cannot be used as it lies there (two files of one modality, for
            instance); empty if it can.
    """

    case_id: str
    scans: dict[str, Path]
    label: Path | None
    fault: str = ""

    def check(self) -> None:
        """Raises InputDataError when the case cannot be used as it lies there."""
        if self.fault:
            raise InputDataError(
                self.fault, "Leave one file for each modality, or list the files in a CSV table."
            )

    def read(self, names: Sequence[str] | None = None) -> dict[str, Volume]:
        """Read all modalities, or those named, as volumes.

        Raises:
            InputDataError: it is not clear which files they are, or one cannot be used.
        """
        self.check()
        return {
            name: read_nifti(path, modality=name)
            for name, path in self.scans.items()
            if not names or name in names
        }


def find_cases(folder: str | Path, task: Task) -> list[Case]:
    """Find the cases of a folder or a table.

    Modalities go by their names and aliases, in upper or lower case.

    Table: a CSV file with the columns ``case``, one per modality (empty where a case lacks it), and
    ``label``; paths are relative to the file.
    BIDS: ``sub-*/[ses-*/]anat/`` with the suffixes T1w, T2w and FLAIR, T1w with the entity ``ce``
    being T1ce, and ``_dseg`` as label map; cases are named ``sub-x_ses-y``.
    BraTS: one sub-folder per case, files named ``<case>_<modality>.nii.gz``, ``_seg``, with ``_`` or
    ``-``; cases may lie deeper, as they are downloaded (below ``HGG`` and ``LGG`` in 2018 and 2019,
    below the archive's name).
    MyoPS: the files of all cases side by side in a folder (``train25``), label maps
    ``<case>_gd.nii.gz`` in the same folder or in one with a longer name (``train25_myops_gd``). In
    the folder of the whole challenge, the cases with label maps are found.

    Raises:
        MissingInputError: no such folder, or no case in it.
        InputDataError: the table is malformed, or two cases have one name.
    """
    folder = Path(folder)
    if folder.is_file():
        return _cases_of_table(folder, task)
    if not folder.is_dir():
        raise MissingInputError(f"There is no folder {folder}.", "Check the path.")
    if is_bids(folder):
        return _cases_of_bids(folder, task)
    cases = _cases_of_folder(folder, task)
    if not cases:
        raise MissingInputError(
            f"{folder.name} holds no case in {task.name} layout.",
            f"Expected <case>/<case>_{task.modality_names[-1]}.nii.gz and so on.",
        )
    return cases


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS data set with anatomical scans."""
    return any(_bids_anatomy(folder))


def _cases_of_folder(folder: Path, task: Task) -> list[Case]:
    """Try the layouts from the most specific one to the least."""
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    files = [path for subfolder in subfolders for path in subfolder.iterdir()]
    if any(_parse_name(path, _MYOPS_LABELS) for path in files):
        cases = _cases_side_by_side([folder, *subfolders], task)
        return [case for case in cases if case.label]
    cases = [case for case in (_case_of(path, task) for path in subfolders) if case.scans]
    if not cases:
        cases = _nested_cases(folder, task)
    if not cases:
        siblings = sorted(folder.parent.glob(f"{folder.name}_*"))
        cases = _cases_side_by_side([folder, *siblings], task)
    return cases


def _modality_of_alias(task: Task) -> dict[str, str]:
    """Canonical modality names by every name that a file or a column may carry."""
    aliases = {}
    for modality in task.modalities:
        for alias in (modality.name, *modality.aliases):
            aliases[alias] = modality.name
    return aliases


def _scans_of(files: Mapping[str, Path], task: Task) -> dict[str, Path]:
    """The modalities among the files, in the order of the task."""
    return {name: files[name] for name in task.modality_names if name in files}


# BIDS


def _bids_anatomy(folder: Path) -> Iterator[Path]:
    yield from sorted([*folder.glob("sub-*/anat"), *folder.glob("sub-*/ses-*/anat")])


def _cases_of_bids(folder: Path, task: Task) -> list[Case]:
    cases = []
    for anatomy in _bids_anatomy(folder):
        parents = anatomy.relative_to(folder).parent.parts
        case = _bids_case("_".join(parents), anatomy, task)
        if case.scans:
            cases.append(case)
    if not cases:
        raise MissingInputError(
            f"{folder.name} holds no T1w, T2w or FLAIR scan.", "Check the folder."
        )
    return cases


def _bids_case(name: str, anatomy: Path, task: Task) -> Case:
    files: dict[str, list[Path]] = {}
    for path in sorted(anatomy.iterdir()):
        match = _BIDS_NAME.fullmatch(path.name)
        if match is None or match["suffix"] not in _BIDS_SUFFIXES:
            continue
        kind = _BIDS_SUFFIXES[match["suffix"]]
        if kind == "t1" and "_ce-" in match["entities"]:
            kind = "t1ce"
        files.setdefault(kind, []).append(path)
    fault = ""
    for paths in files.values():
        # Two runs or two resolutions: guessing which one is meant could segment the wrong scan.
        if len(paths) > 1:
            fault = f"{paths[0].name} and {paths[1].name} of {name} are the same kind of file."
            break
    first_files = {kind: paths[0] for kind, paths in files.items()}
    return Case(name, _scans_of(first_files, task), first_files.get(LABEL), fault)


# Tables


def _cases_of_table(path: Path, task: Task) -> list[Case]:
    """Raises MissingInputError for a table that cannot be read, InputDataError for a malformed one."""
    rows = _read_rows(path)
    columns = _recognized_columns(rows[0], task) if rows else {}
    names = [(row.get("case") or "").strip() for row in rows]
    _check_table(path, names, columns.values(), task)
    return [
        _case_of_row(name, row, columns, path.parent, task)
        for name, row in zip(names, rows, strict=True)
    ]


def _read_rows(path: Path) -> list[dict[str, str | None]]:
    try:
        # utf-8-sig: spreadsheet programs begin a CSV file with a byte-order mark.
        return list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise MissingInputError(
            f"The table {path.name} cannot be read ({error}).", "Check the path."
        ) from error


def _recognized_columns(row: Mapping[str | None, object], task: Task) -> dict[str, str]:
    """Modality, or ``label``, by title of the column; other columns are ignored."""
    kinds = {**_modality_of_alias(task), LABEL: LABEL}
    columns = {}
    for title in row:
        # csv files fields beyond the titles under None.
        if title is not None and title.strip().lower() in kinds:
            columns[title] = kinds[title.strip().lower()]
    return columns


def _check_table(path: Path, names: Sequence[str], kinds: Iterable[str], task: Task) -> None:
    duplicates = sorted({name for name in names if names.count(name) > 1})
    has_modalities = bool(set(kinds) - {LABEL})
    if names and all(names) and not duplicates and has_modalities:
        return
    if duplicates and all(duplicates):
        problem = f"names {duplicates[0]!r} twice"
    else:
        problem = "lacks columns or case names"
    modalities = ", ".join(task.modality_names)
    raise InputDataError(
        f"The table {path.name} {problem}.",
        f"Write the columns case, {modalities} and, if there are any, label.",
    )


def _case_of_row(
    name: str, row: Mapping[str, str | None], columns: Mapping[str, str], root: Path, task: Task
) -> Case:
    files = {}
    for title, kind in columns.items():
        value = row[title]
        if value:
            files[kind] = root / value.strip()
    scans = _scans_of(files, task)
    fault = ""
    # The results of a case go into a folder of its name.
    if name.startswith(".") or "/" in name or "\\" in name:
        fault = f"{name!r} cannot be the name of a folder."
    elif not scans:
        fault = f"{name} has no scan."
    return Case(name, scans, files.get(LABEL), fault)


# BraTS and MyoPS


def _nested_cases(folder: Path, task: Task) -> list[Case]:
    """Cases in folders of folders. Raises InputDataError where two have one name."""
    cases: dict[str, Case] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            continue
        case = _case_of(path, task)
        # A case's own folder holds several modalities; one file alone may lie anywhere.
        if len(case.scans) < 2:
            continue
        if case.case_id in cases:
            raise InputDataError(
                f"{folder.name} holds two cases named {case.case_id}.",
                "Give the folder of one data set.",
            )
        cases[case.case_id] = case
    return [cases[name] for name in sorted(cases)]


def _parse_name(path: Path, kinds: Mapping[str, str]) -> tuple[str, str] | None:
    """Case and kind of a file ``<case>_<ending>.nii.gz``, or None."""
    match = re.fullmatch(r"(.+)[_-]([a-z0-9]+)\.nii(\.gz)?", path.name, re.IGNORECASE)
    if match is None or match[2].lower() not in kinds:
        return None
    return match[1], kinds[match[2].lower()]


def _cases_side_by_side(folders: Sequence[Path], task: Task) -> list[Case]:
    """Cases whose files lie side by side; a case is named by what precedes the modality's name."""
    kinds = {**_MYOPS_LABELS, **_modality_of_alias(task)}
    files_of: dict[str, dict[str, Path]] = {}
    for folder in folders:
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            parsed = _parse_name(path, kinds)
            if parsed is not None:
                name, kind = parsed
                files_of.setdefault(name, {}).setdefault(kind, path)
    cases = [
        Case(name, _scans_of(files, task), files.get(LABEL))
        for name, files in sorted(files_of.items())
    ]
    return [case for case in cases if case.scans]


def _case_of(folder: Path, task: Task) -> Case:
    """The case of a folder; without scans if it holds none."""
    kinds = {**_modality_of_alias(task), **_BRATS_LABELS}
    scans: dict[str, Path] = {}
    label = None
    for path in sorted(folder.iterdir()):
        match = re.search(r"[_-]([a-z0-9]+)\.nii(\.gz)?$", path.name.lower())
        kind = kinds.get(match[1]) if match else None
        if kind == LABEL:
            label = path
        elif kind is not None:
            scans.setdefault(kind, path)
    return Case(folder.name, scans, label)
