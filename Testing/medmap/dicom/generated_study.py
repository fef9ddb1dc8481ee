"""Writes DICOM series of a synthetic brain, as scanners write them. No patient data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

from medmap.volume import Grid

NAME, IDENTIFIER = "Mustermann^Erika", "PID4711"
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Scan:
    """One series to write.

    ``array`` is [columns, rows, slices]; ``affine`` maps its indices to world RAS in mm.
    """

    number: int
    description: str
    array: np.ndarray
    affine: np.ndarray
    timing: tuple[float, float, float | None] = (500.0, 12.0, None)
    sequence: tuple[str, ...] = ("SE",)
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "M", "ND")
    date: str = "20240102"
    patient: tuple[str, str] = (NAME, IDENTIFIER)
    study_uid: str = "1.2.826.0.1.3680043.8.498.1"
    frame_of_reference: str = "1.2.826.0.1.3680043.8.498.2"
    series_uid: str = field(default_factory=generate_uid)
    extra: dict = field(default_factory=dict)


def grid_affine(shape, spacing, center=(0.0, 0.0, 0.0), degrees=(0.0, 0.0), plane="axial"):
    """Affine of a grid about a center, turned about two axes, with columns, rows and slices."""
    axes = {
        "axial": np.array([[-1, 0, 0], [0, -1, 0], [0, 0, 1]], float),
        "sagittal": np.array([[0, -1, 0], [0, 0, -1], [-1, 0, 0]], float),
        "coronal": np.array([[-1, 0, 0], [0, 0, -1], [0, 1, 0]], float),
    }[plane]
    a, b = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ axes.T @ np.diag(spacing)
    affine[:3, 3] = np.array(center) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def positions(scan: Scan) -> list[np.ndarray]:
    """Position of each slice's first pixel in LPS, mm."""
    lps = RAS_TO_LPS @ scan.affine
    return [(lps @ [0, 0, k, 1])[:3] for k in range(scan.array.shape[2])]


def orientation(scan: Scan) -> list[float]:
    lps = RAS_TO_LPS @ scan.affine
    columns = lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)
    return [float(value) for value in (*columns[:, 0], *columns[:, 1])]


def write_series(folder: Path, scan: Scan, ending: str = ".dcm") -> list[Path]:
    """Write one file per slice; returns the paths in the order of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, position in enumerate(positions(scan)):
        dataset = _common(scan, MRImageStorage)
        dataset.InstanceNumber = k + 1
        dataset.ImagePositionPatient = [round(float(value), 6) for value in position]
        dataset.ImageOrientationPatient = orientation(scan)
        spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
        dataset.PixelSpacing = [float(spacing[1]), float(spacing[0])]
        dataset.SliceThickness = float(spacing[2])
        stored, slope, intercept = _stored(scan.array[:, :, k].T)
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.PixelData = stored.tobytes()
        # Private elements with a name: nothing of them may leave the file.
        block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
        block.add_new(0x10, "LO", NAME)
        path = folder / f"IM{k + 1:04d}{ending}"
        _save(dataset, path)
        paths.append(path)
    return paths


def write_enhanced(path: Path, scan: Scan) -> Path:
    """Write an enhanced (multi-frame) file, its frames in reversed order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = _common(scan, EnhancedMRImageStorage)
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    measures = Dataset()
    measures.PixelSpacing = [float(spacing[1]), float(spacing[0])]
    measures.SliceThickness = float(spacing[2])
    plane = Dataset()
    plane.ImageOrientationPatient = orientation(scan)
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    timing = Dataset()
    timing.RepetitionTime = scan.timing[0]
    shared.MRTimingAndRelatedParametersSequence = Sequence([timing])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames, stored = [], []
    for k in reversed(range(scan.array.shape[2])):
        frame = Dataset()
        place = Dataset()
        place.ImagePositionPatient = [round(float(value), 6) for value in positions(scan)[k]]
        frame.PlanePositionSequence = Sequence([place])
        echo = Dataset()
        echo.EffectiveEchoTime = scan.timing[1]
        frame.MREchoSequence = Sequence([echo])
        values, slope, intercept = _stored(scan.array[:, :, k].T)
        transformation = Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, intercept
        transformation.RescaleType = "US"
        frame.PixelValueTransformationSequence = Sequence([transformation])
        content = Dataset()
        content.FrameAcquisitionNumber = 1
        content.StackID = "1"
        content.InStackPositionNumber = k + 1
        frame.FrameContentSequence = Sequence([content])
        frames.append(frame)
        stored.append(values)
    dataset.NumberOfFrames = len(frames)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    dataset.PixelData = np.stack(stored).tobytes()
    del dataset.RepetitionTime, dataset.EchoTime
    dataset.pop("InversionTime", None)
    _save(dataset, path)
    return path


