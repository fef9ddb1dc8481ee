"""Cases and cohorts: which files belong to a patient, and how they are read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.errors import InputDataError
from medmap.io.nifti import read_scans
from medmap.task import Task
from medmap.task.conventions import LabelConvention
from medmap.volume import Volume

LABEL = "label"
"""What the reference label map is called among the modalities of a case."""

ONE_FILE = "Leave one file for each modality, or list the files in a CSV table."


@dataclass(frozen=True)
class Case:
    """One patient on disk: files by modality name, and the reference label map if there is one.

    Attributes:
        case_id: unique in the cohort.
        scans: files by canonical modality name.
        label: the reference label map.
        fault: why the case cannot be used as it lies there (two files of one modality, for
            instance); empty if it can.
        remedy: what can be done about the fault.
        label_fault: why the label map cannot be used (there are two); empty if it can.
        convention: what the values of the label map mean; None until it is decided
            (``medmap.io.labels.with_conventions``).
        affine, assume_orientation: how its files are read, as for ``read_nifti``.
    """

    case_id: str
    scans: dict[str, Path]
    label: Path | None
    fault: str = ""
    remedy: str = ONE_FILE
    label_fault: str = ""
    convention: LabelConvention | None = None
    affine: str | None = None
    assume_orientation: bool = False

    def check(self) -> None:
        """Raises InputDataError when the case cannot be used as it lies there."""
        if self.fault:
            raise InputDataError(self.fault, self.remedy)

    def read(self, names: Sequence[str] | None = None) -> dict[str, Volume]:
        """Read all modalities, or those named, as volumes.

        Raises:
            InputDataError: it is not clear which files they are, or one cannot be used.
        """
        self.check()
        files = {}
        for name, path in self.scans.items():
            if names is None or name in names:
                files[name] = path
        return read_scans(files, affine=self.affine, assume_orientation=self.assume_orientation)


@dataclass(frozen=True)
class Cohort:
    """The cases of a folder or a table.

    Attributes:
        cases: in the order of their names, or of the table.
        ignored: files that look like scans and belong to none of the cases.
        mixed: pairs of scans of one case whose names hold different numbers, such as two dates.
    """

    cases: list[Case]
    ignored: tuple[Path, ...] = ()
    mixed: tuple[tuple[Path, Path], ...] = ()

    @property
    def warning(self) -> str:
        """What was left out and what looks mixed up, for people; empty if nothing is."""
        sentences = []
        if self.ignored:
            names = [f"{path.parent.name}/{path.name}" for path in self.ignored]
            sentences.append(
                f"Not taken, because their names are not understood: {_shortened(names)}."
            )
        if self.mixed:
            names = [f"{first.name} and {second.name}" for first, second in self.mixed]
            sentences.append(
                f"The names of scans of one case hold different numbers: {_shortened(names)}; "
                "check that they are of one examination."
            )
        return " ".join(sentences)


def _shortened(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    listed = ", ".join(names[:5])
    hidden_count = len(names) - 5
    if hidden_count > 0:
        listed += f" and {hidden_count} more"
    return listed


class CaseFiles:
    """Files of one case by kind, as they are come across.

    Args:
        case_id: name of the case.
    """

    def __init__(self, case_id: str):
        self.case_id = case_id
        self._paths: dict[str, list[Path]] = {}

    def add(self, kind: str, path: Path) -> None:
        """Add a file of a kind: a modality, or ``LABEL``."""
        self._paths.setdefault(kind, []).append(path)

    def case(self, task: Task, convention: LabelConvention | None = None) -> Case:
        """The case; two files of one kind are its fault, for either may be the wrong one."""
        faults = {}
        for kind, paths in self._paths.items():
            if len(paths) > 1:
                title = "label map" if kind == LABEL else task.modality(kind).title
                faults[kind] = (
                    f"{paths[0].name} and {paths[1].name} of {self.case_id} are the same kind of "
                    f"file: {title}."
                )
        # Label maps matter to training and evaluation alone.
        label_fault = faults.pop(LABEL, "")
        first_paths = {kind: paths[0] for kind, paths in self._paths.items()}
        scans = {name: first_paths[name] for name in task.modality_names if name in first_paths}
        return Case(
            self.case_id,
            scans,
            first_paths.get(LABEL),
            next(iter(faults.values()), ""),
            label_fault=label_fault,
            convention=convention,
        )

    @property
    def mixed(self) -> tuple[Path, Path] | None:
        """Two scans whose names hold different numbers before the modality; None if none do."""
        scans = [paths[0] for kind, paths in self._paths.items() if kind != LABEL]
        if not scans:
            return None
        first = scans[0]
        for path in scans[1:]:
            if _numbers(path) != _numbers(first):
                return first, path
        return None

    @property
    def paths(self) -> list[Path]:
        """Every file that was added."""
        return [path for paths in self._paths.values() for path in paths]


def _numbers(path: Path) -> list[str]:
    """Numbers in a name, such as dates and visits; not those of the modality (T1, 0000)."""
    stem, _, _ = re.sub(r"\.nii(\.gz)?$", "", path.name.lower()).replace("-", "_").rpartition("_")
    return re.findall(r"\d+", stem)


def kinds_of_endings(task: Task) -> dict[str, str]:
    """Modality or ``LABEL`` by lower-case ending of a file's name or title of a column."""
    kinds = dict.fromkeys(task.label_endings, LABEL)
    for modality in task.modalities:
        for word in (modality.name, *modality.aliases):
            kinds[word] = modality.name
    return kinds


def is_image(path: Path) -> bool:
    """Whether a file is NIfTI by its name. Names that begin with a dot are no scans.

    macOS writes a companion ``._scan.nii.gz`` beside each file on foreign disks.
    """
    name = path.name.lower()
    return not name.startswith(".") and name.endswith((".nii", ".nii.gz"))


def image_files(folder: Path) -> dict[Path, list[Path]]:
    """NIfTI files below a folder, by the folder that they lie in, both in the order of names.

    Links to folders are followed, each folder is visited once, hidden ones are left out.
    """
    files: dict[Path, list[Path]] = {}
    visited: set[tuple[int, int]] = set()
    for root, names, file_names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        identity = (status.st_dev, status.st_ino)
        if identity in visited:
            names.clear()
            continue
        visited.add(identity)
        # In place: os.walk goes on with what remains in the list.
        names[:] = sorted(name for name in names if not name.startswith((".", "__MACOSX")))
        paths = [Path(root) / name for name in sorted(file_names)]
        images = [path for path in paths if is_image(path)]
        if images:
            files[Path(root)] = images
    return files


def parsed_name(path: Path, kinds: Mapping[str, str]) -> tuple[str, str] | None:
    """Case and kind of a file ``<case>_<ending>.nii.gz`` or ``<ending>.nii.gz``, or None.

    The case is empty where the name is the ending alone.
    """
    match = re.fullmatch(r"(?:(.+)[_-])?([a-z0-9]+)\.nii(\.gz)?", path.name, re.IGNORECASE)
    if match is None:
        return None
    case = match[1] or ""
    kind = kinds.get(match[2].lower())
    if kind is None:
        return None
    return case, kind


def ignored_files(
    files: Mapping[Path, Sequence[Path]], case_paths: Iterable[Path]
) -> tuple[Path, ...]:
    """Images that belong to no case."""
    excluded = set(case_paths)
    ignored: list[Path] = []
    for paths in files.values():
        ignored.extend(path for path in paths if path not in excluded)
    return tuple(ignored)
