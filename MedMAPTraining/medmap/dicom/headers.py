"""Headers of DICOM images as records of slices: what is needed to sort, place, and name them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

TAGS = [
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyDate",
    "SeriesDate",
    "Modality",
    "SeriesDescription",
    "PatientName",
    "PatientID",
    "OtherPatientNames",
    "PatientBirthDate",
    "ReferringPhysicianName",
    "OperatorsName",
    "ContrastBolusAgent",
    "ScanningSequence",
    "SequenceVariant",
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "EchoNumbers",
    "ProtocolName",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SamplesPerPixel",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "RescaleSlope",
    "RescaleIntercept",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
"""Elements that are read from each file; the pixels are not among them."""


@dataclass(frozen=True)
class Slice:
    """One image in space: a file of its own, or a frame of an enhanced (multi-frame) one.

    Attributes:
        path: the file.
        frame: index within the file.
        sop_instance: UID of the file's image.
        rows, columns: size in pixels.
        spacing: distance in mm between rows, and between columns.
        orientation: six direction cosines, of a row and of a column (LPS); empty if not recorded.
        position: center of the first pixel in mm (LPS); empty if not recorded.
        image_type: DICOM ImageType.
        echo_time: in ms; NaN if not recorded.
        discriminators: other elements that distinguish images at one place, such as echo number,
            temporal position, b-value, and acquisition number, in this order.
    """

    path: Path
    frame: int
    sop_instance: str
    rows: int
    columns: int
    spacing: tuple[float, ...]
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    image_type: tuple[str, ...]
    echo_time: float
    discriminators: tuple[str, ...]


@dataclass(frozen=True)
class Header:
    """What one file says about its series, with its slices.

    Attributes:
        path: the file.
        series_uid, study_uid, frame_of_reference: UIDs.
        patient: PatientID; never displayed.
        date: StudyDate, YYYYMMDD; never displayed.
        acquired: AcquisitionTime or AcquisitionDateTime; never displayed.
        number: SeriesNumber; empty if not recorded.
        modality: ``MR``, ``CT``, ``SR``.
        description, protocol, contrast_agent: as DICOM has them, without words that identify.
        image_type: DICOM ImageType.
        scanning_sequence: ``SE``, ``IR``, ``GR``, ``EP``.
        repetition_time, echo_time, inversion_time: in ms; NaN if not recorded.
        samples: values per pixel; 0 where there is no image.
        slices: the images; empty where the file holds none.
    """

    path: Path
    series_uid: str
    study_uid: str
    frame_of_reference: str
    patient: str
    date: str
    acquired: str
    number: str
    modality: str
    description: str
    protocol: str
    contrast_agent: str
    image_type: tuple[str, ...]
    scanning_sequence: tuple[str, ...]
    repetition_time: float
    echo_time: float
    inversion_time: float
    samples: int
    slices: tuple[Slice, ...] = field(default=())


def header_of(path: Path, dataset: Dataset, earlier: Mapping[str, Header]) -> Header:
    """Header of a file from its data set, which need not hold the pixels.

    Args:
        path: the file.
        dataset: its elements.
        earlier: header of an earlier file by series UID. What belongs to a series is taken from it,
            for parsing is most of the time that a study takes.
    """
    series_uid = _text(dataset.get("SeriesInstanceUID"))
    if series_uid in earlier and earlier[series_uid].samples and dataset.get("Rows"):
        return replace(earlier[series_uid], path=path, slices=_slices(path, dataset))
    samples = 0
    if dataset.get("Rows") and dataset.get("Columns"):
        samples = int(dataset.get("SamplesPerPixel") or 1)
    slices: tuple[Slice, ...] = ()
    if samples:
        slices = _slices(path, dataset)
    identity = _identifying_words(dataset)
    shared = _group(dataset, "SharedFunctionalGroupsSequence")
    timing = _group(shared, "MRTimingAndRelatedParametersSequence")
    modifier = _group(shared, "MRModifierSequence")
    inversion_times = modifier.get("InversionTimes") or [None]
    echo_time = _number(dataset.get("EchoTime"))
    if slices and echo_time != echo_time:
        echo_time = slices[0].echo_time
    return Header(
        path=path,
        series_uid=series_uid,
        study_uid=_text(dataset.get("StudyInstanceUID")),
        frame_of_reference=_text(dataset.get("FrameOfReferenceUID")),
        patient=_text(dataset.get("PatientID")),
        date=_text(dataset.get("StudyDate")) or _text(dataset.get("SeriesDate")),
        acquired=_text(dataset.get("AcquisitionTime") or dataset.get("AcquisitionDateTime")),
        number=_text(dataset.get("SeriesNumber")),
        modality=_text(dataset.get("Modality")),
        description=without_identity(_text(dataset.get("SeriesDescription")), identity),
        protocol=without_identity(_text(dataset.get("ProtocolName")), identity),
        contrast_agent=without_identity(_text(dataset.get("ContrastBolusAgent")), identity),
        image_type=_texts(dataset.get("ImageType")),
        scanning_sequence=_texts(dataset.get("ScanningSequence")),
        repetition_time=_number(dataset.get("RepetitionTime") or timing.get("RepetitionTime")),
        echo_time=echo_time,
        inversion_time=_number(dataset.get("InversionTime") or inversion_times[0]),
        samples=samples,
        slices=slices,
    )


def without_identity(text: str, identity: frozenset[str]) -> str:
    """A text in which words that identify someone are replaced by an ellipsis.

    Technicians write names into descriptions, and descriptions go into reports.
    """
    visible_words = []
    for word in text.split():
        if identity.isdisjoint(_parts(word)):
            visible_words.append(word)
        else:
            visible_words.append("…")
    return " ".join(visible_words)


_IDENTIFYING = (
    "PatientName",
    "PatientID",
    "OtherPatientNames",
    "PatientBirthDate",
    "ReferringPhysicianName",
    "OperatorsName",
)
_SHORTEST_NAME = 3
"""Shorter parts of names occur in descriptions by chance (``T1``, ``AX``)."""


def _identifying_words(dataset: Dataset) -> frozenset[str]:
    name_words: set[str] = set()
    for keyword in _IDENTIFYING:
        text = str(dataset.get(keyword) or "")
        name_words.update(word for word in _parts(text) if len(word) >= _SHORTEST_NAME)
    return frozenset(name_words)


def _parts(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _slices(path: Path, dataset: Dataset) -> tuple[Slice, ...]:
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        frame_count = int(dataset.get("NumberOfFrames") or 1)
        # Several frames without functional groups do not say where they lie.
        return tuple(_classic_slice(path, dataset, index) for index in range(frame_count))
    shared = _group(dataset, "SharedFunctionalGroupsSequence")
    slices = []
    for index, frame in enumerate(frames):
        slices.append(_enhanced_slice(path, dataset, index, frame, shared))
    return tuple(slices)


def _classic_slice(path: Path, dataset: Dataset, index: int) -> Slice:
    return Slice(
        path=path,
        frame=index,
        sop_instance=_text(dataset.get("SOPInstanceUID")),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        spacing=_numbers(dataset.get("PixelSpacing")),
        orientation=_numbers(dataset.get("ImageOrientationPatient")),
        position=_numbers(dataset.get("ImagePositionPatient")),
        image_type=_texts(dataset.get("ImageType")),
        echo_time=_number(dataset.get("EchoTime")),
        discriminators=(
            _text(dataset.get("EchoNumbers")),
            _text(dataset.get("TemporalPositionIdentifier")),
            _text(dataset.get("DiffusionBValue")),
            _text(dataset.get("AcquisitionNumber")),
        ),
    )


def _enhanced_slice(
    path: Path, dataset: Dataset, index: int, frame: Dataset, shared: Dataset
) -> Slice:
    def group(keyword: str) -> Dataset:
        return _group(frame, keyword) or _group(shared, keyword)

    content = group("FrameContentSequence")
    image_type = group("MRImageFrameTypeSequence").get("FrameType") or dataset.get("ImageType")
    return Slice(
        path=path,
        frame=index,
        sop_instance=_text(dataset.get("SOPInstanceUID")),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        spacing=_numbers(group("PixelMeasuresSequence").get("PixelSpacing")),
        orientation=_numbers(group("PlaneOrientationSequence").get("ImageOrientationPatient")),
        position=_numbers(group("PlanePositionSequence").get("ImagePositionPatient")),
        image_type=_texts(image_type),
        echo_time=_number(group("MREchoSequence").get("EffectiveEchoTime")),
        discriminators=(
            "",
            _text(content.get("TemporalPositionIndex")),
            _text(group("MRDiffusionSequence").get("DiffusionBValue")),
            _text(content.get("FrameAcquisitionNumber")),
        ),
    )


def _group(dataset: Dataset, keyword: str) -> Dataset:
    """First item of a sequence; an empty data set if there is none."""
    items = dataset.get(keyword)
    if not items:
        return Dataset()
    return items[0]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).strip()


def _texts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value.strip(),)
    return tuple(str(part).strip() for part in value)


def _number(value: Any) -> float:
    """A number; NaN if it is missing or none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _numbers(value: Any) -> tuple[float, ...]:
    if value is None:
        return ()
    try:
        return tuple(float(part) for part in value)
    except (TypeError, ValueError):
        return ()
