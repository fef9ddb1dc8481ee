"""How cohorts lie on disk: BraTS of every year, BIDS, MyoPS. One function finds the cases of all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.errors import InputDataError, MissingInputError
from medmap.nifti import read_nifti
from medmap.task import Task
from medmap.volume import Volume


@dataclass(frozen=True)
class Case:
    """One patient on disk: files by modality name, and the reference label map if there is one."""

    case_id: str
    scans: dict[str, Path]
    label: Path | None

    def read(self, names: Sequence[str] | None = None) -> dict[str, Volume]:
        """The scans (or those named) as volumes."""
        return {
            name: read_nifti(path, modality=name) for name, path in self.scans.items() if not names or name in names
        }


def find_cases(folder: str | Path, task: Task) -> list[Case]:
    """Cases of a folder, in one of two layouts; names of modalities and their aliases count, in any case of letters.

    BraTS: one sub-folder a case, files named ``<case>_<modality>.nii.gz``, ``_seg``, with ``_`` or ``-``; cases may lie
    deeper, as they are downloaded (below ``HGG`` and ``LGG`` in 2018 and 2019, below the archive's name). MyoPS: the
    files of all cases side by side in a folder (``train25``), labels ``<case>_gd.nii.gz`` there or in the folder whose
    name says more (``train25_myops_gd``). Given all of the challenge, the cases that have labels are found.

    Raises:
        MissingInputError: no such folder, or no case in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingInputError(f"There is no folder {folder}.", "Check the path given with --data.")
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    if any(_named(path, _MYOPS_LABELS) for sub in inner for path in sub.iterdir()):
        cases = [case for case in _side_by_side([folder, *inner], task) if case.label]
    else:
        cases = [case for case in (_case(path, task) for path in inner) if case.scans]
        cases = cases or _deeper(folder, task)
        cases = cases or _side_by_side([folder, *sorted(folder.parent.glob(f"{folder.name}_*"))], task)
    if not cases:
        raise MissingInputError(
            f"{folder.name} holds no case in {task.name} layout.",
            f"Expected <case>/<case>_{task.modality_names[-1]}.nii.gz and so on.",
        )
    return cases


def _deeper(folder: Path, task: Task) -> list[Case]:
    """Cases in folders of folders. Raises InputDataError where two bear the same name."""
    found: dict[str, Case] = {}
    for path in (p for p in sorted(folder.rglob("*")) if p.is_dir()):
        case = _case(path, task)
        if len(case.scans) < 2:  # not a case's own folder, in which several scans lie
            continue
        if case.case_id in found:
            raise InputDataError(
                f"{folder.name} holds two cases named {case.case_id}.", "Give the folder of one data set with --data."
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
    endings = _MYOPS_LABELS | {alias: m.name for m in task.modalities for alias in (m.name, *m.aliases)}
    found: dict[str, dict[str, Path]] = {}
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())):
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
        if match and match[1] in ("seg", "segm"):  # BraTS20_Training_355 has W39_1998.09.19_Segm.nii
            label = path
        elif match and match[1] in endings:
            scans.setdefault(endings[match[1]], path)
    return Case(folder.name, scans, label)
