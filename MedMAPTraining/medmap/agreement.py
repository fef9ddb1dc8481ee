"""Agreement of two segmentations of one patient, slice by slice.

numpy only, so that a review needs no PyTorch; HD95 imports SciPy when it is called. Scores are
those of ``medmap.metrics``, with its rule for empty masks. Within one slice an empty pair has no
meaning, so Dice of a slice without the region in either is nan, not 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medmap.boxes import bounding_box
from medmap.errors import InputDataError, UsageError
from medmap.metrics import RegionScore, compare, region_masks
from medmap.task import Task
from medmap.volume import Grid

AGREEMENT = 1
OURS_ONLY = 2
REFERENCE_ONLY = 3
"""Values of an error map; 0 is where neither has the region."""

EMPTY_RULE = (
    "Both empty: Dice, sensitivity and precision are 1 and HD95 is 0. One empty: Dice is 0; HD95 "
    "and whatever would divide by zero are not defined. In the slice table, a slice without the "
    "region in either is not scored."
)
"""The empty-versus-empty rule of ``medmap.metrics``, in words for the panel."""

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Plane -> the world axis (R, A, S) that its slices are stacked along."""


@dataclass(frozen=True)
class SliceScores:
    """Agreement slice by slice along one array axis.

    Attributes:
        axis: the array axis that the slices are stacked along.
        position_mm: [n] world coordinate of each slice's center along the slice normal.
        dice: region -> [n] float, nan where neither has the region.
        wrong_voxels: region -> [n] int, voxels that only one of the two has.
    """

    axis: int
    position_mm: np.ndarray
    dice: dict[str, np.ndarray]
    wrong_voxels: dict[str, np.ndarray]


@dataclass(frozen=True)
class Review:
    """Everything that a review of one pair shows.

    Attributes:
        labels: [I, J, K] uint8, ours, values as files hold them.
        reference: [I, J, K] uint8, the reference's, on the same grid.
        grid: that grid.
        task: labels and regions.
        scores: one entry for each region that the reference covers.
        slices: agreement slice by slice, for the same regions.
    """

    labels: np.ndarray
    reference: np.ndarray
    grid: Grid
    task: Task
    scores: dict[str, RegionScore] = field(default_factory=dict)
    slices: SliceScores | None = None


def review(
    labels: np.ndarray,
    reference: np.ndarray,
    task: Task,
    grid: Grid,
    *,
    regions: Sequence[str] | None = None,
    plane: str = "axial",
) -> Review:
    """Compare a segmentation with a reference on one grid.

    Args:
        labels: [I, J, K] integer label values, ours.
        reference: [I, J, K] integer label values, the reference's.
        task: labels and regions.
        grid: where the voxels lie.
        regions: regions that the reference covers; None for all of the task.
        plane: ``axial``, ``coronal`` or ``sagittal``: how slices are stacked.

    Raises:
        InputDataError: a shape differs from the grid's, or a label value is unknown.
        UsageError: an unknown region or plane.
    """
    chosen = _region_names(regions, task)
    for name in chosen:
        _check_region(name, task)
    all_scores = compare(labels, reference, task, grid)
    axis = slice_axis(grid, plane)
    slices = slice_scores(labels, reference, task, grid, axis=axis, regions=chosen)
    scores = {name: all_scores[name] for name in chosen}
    return Review(labels, reference, grid, task, scores, slices)


def error_map(labels: np.ndarray, reference: np.ndarray, task: Task, region: str) -> np.ndarray:
    """Where two segmentations of a region agree and where only one of them has it.

    Args:
        labels: [I, J, K] integer label values, ours.
        reference: [I, J, K] integer label values of the same shape.
        task: labels and regions.
        region: name of the region.

    Returns:
        [I, J, K] uint8: 0 neither, 1 ``AGREEMENT``, 2 ``OURS_ONLY``, 3 ``REFERENCE_ONLY``.

    Raises:
        InputDataError: the shapes differ, or a label value is unknown.
        UsageError: the task has no such region.
    """
    _check_region(region, task)
    pair = _box_masks(labels, reference, task)
    ours = pair.ours[region]
    reference_mask = pair.reference[region]
    # The first condition that holds decides.
    conditions = [ours & reference_mask, ours, reference_mask]
    values = [AGREEMENT, OURS_ONLY, REFERENCE_ONLY]
    result = np.zeros(np.shape(labels), np.uint8)
    result[pair.box] = np.select(conditions, values, 0)
    return result


def slice_scores(
    labels: np.ndarray,
    reference: np.ndarray,
    task: Task,
    grid: Grid,
    *,
    axis: int,
    regions: Sequence[str] | None = None,
) -> SliceScores:
    """Dice and number of wrong voxels of every slice along an array axis.

    Arguments and errors are those of ``review``.
    """
    pair = _box_masks(labels, reference, task)
    plane_axes = tuple(other for other in range(3) if other != axis)
    count = grid.shape[axis]
    # Numbers of the slices within the box; the others are background in both.
    slices = np.arange(count)[pair.box[axis]]
    dice = {}
    wrong_voxels = {}
    for name in _region_names(regions, task):
        ours = pair.ours[name]
        theirs = pair.reference[name]
        our_voxels = ours.sum(plane_axes, dtype=np.int64)
        their_voxels = theirs.sum(plane_axes, dtype=np.int64)
        total = our_voxels + their_voxels
        overlap = ours & theirs
        common = overlap.sum(plane_axes, dtype=np.int64)
        # Slices that neither mask reaches have no Dice: 0 or 1 would distort a mean over slices.
        occupied = total > 0
        slice_dice = 2.0 * common[occupied] / total[occupied]
        values = np.full(count, np.nan)
        values[slices[occupied]] = slice_dice
        dice[name] = values
        errors = np.zeros(count, np.int64)
        errors[slices] = total - 2 * common
        wrong_voxels[name] = errors
    position_mm = slice_positions(grid, axis)
    return SliceScores(axis, position_mm, dice, wrong_voxels)


