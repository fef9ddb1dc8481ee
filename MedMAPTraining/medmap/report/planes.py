"""Which slices of a case to show, cropped to which box, in which intensity window.

Everything is brought into the closest canonical order (axes toward R, A, S) by permuting and
flipping, so that later steps do not depend on how the scans were stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medmap.boxes import bounding_box
from medmap.metrics import label_masks
from medmap.resampling import canonical_grid, reorient
from medmap.task import Task
from medmap.volume import Grid

_MARGIN_MM = 6.0
"""Kept around head and labels of a volume."""
_STACK_RATIO = 3.0
"""A scan whose slices lie this many times farther apart than its pixels is a stack of slices, and
is shown slice by slice."""
_STACK_MARGIN_MM = 35.0
"""Kept around the labels of a stack."""


@dataclass(frozen=True)
class Plane:
    """One orientation: canonical axes across, down and through the picture.

    Attributes:
        title: name of the orientation, or number of the slice.
        across, down, normal: canonical axes 0 (R), 1 (A), 2 (S).
        letters: at the left, right, top and bottom edge.
        at: slice that is shown of a stack; None shows the one through the case's position.
    """

    title: str
    across: int
    down: int
    normal: int
    letters: str
    at: int | None = None


PLANES = (
    Plane("Axial", across=0, down=1, normal=2, letters="RLAP"),
    Plane("Coronal", across=0, down=2, normal=1, letters="RLSI"),
    Plane("Sagittal", across=1, down=2, normal=0, letters="APSI"),
)
"""In the radiological convention: the patient's right on the left of axial and coronal pictures,
anterior on the left of sagittal ones."""


@dataclass(frozen=True)
class CaseView:
    """Everything to draw, in closest canonical order, cropped.

    Attributes:
        scans: modality name -> [X, Y, Z] intensities along R, A, S.
        windows: modality name -> intensities shown black and white, and the background's value.
        prediction: label name -> [X, Y, Z] bool.
        reference: as ``prediction``, or None.
        spacing: [3] mm along X, Y, Z.
        position: voxel where the three planes cross.
        position_mm: [3] the same in world RAS.
        planes: a row each: three orientations, or up to three slices of a stack.
    """

    scans: dict[str, np.ndarray]
    windows: dict[str, tuple[float, float, float]]
    prediction: dict[str, np.ndarray]
    reference: dict[str, np.ndarray] | None
    spacing: np.ndarray
    position: tuple[int, int, int]
    position_mm: np.ndarray
    planes: tuple[Plane, ...] = PLANES

    @property
    def extent_mm(self) -> np.ndarray:
        """[3] size of what is shown in mm along X, Y, Z."""
        return np.array(next(iter(self.scans.values())).shape) * self.spacing


def cut(array: np.ndarray, plane: Plane, position: Sequence[int]) -> np.ndarray:
    """A slice of a canonical array [X, Y, Z] as a picture, rows downwards.

    Rows run from A or S, columns from R or A.
    """
    number = plane.at
    if number is None:
        number = position[plane.normal]
    index: list = [slice(None)] * 3
    index[plane.normal] = number
    columns_then_rows = array[tuple(index)]
    rows_then_columns = columns_then_rows.T
    # Canonical axes run toward R, A and S: the patient's right and top come first when reversed.
    return rows_then_columns[::-1, ::-1]


def position_text(axis: int, mm: float) -> str:
    """A position along R, A or S in world RAS, such as ``S 12 mm``, with the letter of its side."""
    positive, negative = ("RL", "AP", "SI")[axis]
    side = positive
    if mm < 0:
        side = negative
    distance = abs(mm)
    return f"{side} {distance:.0f} mm"


def prepare(
    scans: Mapping[str, np.ndarray],
    prediction: np.ndarray,
    reference: np.ndarray | None,
    grid: Grid,
    task: Task,
) -> CaseView:
    """Turn, crop and window a case, and choose its slices: see ``overlay.save_overlay``.

    Raises:
        InputDataError: a label value is unknown.
    """
    canonical = canonical_grid(grid)
    spacing = canonical.spacing
    turned = {name: reorient(array, grid)[0] for name, array in scans.items()}
    labels = reorient(prediction, grid)[0]
    labeled = labels != 0
    reference_labels = None
    if reference is not None:
        reference_labels = reorient(reference, grid)[0]
        labeled = labeled | (reference_labels != 0)
    foregrounds = {name: find_foreground(array) for name, array in turned.items()}
    stack_axis = _stack_axis(spacing)
    planes: tuple[Plane, ...] = PLANES
    if stack_axis is None:
        head_masks = [mask for mask, _ in foregrounds.values()]
        box = _volume_box(head_masks, labeled, spacing)
    else:
        box = _stack_box(labeled, spacing, stack_axis)
        planes = _slices(labeled[box], stack_axis)
    prediction_masks = label_masks(labels[box], task)
    reference_masks = None
    if reference_labels is not None:
        reference_masks = label_masks(reference_labels[box], task)
    position = _position(prediction_masks, reference_masks)
    start = np.array([side.start for side in box])
    position_mm = (canonical.affine @ [*(start + position), 1])[:3]
    # Windows are of complete scans: cropped, those of two cases could not be compared.
    windows = {name: window_of(array, *foregrounds[name]) for name, array in turned.items()}
    return CaseView(
        scans={name: array[box] for name, array in turned.items()},
        windows=windows,
        prediction=prediction_masks,
        reference=reference_masks,
        spacing=spacing,
        position=position,
        position_mm=position_mm,
        planes=planes,
    )


def _stack_axis(spacing: np.ndarray) -> int | None:
    """The axis across the slices of a stack; None for a volume."""
    axis = int(np.argmax(spacing))
    in_plane_spacing = np.delete(spacing, axis)
    least_mm = _STACK_RATIO * in_plane_spacing.max()
    if spacing[axis] < least_mm:
        return None
    return axis


def _stack_box(labeled: np.ndarray, spacing: np.ndarray, axis: int) -> tuple[slice, ...]:
    """All slices; within them the labels and a margin, or everything without labels."""
    labels_box = bounding_box(labeled)
    if labels_box is None:
        return tuple(slice(0, size) for size in labeled.shape)
    margin = np.ceil(_STACK_MARGIN_MM / spacing).astype(int)
    box = []
    for a, size in enumerate(labeled.shape):
        if a == axis:
            box.append(slice(0, size))
            continue
        side = labels_box[a]
        first = max(0, side.start - margin[a])
        end = min(size, side.stop + margin[a])
        box.append(slice(first, end))
    return tuple(box)


def _slices(labeled: np.ndarray, axis: int) -> tuple[Plane, ...]:
    """The first, the middle and the last slice with labels of a stack, or of all slices."""
    count = labeled.shape[axis]
    in_plane = tuple(a for a in range(3) if a != axis)
    has_labels = labeled.any(axis=in_plane)
    numbers = np.flatnonzero(has_labels)
    if not len(numbers):
        numbers = np.arange(count)
    middle = len(numbers) // 2
    # A set: of few slices two of the three may be one.
    chosen = {
        int(numbers[0]),
        int(numbers[middle]),
        int(numbers[-1]),
    }
    plane = next(plane for plane in PLANES if plane.normal == axis)
    planes = []
    for number in sorted(chosen):
        # Radiologists count slices from 1.
        title = f"Slice {number + 1} of {count}"
        planes.append(replace(plane, title=title, at=number))
    return tuple(planes)


def _thinned(shape: Sequence[int]) -> tuple[slice, ...]:
    """Every second voxel along long axes: enough for a mask and a window, eight times faster."""
    return tuple(slice(None, None, 2 if size > 64 else 1) for size in shape)


def find_foreground(array: np.ndarray) -> tuple[np.ndarray, float]:
    """Mask of what is not background, on the thinned array, and the background's value.

    The value is read off the corners: skull-stripped scans that were z-scored have a constant that
    is not zero, and with a limited field of view complete faces lie inside the head.
    """
    sampled = np.asarray(array[_thinned(array.shape)], np.float32)
    thin = np.nan_to_num(sampled, posinf=0.0, neginf=0.0)
    corner_indices = []
    for size in thin.shape:
        width = max(1, size // 16)
        first_of_end = size - width
        both_ends = np.r_[0:width, first_of_end:size]
        corner_indices.append(both_ends)
    corners = thin[np.ix_(*corner_indices)]
    background = float(np.median(corners))
    # Percentiles, not the extremes: a single bright voxel would raise the threshold above tissue.
    low, high = np.percentile(thin, (0.1, 99.9))
    intensity_range = max(high - low, 1e-12)
    threshold = 0.05 * intensity_range
    contrast = np.abs(thin - background)
    mask = contrast > threshold
    return mask, background


def window_of(array: np.ndarray, mask: np.ndarray, background: float) -> tuple[float, float, float]:
    """Intensities shown black and white, and the background's value.

    Black is the 2nd, white the 99.5th percentile of the foreground (``find_foreground``).
    """
    # On the thinned array, as the mask is: percentiles need no more.
    sampled = array[_thinned(array.shape)]
    thin = np.asarray(sampled, np.float32)
    inside = thin[mask]
    inside = inside[np.isfinite(inside)]
    low = 0.0
    high = 1.0
    if inside.size:
        low, high = np.percentile(inside, (2, 99.5))
    # A constant foreground would leave a window without any width.
    high = max(high, low + 1e-6)
    return float(low), float(high), background


def _volume_box(
    head_masks: Sequence[np.ndarray], labeled: np.ndarray, spacing: np.ndarray
) -> tuple[slice, ...]:
    """Box around head (masks on the thinned array) and labels with a margin."""
    steps = _thinned(labeled.shape)
    head = np.logical_or.reduce(head_masks)
    labels_box = bounding_box(labeled)
    box = []
    for axis, size in enumerate(labeled.shape):
        planes = _planes_with_head(head, axis) * steps[axis].step
        ends = [0, size - 1]
        if len(planes):
            ends = [planes[0], planes[-1]]
        if labels_box:
            side = labels_box[axis]
            ends += [side.start, side.stop - 1]
        margin = math.ceil(_MARGIN_MM / spacing[axis])
        first = max(0, int(min(ends)) - margin)
        end = min(size, int(max(ends)) + margin + 1)
        box.append(slice(first, end))
    return tuple(box)


def _planes_with_head(head: np.ndarray, axis: int) -> np.ndarray:
    """Numbers of the planes across an axis that show more than noise."""
    in_plane = tuple(a for a in range(3) if a != axis)
    fractions = head.mean(axis=in_plane)
    # Planes with hardly any foreground are noise, not head.
    least_fraction = 0.005 * fractions.max()
    return np.flatnonzero(fractions > least_fraction)


def _position(
    prediction: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray] | None
) -> tuple[int, int, int]:
    """Voxel where the three planes cross: in the reference's tumor, else in the prediction's."""
    for masks in (reference, prediction):
        if masks is None:
            continue
        tumor = np.logical_or.reduce(list(masks.values()))
        if tumor.any():
            sagittal_areas = tumor.sum(axis=(1, 2))
            coronal_areas = tumor.sum(axis=(0, 2))
            axial_areas = tumor.sum(axis=(0, 1))
            sagittal = _plane_near_centroid(sagittal_areas)
            coronal = _plane_near_centroid(coronal_areas)
            # Axial slices are those that readers compare: the one with most of the tumor.
            axial = int(np.argmax(axial_areas))
            return sagittal, coronal, axial
    any_mask = next(iter(prediction.values()))
    depth, height, width = any_mask.shape
    return depth // 2, height // 2, width // 2


def _plane_near_centroid(areas: np.ndarray) -> int:
    """The plane through the tumor that is nearest to its centroid.

    The centroid itself may lie between two lesions.
    """
    positions = np.arange(len(areas))
    centroid = np.average(positions, weights=areas)
    planes = np.flatnonzero(areas)
    distances = np.abs(planes - centroid)
    nearest = np.argmin(distances)
    return int(planes[nearest])