def _common(scan: Scan, sop_class: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = scan.patient
    dataset.PatientBirthDate, dataset.PatientSex = "19400304", "F"
    dataset.StudyInstanceUID = scan.study_uid
    dataset.StudyDate, dataset.StudyTime = scan.date, "101500"
    dataset.StudyID, dataset.AccessionNumber = "1", "A1"
    dataset.ReferringPhysicianName = "Arzt^Anton"
    dataset.SeriesInstanceUID = scan.series_uid
    dataset.SeriesNumber = scan.number
    dataset.SeriesDescription = scan.description
    dataset.Modality, dataset.Manufacturer = "MR", "Synthetic"
    dataset.FrameOfReferenceUID = scan.frame_of_reference
    dataset.PositionReferenceIndicator = ""
    dataset.ImageType = list(scan.image_type)
    dataset.ScanningSequence = list(scan.sequence)
    dataset.RepetitionTime, dataset.EchoTime = scan.timing[:2]
    if scan.timing[2] is not None:
        dataset.InversionTime = scan.timing[2]
    dataset.Columns, dataset.Rows = scan.array.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    for keyword, value in scan.extra.items():
        setattr(dataset, keyword, value)
    return dataset


def _stored(image: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Integers of 12 bits with the scaling that gives the image back."""
    slope = max(float(image.max()), 1e-6) / 4000.0
    return np.rint(image / slope).astype(np.uint16), float(f"{slope:.10g}"), 0.0


def _save(dataset: FileDataset, path: Path) -> None:
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


def study_scans(case, spacing: float) -> list[Scan]:
    """Four series on grids of their own, a copy, and a localizer, of a synthetic case.

    Args:
        case: a ``medmap.phantom`` case.
        spacing: of the case, in mm; the in-plane size of the series.
    """
    import torch

    from medmap.resampling import resample_linear

    source = Grid(tuple(case.images["t1"].shape), np.asarray(case.affine, float))
    center = source.corners().mean(axis=0)
    extent = np.array(source.shape) * spacing

    def sampled(name, number, description, timing, sequence, thickness, degrees, plane, **more):
        order = {"axial": (0, 1, 2), "sagittal": (1, 2, 0), "coronal": (0, 2, 1)}[plane]
        sizes = [int(np.ceil(extent[axis] / spacing)) + 4 for axis in order]
        sizes[2] = int(np.ceil(extent[order[2]] / thickness)) + 2
        steps = (spacing, spacing, thickness)
        affine = grid_affine(sizes, steps, center, degrees, plane)
        image = torch.as_tensor(case.images[name], dtype=torch.float32)[None]
        array = resample_linear(image, source, Grid(tuple(sizes), affine))[0].numpy()
        # Scanners store positive numbers.
        array = np.clip(array - min(float(array.min()), 0.0), 0.0, None)
        return Scan(number, description, array, affine, timing, sequence, **more)

    inversion, spin = ("SE", "IR"), ("SE",)
    t1 = sampled("t1", 2, "t1_se_tra", (500, 12, None), spin, 5.0, (8, 0), "axial")
    flair = sampled(
        "flair", 4, "t2_tirm_tra_dark-fluid", (9000, 90, 2500), inversion, 4.0, (12, -6), "axial"
    )
    t2 = sampled("t2", 5, "T2W TSE cor", (4000, 100, None), spin, 4.0, (0, 5), "coronal")
    t1ce = sampled(
        "t1ce",
        7,
        "t1_se_tra KM",
        (500, 12, None),
        spin,
        spacing,
        (0, 0),
        "axial",
        extra={"ContrastBolusAgent": "Gadovist"},
    )
    copy = Scan(**(vars(t1ce) | {"number": 9, "series_uid": generate_uid()}))
    localizer = sampled("t2", 1, "localizer", (8, 3, None), ("GR",), 40.0, (0, 0), "sagittal")
    return [localizer, t1, flair, t2, t1ce, copy]


def write_study(folder: Path, scans: list[Scan]) -> Path:
    """Write series side by side in folders that carry a patient's name."""
    root = folder / "Mustermann_Erika_1940-03-04"
    for scan in scans:
        write_series(root / f"S{scan.number:03d}", scan)
    return root