def worst_slices(slices: SliceScores, region: str, *, by: str = "dice") -> list[int]:
    """Indices of the slices that have the region in either segmentation, worst first.

    Args:
        slices: agreement slice by slice.
        region: which region.
        by: ``dice`` ranks by the slice's Dice, equals by wrong voxels; ``voxels`` ranks by wrong
            voxels, which does not prefer the small slices at the ends of a tumor.

    Raises:
        UsageError: the region was not scored, or ``by`` is neither.
    """
    if region not in slices.dice or by not in ("dice", "voxels"):
        raise UsageError(
            f"Slices cannot be ranked by '{by}' of '{region}'.",
            "Use dice or voxels of a scored region.",
        )
    score = slices.dice[region]
    wrong = slices.wrong_voxels[region]
    position = np.arange(len(score))
    # lexsort takes the most important key last.
    if by == "dice":
        order = np.lexsort((position, -wrong, score))
    else:
        order = np.lexsort((position, score, -wrong))
    return [int(index) for index in order if not np.isnan(score[index])]


def heaviest_slices(values: np.ndarray, axis: int) -> list[int]:
    """Slices along an array axis by the sum of their values, largest first, without sums of 0.

    For an uncertainty map the first is the most uncertain slice.

    Args:
        values: [I, J, K] non-negative numbers.
        axis: array axis that the slices are stacked along (``slice_axis``).
    """
    other_axes = tuple(other for other in range(values.ndim) if other != axis)
    total = values.sum(other_axes, dtype=np.float64)
    # A stable order: the same map always shows the same one of equal slices.
    order = np.argsort(-total, kind="stable")
    return [int(index) for index in order if total[index] > 0]


def slice_axis(grid: Grid, plane: str = "axial") -> int:
    """Array axis along which slices of that plane are stacked: the closest to its world axis."""
    if plane not in PLANES:
        raise UsageError(
            f"'{plane}' is not a plane.",
            f"Use one of {', '.join(PLANES)}.",
        )
    direction = grid.affine[:3, :3] / grid.spacing
    # How far each array axis points along the world axis, on either side.
    world_axis = PLANES[plane]
    closeness = np.abs(direction[world_axis])
    return int(closeness.argmax())


def slice_positions(grid: Grid, axis: int) -> np.ndarray:
    """[n] position in mm of every slice along the normal of the slices.

    The normal points right, anterior or superior.
    """
    first, second = (grid.affine[:3, other] for other in range(3) if other != axis)
    normal = np.cross(first, second)
    normal = normal / np.linalg.norm(normal)
    # The largest component decides on the side: two grids of a patient then count alike.
    largest = normal[np.abs(normal).argmax()]
    normal = normal * np.sign(largest)
    steps = np.arange(grid.shape[axis])
    step_mm = grid.affine[:3, axis]
    origin = grid.affine[:3, 3]
    centers = np.outer(steps, step_mm) + origin
    return centers @ normal


def focus(weights: np.ndarray, grid: Grid, axis: int, index: int) -> np.ndarray:
    """World RAS position in mm worth looking at in one slice: the center of ``weights`` in it.

    Args:
        weights: [I, J, K] bool or non-negative numbers; a slice of zeros gives the slice's center.
        grid: where the voxels lie.
        axis: array axis that the slices are stacked along.
        index: which slice.
    """
    plane = np.take(weights, index, axis).astype(np.float64)
    rows, columns = plane.shape
    total = plane.sum()
    center = [(rows - 1) / 2, (columns - 1) / 2]
    if total > 0:
        row_moment = plane.sum(1) * np.arange(rows)
        column_moment = plane.sum(0) * np.arange(columns)
        center = [row_moment.sum() / total, column_moment.sum() / total]
    ijk = np.insert(np.array(center), axis, index)
    edges = grid.affine[:3, :3]
    origin = grid.affine[:3, 3]
    return edges @ ijk + origin


@dataclass(frozen=True)
class _BoxMasks:
    """Region masks of both segmentations inside the box outside of which both are background."""

    box: tuple[slice, ...]
    ours: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]


def _box_masks(labels: np.ndarray, reference: np.ndarray, task: Task) -> _BoxMasks:
    """Raises InputDataError where the shapes differ or a label value is unknown."""
    labels = np.asarray(labels)
    reference = np.asarray(reference)
    if labels.shape != reference.shape:
        raise InputDataError(
            f"Our segmentation has the shape {labels.shape}, the reference {reference.shape}.",
            "Resample both segmentations to one grid first.",
        )
    occupied = (labels != 0) | (reference != 0)
    box = bounding_box(occupied)
    if box is None:
        box = (slice(0, 0),) * labels.ndim
    our_masks = region_masks(labels[box], task)
    reference_masks = region_masks(reference[box], task)
    return _BoxMasks(box, our_masks, reference_masks)


def _region_names(regions: Sequence[str] | None, task: Task) -> tuple[str, ...]:
    """The regions that are named, or all of the task."""
    if regions is None:
        return tuple(region.name for region in task.regions)
    return tuple(regions)


def _check_region(name: str, task: Task) -> None:
    """Raises UsageError for a region that the task does not have."""
    names = [region.name for region in task.regions]
    if name not in names:
        raise UsageError(
            f"'{name}' is not a region of the task {task.name}.", f"Use one of {', '.join(names)}."
        )
