"""The images that a result refers to, as their files have them."""

from __future__ import annotations

import hashlib

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medmap.dicom.series import Series

_MAY_BE_MISSING = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PositionReferenceIndicator",
)
"""Elements of type 2: they may be empty, but have to be there."""


def source_datasets(series: Series) -> list[Dataset]:
    """Data sets of a series' files without pixels, in the order of its slices."""
    datasets: list[Dataset] = []
    for path in dict.fromkeys(item.path for item in series.slices):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        for keyword in _MAY_BE_MISSING:
            if keyword not in dataset:
                setattr(dataset, keyword, "")
        datasets.append(dataset)
    return datasets


def stable_uid(*parts: str) -> str:
    """A UID that the same parts always give: a repeated result replaces itself in an archive."""
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return str(generate_uid(entropy_srcs=[digest]))
