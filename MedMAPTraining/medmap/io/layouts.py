"""Layouts of cohorts on disk: BIDS, a folder for each case, all files side by side, MyoPS."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medmap.errors import InputDataError
from medmap.io.cases import (
    LABEL,
    CaseFiles,
    Cohort,
    ignored_files,
    image_files,
    kinds_of_endings,
    parsed_name,
)
from medmap.task import Task

Images = Mapping[Path, Sequence[Path]]

_BIDS_NAME = re.compile(
    r"(?P<case>sub-\w+?)(?P<entities>(?:_[a-z]+-[a-z0-9+]+)*)_(?P<suffix>[a-z0-9]+)\.nii(\.gz)?",
    re.IGNORECASE,
)
CONTRAST_AGENT = "t1ce"
"""Modality that BIDS writes as T1w with the entity ``ce``."""


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS data set with anatomical scans."""
    return any(_bids_anatomy(folder))


def bids(folder: Path, task: Task) -> Cohort | None:
    """BIDS: ``sub-*/[ses-*/]anat/``, with suffixes that are names or aliases of modalities.

    ``T1w`` with the entity ``ce`` is T1ce, ``_dseg`` the label map; cases are named
    ``sub-x_ses-y``. Letters count in any case.
    """
    if not is_bids(folder):
        return None
    kinds = {**kinds_of_endings(task), "dseg": LABEL}
    groups = []
    images = {}
    for anatomy in _bids_anatomy(folder):
        parents = anatomy.relative_to(folder).parent.parts
        files = CaseFiles("_".join(parents))
        images.update(image_files(anatomy))
        for path in images.get(anatomy, ()):
            kind = _bids_kind(path, kinds, task)
            if kind is not None:
                files.add(kind, path)
        groups.append(files)
    cohort = _cohort(groups, task, images)
    # Numbers in names are entities here (acq-3D); examinations have folders of their own.
    return replace(cohort, mixed=()) if cohort is not None else None


def _bids_anatomy(folder: Path) -> Iterator[Path]:
    yield from sorted([*folder.glob("sub-*/anat"), *folder.glob("sub-*/ses-*/anat")])


def _bids_kind(path: Path, kinds: Mapping[str, str], task: Task) -> str | None:
    match = _BIDS_NAME.fullmatch(path.name)
    if match is None:
        return None
    kind = kinds.get(match["suffix"].lower())
    if kind == "t1" and "_ce-" in match["entities"].lower():
        # In a task without T1ce, a scan with contrast agent is none of its modalities.
        return CONTRAST_AGENT if CONTRAST_AGENT in task.modality_names else None
    return kind


def folders(folder: Path, task: Task) -> Cohort | None:
    """A folder for each case: ``<case>/<case>_<modality>.nii.gz`` or ``<case>/<modality>.nii.gz``.

    Cases may lie deeper, as they are downloaded (below ``HGG`` and ``LGG`` in 2018 and 2019, below
    the archive's name). Raises InputDataError where two have one name.
    """
    kinds = kinds_of_endings(task)
    images = image_files(folder)
    groups = {}
    for parent, paths in images.items():
        if parent != folder:
            groups[parent] = _files_of_folder(parent, paths, kinds)
    direct = [group for parent, group in groups.items() if parent.parent == folder]
    direct = [group for group in direct if group.case(task).scans]
    if direct:
        return _cohort(direct, task, images)
    # A case's own folder holds several modalities; one file alone may lie anywhere.
    least = min(2, len(task.modalities))
    deeper = [group for group in groups.values() if len(group.case(task).scans) >= least]
    names = [group.case_id for group in deeper]
    for name in names:
        if names.count(name) > 1:
            raise InputDataError(
                f"{folder.name} holds two cases named {name}.", "Give the folder of one data set."
            )
    return _cohort(sorted(deeper, key=lambda group: group.case_id), task, images)


def _files_of_folder(folder: Path, paths: Iterable[Path], kinds: Mapping[str, str]) -> CaseFiles:
    files = CaseFiles(folder.name)
    for path in paths:
        parsed = parsed_name(path, kinds)
        if parsed is not None:
            files.add(parsed[1], path)
    return files


def flat(folder: Path, task: Task) -> Cohort | None:
    """The files of all cases side by side: ``<case>_<modality>.nii.gz``.

    Label maps lie beside them, or in a folder with a longer name (``train25_myops_gd``).
    """
    kinds = kinds_of_endings(task)
    label_endings = {ending: kind for ending, kind in kinds.items() if kind == LABEL}
    groups: dict[str, CaseFiles] = {}
    images = {folder: image_files(folder).get(folder, [])}
    _add_side_by_side(groups, images[folder], kinds)
    for sibling in sorted(folder.parent.glob(f"{folder.name}_*")):
        if sibling.is_dir():
            label_files = image_files(sibling).get(sibling, [])
            _add_side_by_side(groups, label_files, label_endings)
    ordered = [groups[name] for name in sorted(groups)]
    return _cohort(ordered, task, images)


def myops(folder: Path, task: Task) -> Cohort | None:
    """The folder of the whole MyoPS challenge: its cases with label maps.

    Scans (``train25``) and label maps (``train25_myops_gd``) lie in folders of their own.
    """
    kinds = kinds_of_endings(task)
    groups: dict[str, CaseFiles] = {}
    images = image_files(folder)
    for parent, paths in images.items():
        if folder in (parent, parent.parent):
            _add_side_by_side(groups, paths, kinds)
    labeled = [groups[name] for name in sorted(groups) if groups[name].case(task).label]
    return _cohort(labeled, task, {})


def _add_side_by_side(
    groups: dict[str, CaseFiles], paths: Iterable[Path], kinds: Mapping[str, str]
) -> None:
    """Sort files into cases, which are named by what precedes the modality's name."""
    for path in paths:
        parsed = parsed_name(path, kinds)
        if parsed is None:
            continue
        name, kind = parsed
        # Without a name before the ending, the file may be of any case.
        if name:
            case_files = groups.setdefault(name, CaseFiles(name))
            case_files.add(kind, path)


def _cohort(groups: Iterable[CaseFiles], task: Task, images: Images) -> Cohort | None:
    """The cases that have scans, and the images of none; None without any case."""
    cases = []
    case_paths: list[Path] = []
    mixed = []
    for files in groups:
        case = files.case(task)
        if case.scans:
            cases.append(case)
            case_paths += files.paths
            if files.mixed is not None:
                mixed.append(files.mixed)
    if not cases:
        return None
    return Cohort(cases, ignored_files(images, case_paths), tuple(mixed))
