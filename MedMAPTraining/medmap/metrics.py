"""How well a segmentation agrees with a reference: Dice, sensitivity, precision, HD95 and volumes.

Everything here is numpy, except ``hd95``, which imports SciPy when it is called.

What happens when a mask is empty, in one place (P prediction, R reference):

| Masks         | Dice | Sensitivity | Precision | HD95 |
|---------------|------|-------------|-----------|------|
| P and R empty | 1.0  | 1.0         | 1.0       | 0.0  |
| only P empty  | 0.0  | 0.0         | nan       | nan  |
| only R empty  | 0.0  | nan         | 0.0       | nan  |

``nan`` means "not defined", never a score: whoever averages decides about a penalty (published code
uses 0, 1, 373.13 or leaves the case out) and says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medmap.boxes import bounding_box
from medmap.errors import InputDataError
from medmap.task import Task
from medmap.volume import Grid

EMPTY_MASK_RULE = "Dice: both masks empty 1, one empty 0. HD95: both empty 0, one empty undefined."
"""The table above in words, for what people read beside scores."""


@dataclass(frozen=True)
class RegionScore:
    """Agreement of prediction and reference for one region.

    Attributes:
        dice: 0..1, no unit.
        sensitivity: share of the reference that was found, 0..1, or nan.
        precision: share of the prediction that is right, 0..1, or nan.
        hd95_mm: 95 % Hausdorff distance in mm, or nan.
        prediction_ml: volume of the prediction in ml.
        reference_ml: volume of the reference in ml.
    """

    dice: float
    sensitivity: float
    precision: float
    hd95_mm: float
    prediction_ml: float
    reference_ml: float


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice's coefficient 2|P and R| / (|P| + |R|) of two boolean arrays (Dice, Ecology 26, 1945).

    Both empty: 1.0. One empty: 0.0. Raises InputDataError when the shapes differ.
    """
    prediction, reference = _masks(prediction, reference)
    overlap = _count(prediction & reference)
    predicted = _count(prediction)
    actual = _count(reference)
    return dice_of_counts(overlap, predicted, actual)


def dice_of_counts(overlap: int, prediction: int, reference: int) -> float:
    """Dice's coefficient from numbers of voxels, by the rule for empty masks above."""
    total = prediction + reference
    if total == 0:
        return 1.0
    return 2.0 * overlap / total


