"""Headers of DICOM images as records of slices: what is needed to sort, place, and name them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

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
    "EchoPlanarPulseSequence",
    "ProtocolName",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "SeriesNumber",
    "InstanceNumber",
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
            temporal position, b-value, acquisition number, and inversion time, in this order.
        instance: InstanceNumber; empty if not recorded.
        samples: values per pixel.
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
    instance: str = ""
    samples: int = 1


@dataclass(frozen=True)
class Header:
    """What one file says about its series, with its slices.

    Attributes:
        path: the file.
        series_uid, study_uid, frame_of_reference: UIDs. Files without the first one belong together
            if they agree in number and description.
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
    series_uid = _series_uid(dataset)
    has_image = bool(_value(dataset, "Rows") and _value(dataset, "Columns"))
    if has_image and series_uid in earlier and earlier[series_uid].samples:
        return replace(earlier[series_uid], path=path, slices=_slices(path, dataset))
    samples = 0
    slices: tuple[Slice, ...] = ()
    if has_image:
        samples = _samples(dataset)
        slices = _slices(path, dataset)
    identity = _identifying_words(dataset)
    times = _sequence_times(dataset, slices)

    def text(keyword: str) -> str:
        return _text(_value(dataset, keyword))

    return Header(
        path=path,
        series_uid=series_uid,
        study_uid=text("StudyInstanceUID"),
        frame_of_reference=text("FrameOfReferenceUID"),
        patient=text("PatientID"),
        date=text("StudyDate") or text("SeriesDate"),
        acquired=text("AcquisitionTime") or text("AcquisitionDateTime"),
        number=text("SeriesNumber"),
        modality=text("Modality"),
        description=without_identity(text("SeriesDescription"), identity),
        protocol=without_identity(text("ProtocolName"), identity),
        contrast_agent=without_identity(text("ContrastBolusAgent"), identity),
        image_type=_texts(_value(dataset, "ImageType")),
        scanning_sequence=_scanning_sequence(dataset),
        repetition_time=times.repetition,
        echo_time=times.echo,
        inversion_time=times.inversion,
        samples=samples,
        slices=slices,
    )


class _Times(NamedTuple):
    """Repetition, echo and inversion time in ms; nan where the file does not say."""

    repetition: float
    echo: float
    inversion: float


def _sequence_times(dataset: Dataset, slices: Sequence[Slice]) -> _Times:
    """Times of a series: classic files hold them as elements, enhanced ones in groups."""
    shared = _group(dataset, "SharedFunctionalGroupsSequence")
    timing = _group(shared, "MRTimingAndRelatedParametersSequence")
    modifier = _group(shared, "MRModifierSequence")
    repetition = _value(dataset, "RepetitionTime") or timing.get("RepetitionTime")
    inversion_times = modifier.get("InversionTimes") or [None]
    inversion = _value(dataset, "InversionTime") or inversion_times[0]
    echo = _number(_value(dataset, "EchoTime"))
    # Enhanced files have an echo time per frame: that of the first one stands for the series.
    if slices and math.isnan(echo):
        echo = slices[0].echo_time
    return _Times(_number(repetition), echo, _number(inversion))


def _value(dataset: Dataset, keyword: str) -> Any:
    """An element; None where its value breaks the rules of DICOM, as 3,5 for a number does.

    One such element does not make a file useless, and pydicom raises whatever its parser meets.
    """
    try:
        return dataset.get(keyword)
    except Exception:
        return None


def _series_uid(dataset: Dataset) -> str:
    """SeriesInstanceUID, or what files of one series have in common where it was removed."""
    series_uid = _text(_value(dataset, "SeriesInstanceUID"))
    if series_uid:
        return series_uid
    number = _text(_value(dataset, "SeriesNumber"))
    return f"{number}\n{_text(_value(dataset, 'SeriesDescription'))}"


def _samples(dataset: Dataset) -> int:
    return int(_value(dataset, "SamplesPerPixel") or 1)


def _scanning_sequence(dataset: Dataset) -> tuple[str, ...]:
    """ScanningSequence; enhanced files have elements of their own, of which one matters."""
    if _text(_value(dataset, "EchoPlanarPulseSequence")) == "YES":
        return ("EP",)
    return _texts(_value(dataset, "ScanningSequence"))


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
    """Parts of names and numbers that identify a patient or a person of the staff."""
    name_words: set[str] = set()
    for keyword in _IDENTIFYING:
        text = str(_value(dataset, keyword) or "")
        for word in _parts(text):
            if len(word) >= _SHORTEST_NAME:
                name_words.add(word)
    return frozenset(name_words)


def _parts(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _slices(path: Path, dataset: Dataset) -> tuple[Slice, ...]:
    frames = _value(dataset, "PerFrameFunctionalGroupsSequence")
    if not frames:
        frame_count = int(_value(dataset, "NumberOfFrames") or 1)
        # Several frames without functional groups do not say where they lie.
        return tuple(_classic_slice(path, dataset, index) for index in range(frame_count))
    shared = _group(dataset, "SharedFunctionalGroupsSequence")
    slices = []
    for index, frame in enumerate(frames):
        slices.append(_enhanced_slice(path, dataset, index, frame, shared))
    return tuple(slices)


def _classic_slice(path: Path, dataset: Dataset, index: int) -> Slice:
    def text(keyword: str) -> str:
        return _text(_value(dataset, keyword))

    return Slice(
        path=path,
        frame=index,
        sop_instance=text("SOPInstanceUID"),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        spacing=_numbers(_value(dataset, "PixelSpacing")),
        orientation=_numbers(_value(dataset, "ImageOrientationPatient")),
        position=_numbers(_value(dataset, "ImagePositionPatient")),
        image_type=_texts(_value(dataset, "ImageType")),
        echo_time=_number(_value(dataset, "EchoTime")),
        discriminators=(
            text("EchoNumbers"),
            text("TemporalPositionIdentifier"),
            text("DiffusionBValue"),
            text("AcquisitionNumber"),
            text("InversionTime"),
        ),
        instance=text("InstanceNumber"),
        samples=_samples(dataset),
    )


def _enhanced_slice(
    path: Path, dataset: Dataset, index: int, frame: Dataset, shared: Dataset
) -> Slice:
    def value(group: str, keyword: str) -> Any:
        return _value(_group(frame, group) or _group(shared, group), keyword)

    image_type = value("MRImageFrameTypeSequence", "FrameType") or _value(dataset, "ImageType")
    return Slice(
        path=path,
        frame=index,
        sop_instance=_text(_value(dataset, "SOPInstanceUID")),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        spacing=_numbers(value("PixelMeasuresSequence", "PixelSpacing")),
        orientation=_numbers(value("PlaneOrientationSequence", "ImageOrientationPatient")),
        position=_numbers(value("PlanePositionSequence", "ImagePositionPatient")),
        image_type=_texts(image_type),
        echo_time=_number(value("MREchoSequence", "EffectiveEchoTime")),
        discriminators=(
            "",
            _text(value("FrameContentSequence", "TemporalPositionIndex")),
            _text(value("MRDiffusionSequence", "DiffusionBValue")),
            _text(value("FrameContentSequence", "FrameAcquisitionNumber")),
            _text(value("MRModifierSequence", "InversionTimes")),
        ),
        instance=str(index + 1),
        samples=_samples(dataset),
    )


def _group(dataset: Dataset, keyword: str) -> Dataset:
    """First item of a sequence; an empty data set if there is none."""
    items = _value(dataset, keyword)
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
