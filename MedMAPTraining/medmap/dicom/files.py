"""Find the DICOM files of a folder, whatever they are called, and read their headers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import MediaStorageDirectoryStorage

from medmap.dicom import GROUP_8
from medmap.dicom.headers import TAGS, Header, header_of

_PREAMBLE = 128


@dataclass(frozen=True)
class FolderContent:
    """What lies in a folder.

    Attributes:
        headers: of the DICOM files, in the order of their paths.
        damaged: number of DICOM files that cannot be read.
        missing: number of files that a DICOMDIR lists and that are not there.
    """

    headers: tuple[Header, ...]
    damaged: int
    missing: int


def read_folder(folder: Path) -> FolderContent:
    """Read the headers of all DICOM files in and below a folder.

    Names and endings do not matter. Files that are no DICOM are passed over.
    """
    headers: list[Header] = []
    header_by_series: dict[str, Header] = {}
    damaged = 0
    missing = 0
    for path in _files(folder):
        if not _is_dicom(path):
            continue
        try:
            dataset = pydicom.dcmread(path, force=True, specific_tags=[*TAGS, "FileSetID"])
            if _is_directory(path, dataset):
                missing += _missing_references(path)
                continue
            if "SOPClassUID" not in dataset and "Rows" not in dataset:
                damaged += 1
                continue
            header = header_of(path, dataset, header_by_series)
            header_by_series.setdefault(header.series_uid, header)
            headers.append(header)
        # pydicom raises whatever its parser meets in a damaged file.
        except Exception:
            damaged += 1
    return FolderContent(tuple(headers), damaged, missing)


def _files(folder: Path) -> Iterator[Path]:
    """Regular files below a folder, sorted; links are followed, circles are not."""
    visited = set()
    for directory, subfolders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        subfolders.sort()
        for name in sorted(names):
            path = Path(directory, name)
            # macOS leaves ._NAME files on foreign disks, which repeat the name of a DICOM file.
            if not name.startswith(".") and path.is_file():
                yield path


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            start = stream.read(_PREAMBLE + 4)
    except OSError:
        return False
    if start[_PREAMBLE:] == b"DICM":
        return True
    if start[:2] not in GROUP_8 or len(start) <= _PREAMBLE:
        return False
    try:
        dataset = pydicom.dcmread(path, force=True, specific_tags=["SOPClassUID"])
    except Exception:
        return False
    return "SOPClassUID" in dataset


def _is_directory(path: Path, dataset: Dataset) -> bool:
    """Whether a file is the directory of a disc, whatever it is called."""
    if path.name.upper() == "DICOMDIR":
        return True
    file_meta = getattr(dataset, "file_meta", {})
    return file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage


def _missing_references(path: Path) -> int:
    """Number of files that a DICOMDIR lists and that do not lie where it says."""
    records = pydicom.dcmread(path).get("DirectoryRecordSequence") or []
    missing = 0
    for record in records:
        parts = record.get("ReferencedFileID")
        if not parts:
            continue
        if isinstance(parts, str):
            parts = [parts]
        reference = path.parent.joinpath(*parts)
        # Discs that were copied may have their names in lower case.
        lower_case = path.parent.joinpath(*(part.lower() for part in parts))
        if not reference.exists() and not lower_case.exists():
            missing += 1
    return missing
