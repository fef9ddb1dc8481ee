"""DICOM segmentation objects (DICOM PS3.3, A.51) that refer to the images they lie on."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom
import numpy as np
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.seg.enum import SegmentAlgorithmTypeValues
from pydicom.dataset import Dataset

from medmap import NOTICE, __version__
from medmap.dicom.codes import ARTIFICIAL_INTELLIGENCE, BRAIN, CATEGORY, type_of, type_of_region
from medmap.dicom.geometry import Stack
from medmap.dicom.series import Series
from medmap.dicom.sources import source_datasets, stable_uid
from medmap.errors import InternalError
from medmap.metrics import region_masks
from medmap.task import Label, Task

MANUFACTURER = "MedMAP contributors"
MODEL_NAME = "MedMAP"
LABELS_SERIES_NUMBER = 9101
REGIONS_SERIES_NUMBER = 9102
"""High numbers, so that they do not meet those of a scanner."""


def labels_object(labels: np.ndarray, task: Task, series: Series, bundle: str) -> Segmentation:
    """The label map as a segmentation object: one segment per label of the task.

    Args:
        labels: [columns, rows, slices] label values on the grid of the series.
        task: names, codes, and colors of the labels.
        series: the reference series.
        bundle: id of the bundle.

    Raises:
        InternalError: the labels do not lie on the grid of the series.
    """
    masks = [labels == label.value for label in task.labels]
    descriptions = []
    for number, label in enumerate(task.labels, 1):
        descriptions.append(_label_segment(number, label, series, bundle))
    title = "MedMAP labels"
    return _segmentation(masks, descriptions, series, bundle, LABELS_SERIES_NUMBER, title)


def regions_object(labels: np.ndarray, task: Task, series: Series, bundle: str) -> Segmentation:
    """The regions as a segmentation object. They overlap; measurements refer to them.

    Args and errors as ``labels_object``.
    """
    region_mask = region_masks(labels, task)
    masks = [region_mask[region.name] for region in task.regions]
    descriptions = []
    for number, region in enumerate(task.regions, 1):
        descriptions.append(
            SegmentDescription(
                segment_number=number,
                segment_label=region.title,
                segmented_property_category=CATEGORY,
                segmented_property_type=type_of_region(region, task),
                algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm(bundle),
                tracking_uid=tracking_uid(series, bundle, region.name),
                tracking_id=region.name,
                anatomic_regions=[BRAIN],
            )
        )
    return _segmentation(
        masks, descriptions, series, bundle, REGIONS_SERIES_NUMBER, "MedMAP regions"
    )


def algorithm(bundle: str) -> AlgorithmIdentificationSequence:
    """Who segmented: MedMAP with a bundle."""
    return AlgorithmIdentificationSequence(
        name=MODEL_NAME,
        family=ARTIFICIAL_INTELLIGENCE,
        version=f"{__version__} {bundle}"[:64],
    )


def tracking_uid(series: Series, bundle: str, name: str) -> str:
    """UID under which a finding is known in all objects of one result."""
    return stable_uid(series.header.series_uid, bundle, name)


def _label_segment(number: int, label: Label, series: Series, bundle: str) -> SegmentDescription:
    return SegmentDescription(
        segment_number=number,
        segment_label=label.title,
        segmented_property_category=CATEGORY,
        segmented_property_type=type_of(label),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm(bundle),
        tracking_uid=tracking_uid(series, bundle, f"label {label.name}"),
        tracking_id=label.name,
        anatomic_regions=[BRAIN],
        display_color=highdicom.color.CIELabColor.from_rgb(*label.color),
    )


def _segmentation(
    masks: Sequence[np.ndarray],
    descriptions: Sequence[SegmentDescription],
    series: Series,
    bundle: str,
    series_number: int,
    description: str,
) -> Segmentation:
    sources = source_datasets(series)
    pixels = _in_source_order(np.stack(masks, axis=-1), series, sources)
    content = np.packbits(pixels).tobytes().hex()
    return Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=stable_uid(series.header.series_uid, bundle, description),
        series_number=series_number,
        sop_instance_uid=stable_uid(series.header.series_uid, bundle, description, content),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=__version__,
        device_serial_number=bundle,
        content_label="SEGMENTATION",
        content_description=NOTICE[:64],
        series_description=description,
        # A result without tumor is a result: its frames are kept, and are empty.
        omit_empty_frames=bool(pixels.any()),
    )


def _in_source_order(masks: np.ndarray, series: Series, sources: Sequence[Dataset]) -> np.ndarray:
    """[frames, rows, columns, segments] uint8 in the order of the source images.

    The slices of a classic series are its files. The frames of an enhanced file have an order of
    their own.
    """
    if series.stack is None or masks.shape[:3] != series.stack.shape:
        raise InternalError(
            f"Labels of {masks.shape[:3]} do not lie on series {series.key}.", "Please report this."
        )
    # Images are stored slice by slice, and rows before columns.
    on_images = masks.transpose(2, 1, 0, 3).astype(np.uint8)
    by_slice = _on_images(on_images, series.stack)
    if len(sources) > 1:
        return by_slice
    frame_count = int(sources[0].get("NumberOfFrames") or 1)
    ordered = np.zeros((frame_count, *by_slice.shape[1:]), np.uint8)
    for number, item in enumerate(series.slices):
        ordered[item.frame] = by_slice[number]
    return ordered


def _on_images(masks: np.ndarray, stack: Stack) -> np.ndarray:
    """[slices, rows, columns, segments] as the images have them: tilted ones by nearest pixel."""
    if not stack.is_tilted:
        return masks
    first = stack.slices[0]
    shape = (len(masks), first.rows, first.columns, masks.shape[-1])
    on_images = np.empty(shape, np.uint8)
    # Labels have no values in between: the nearest pixel, no interpolation.
    nearest_shifts = np.rint(stack.shifts).astype(int)
    for number, (column, row) in enumerate(nearest_shifts):
        rows = slice(row, row + first.rows)
        columns = slice(column, column + first.columns)
        on_images[number] = masks[number, rows, columns]
    return on_images