def sensitivity(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Share of the reference that the prediction found, |P and R| / |R| (also called recall).

    Both empty: 1.0. Only the reference empty: nan. Raises InputDataError when the shapes differ.
    """
    prediction, reference = _masks(prediction, reference)
    return _share(prediction & reference, of=reference, other=prediction)


def precision(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Share of the prediction that the reference has, |P and R| / |P| (positive predictive value).

    Both empty: 1.0. Only the prediction empty: nan. Raises InputDataError when the shapes differ.
    """
    prediction, reference = _masks(prediction, reference)
    return _share(prediction & reference, of=prediction, other=reference)


def hd95(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | np.ndarray
) -> float:
    """Symmetric 95 % Hausdorff distance in mm between the surfaces of two boolean arrays [I, J, K].

    The surface is every voxel of the mask with a face neighbor outside it; beyond the array counts
    as outside. From each surface voxel the Euclidean distance between voxel centers to the nearest
    surface voxel of the other mask is taken; the result is the larger of the two directed 95th
    percentiles (linear interpolation). This is MONAI's
    ``compute_hausdorff_distance(percentile=95)``; medpy's ``hd95`` takes one percentile of both
    directions pooled, and BraTS weights by surface area since 2023
    (``medmap.evaluation.surfaces``): both give other numbers.

    Args:
        prediction: [I, J, K] bool.
        reference: [I, J, K] bool.
        spacing: [3] voxel size in mm along i, j, k.

    Returns:
        mm; 0.0 when both masks are empty, nan when one is.

    Raises:
        InputDataError: the shapes differ.
    """
    from scipy.spatial import cKDTree  # here: importing medmap.metrics needs numpy only

    prediction, reference = _masks(prediction, reference)
    box = bounding_box(prediction | reference)
    if box is None:
        return 0.0
    size = np.asarray(spacing, float)
    points = np.argwhere(_surface(prediction[box])) * size
    reference_points = np.argwhere(_surface(reference[box])) * size
    if not len(points) or not len(reference_points):
        return float("nan")
    # A tree of surface points instead of a distance transform: its cost does not grow with
    # the box of a far outlier.
    to_reference = cKDTree(reference_points).query(points)[0]
    to_prediction = cKDTree(points).query(reference_points)[0]
    return float(max(np.percentile(to_reference, 95), np.percentile(to_prediction, 95)))


def label_masks(labels: np.ndarray, task: Task) -> dict[str, np.ndarray]:
    """One boolean array per label name, from the task's own values.

    Label files of other releases are brought to these values when they are read
    (``medmap.task.conventions``).

    Args:
        labels: integer array of any shape; 0 is background.
        task: says which values mean what.

    Raises:
        InputDataError: the array holds a value that no label of the task uses; the message names
            the values.
    """
    labels = np.asarray(labels)
    values = {}
    used_values = {0}
    for label in task.labels:
        values[label.name] = (label.value, *label.alternative_values)
        used_values.update(values[label.name])
    known_values = sorted(used_values)
    # Most of a label map is background, which is looked at once.
    box = bounding_box(labels != 0) or (slice(0, 0),) * labels.ndim
    inner = labels[box]
    unknown = ~np.isin(inner, known_values)
    if unknown.any():
        listed = ", ".join(f"{value:g}" for value in np.unique(inner[unknown])[:8])
        expected = ", ".join(str(value) for value in known_values)
        raise InputDataError(
            f"The segmentation holds the label values {listed}, which the task {task.name} does "
            "not know.",
            f"Relabel it to use only {expected}.",
        )
    masks = {}
    for name, group in values.items():
        mask = np.zeros(labels.shape, bool)
        mask[box] = np.isin(inner, group)
        masks[name] = mask
    return masks


def region_masks(labels: np.ndarray, task: Task) -> dict[str, np.ndarray]:
    """One boolean array per region name, the union of the region's labels.

    Arguments and errors are those of ``label_masks``.
    """
    masks = label_masks(labels, task)
    regions = {}
    for region in task.regions:
        members = [masks[name] for name in region.labels]
        regions[region.name] = np.logical_or.reduce(members)
    return regions


def region_volumes_ml(labels: np.ndarray, task: Task, voxel_ml: float) -> dict[str, float]:
    """Volume of every region in ml: its voxels times ``voxel_ml``; errors as ``label_masks``."""
    masks = region_masks(labels, task)
    return {name: _count(mask) * float(voxel_ml) for name, mask in masks.items()}


def compare(
    prediction_labels: np.ndarray, reference_labels: np.ndarray, task: Task, grid: Grid
) -> dict[str, RegionScore]:
    """Every score of every region of the task.

    Args:
        prediction_labels: [I, J, K] integer label values as files hold them.
        reference_labels: [I, J, K] integer label values on the same grid.
        task: labels and regions.
        grid: where the voxels lie; gives spacing and voxel volume.

    Raises:
        InputDataError: a shape differs from the grid's, or a label value is unknown.
    """
    prediction = np.asarray(prediction_labels)
    reference = np.asarray(reference_labels)
    _require_shape("prediction", prediction, grid)
    _require_shape("reference", reference, grid)
    # No score depends on voxels that are background in both.
    occupied = (prediction != 0) | (reference != 0)
    box = bounding_box(occupied)
    if box is None:
        box = (slice(0, 0),) * prediction.ndim
    masks = region_masks(prediction[box], task)
    reference_masks = region_masks(reference[box], task)
    scores = {}
    for name, mask in masks.items():
        scores[name] = _score(mask, reference_masks[name], grid)
    return scores


def _score(prediction: np.ndarray, reference: np.ndarray, grid: Grid) -> RegionScore:
    return RegionScore(
        dice=dice(prediction, reference),
        sensitivity=sensitivity(prediction, reference),
        precision=precision(prediction, reference),
        hd95_mm=hd95(prediction, reference, grid.spacing),
        prediction_ml=_count(prediction) * grid.voxel_ml,
        reference_ml=_count(reference) * grid.voxel_ml,
    )


def _masks(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    prediction = np.asarray(prediction, bool)
    reference = np.asarray(reference, bool)
    if prediction.shape != reference.shape:
        raise InputDataError(
            f"The prediction has the shape {prediction.shape}, the reference {reference.shape}.",
            "Resample both segmentations to one grid first.",
        )
    return prediction, reference


def _share(common: np.ndarray, of: np.ndarray, other: np.ndarray) -> float:
    total = _count(of)
    if total:
        return _count(common) / total
    if other.any():
        return float("nan")
    return 1.0


def _require_shape(title: str, array: np.ndarray, grid: Grid) -> None:
    if array.shape != tuple(grid.shape):
        raise InputDataError(
            f"The {title} has the shape {array.shape}, but the grid has {tuple(grid.shape)}.",
            "Resample both segmentations to one grid first.",
        )


def _surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a face neighbor outside it."""
    padded = np.pad(mask, 1)
    inside = mask.copy()
    for axis in range(mask.ndim):
        # The two neighbors of every voxel along an axis, as windows of the padded mask.
        size = mask.shape[axis]
        for start in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(start, start + size)
            inside &= padded[tuple(window)]
    return mask & ~inside


def _count(mask: np.ndarray) -> int:
    """A plain int: with NumPy's own type every score would be a scalar that JSON does not take."""
    return int(np.count_nonzero(mask))
