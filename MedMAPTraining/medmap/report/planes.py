"""Which slices of a case to show, from where to where, and in which window.

Everything is brought into the closest canonical order (axes toward R, A, S) by permuting and flipping, so that what
follows need not know how the scans were stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medmap.foreground import bounding_box
from medmap.metrics import label_masks
from medmap.resampling import canonical_grid, reorient
from medmap.task import Task
from medmap.volume import Grid

_MARGIN_MM = 6.0
_STACK = 3.0
"""A scan whose slices lie this many times farther apart than its pixels is a stack, and shown slice by slice."""
_AROUND_MM = 35.0
"""What is kept around the labels of a stack."""


@dataclass(frozen=True)
class Plane:
    """One orientation: canonical axes shown across, down and through; letters at left, right, top and bottom.

    ``at`` is the slice that is shown, in a stack; None shows the one through the case's position.
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
"""In the radiological convention: the patient's right on the left, anterior on the left of sagittal pictures."""


@dataclass(frozen=True)
class Case:
    """Everything to draw, in closest canonical order, cropped.

    Attributes:
        scans: modality name -> [X, Y, Z] intensities along R, A, S.
        windows: modality name -> intensities shown black and white, and the background's value.
        prediction: label name -> [X, Y, Z] bool.
        reference: as ``prediction``, or None.
        spacing: [3] mm along X, Y, Z.
        position: voxel where the three planes cross.
        position_mm: [3] the same in world RAS.
        planes: what is shown, a row each: three orientations, or up to three slices of a stack.
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
    """The slice of a canonical array [X, Y, Z] as a picture: rows from A or S downwards, columns from R or A."""
    index: list = [slice(None)] * 3
    index[plane.normal] = position[plane.normal] if plane.at is None else plane.at
    return array[tuple(index)].T[::-1, ::-1]


def prepare(
    scans: Mapping[str, np.ndarray],
    prediction: np.ndarray,
    reference: np.ndarray | None,
    grid: Grid,
    task: Task,
) -> Case:
    """Turn, crop and window a case, and choose its slices: see ``medmap.report.overlay.save_overlay``.

    Raises InputDataError when a label value is unknown.
    """
    canonical = canonical_grid(grid)
    turned = {name: reorient(array, grid)[0] for name, array in scans.items()}
    ours = reorient(prediction, grid)[0]
    theirs = None if reference is None else reorient(reference, grid)[0]
    spacing = canonical.spacing
    seen = {name: find_foreground(array) for name, array in turned.items()}
    labeled = ours != 0 if theirs is None else (ours != 0) | (theirs != 0)
    axis = _stack_axis(spacing)
    box = _crop(seen, labeled, spacing) if axis is None else _stack_box(labeled, spacing, axis)
    ours_masks = label_masks(ours[box], task)
    theirs_masks = None if theirs is None else label_masks(theirs[box], task)
    position = _position(ours_masks, theirs_masks)
    start = np.array([s.start for s in box])
    return Case(
        scans={name: array[box] for name, array in turned.items()},
        windows={name: window_of(turned[name], *seen[name]) for name in turned},
        prediction=ours_masks,
        reference=theirs_masks,
        spacing=spacing,
        position=position,
        position_mm=(canonical.affine @ [*(start + position), 1])[:3],
        planes=PLANES if axis is None else _slices(labeled[box], axis),
    )


def _stack_axis(spacing: np.ndarray) -> int | None:
    """The axis across the slices of a stack; None for a volume."""
    axis = int(np.argmax(spacing))
    return axis if spacing[axis] >= _STACK * np.delete(spacing, axis).max() else None


def _stack_box(labeled: np.ndarray, spacing: np.ndarray, axis: int) -> tuple[slice, ...]:
    """All slices; within them the labels and what lies around, or everything without any."""
    found = bounding_box(labeled)
    if found is None:
        return (slice(None),) * 3
    margin = np.ceil(_AROUND_MM / spacing).astype(int)
    wide = (
        slice(max(0, s.start - m), min(n, s.stop + m))
        for s, m, n in zip(found, margin, labeled.shape, strict=True)
    )
    return tuple(slice(0, labeled.shape[a]) if a == axis else s for a, s in enumerate(wide))


def _slices(labeled: np.ndarray, axis: int) -> tuple[Plane, ...]:
    """The first, the middle and the last slice that has labels, or of all if none has."""
    count = labeled.shape[axis]
    found = np.flatnonzero(labeled.any(axis=tuple(a for a in range(3) if a != axis)))
    found = found if len(found) else np.arange(count)
    plane = next(plane for plane in PLANES if plane.normal == axis)
    chosen = sorted({int(found[0]), int(found[len(found) // 2]), int(found[-1])})
    return tuple(replace(plane, title=f"Slice {n + 1} of {count}", at=n) for n in chosen)


def _thin(shape: Sequence[int]) -> tuple[slice, ...]:
    """Every second voxel along long axes: enough to find a head and a window, at an eighth of the time."""
    return tuple(slice(None, None, 2 if n > 64 else 1) for n in shape)


def find_foreground(array: np.ndarray) -> tuple[np.ndarray, float]:
    """Mask of what is not background, on the thinned array, and the background's value.

    The corners tell the background's value: skull-stripped scans that were z-scored have a constant that is not zero,
    and whole faces of a slab lie inside the head.
    """
    thin = np.nan_to_num(np.asarray(array[_thin(array.shape)], np.float32), posinf=0.0, neginf=0.0)
    corner = tuple(np.r_[0 : max(1, n // 16), n - max(1, n // 16) : n] for n in thin.shape)
    empty = float(np.median(thin[np.ix_(*corner)]))
    low, high = np.percentile(thin, (0.1, 99.9))
    return np.abs(thin - empty) > 0.05 * max(high - low, 1e-12), empty


def window_of(array: np.ndarray, seen: np.ndarray, empty: float) -> tuple[float, float, float]:
    """Intensities shown black and white (2nd and 99.5th percentile of the foreground), and the background's value."""
    inside = np.asarray(array[_thin(array.shape)], np.float32)[seen]
    inside = inside[np.isfinite(inside)]
    low, high = np.percentile(inside, (2, 99.5)) if inside.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6)), empty


def _crop(seen: dict, labels: np.ndarray, spacing: np.ndarray) -> tuple[slice, ...]:
    """Box around head and labels with a margin; planes with hardly any foreground are noise, not head."""
    step = _thin(labels.shape)
    head = np.logical_or.reduce([mask for mask, _ in seen.values()])
    tumor = bounding_box(labels != 0)
    box = []
    for axis, n in enumerate(labels.shape):
        share = head.mean(axis=tuple(a for a in range(3) if a != axis))
        planes = np.flatnonzero(share > 0.005 * share.max()) * step[axis].step
        ends = [planes[0], planes[-1]] if len(planes) else [0, n - 1]
        if tumor:
            ends += [tumor[axis].start, tumor[axis].stop - 1]
        margin = math.ceil(_MARGIN_MM / spacing[axis])
        box.append(slice(max(0, int(min(ends)) - margin), min(n, int(max(ends)) + margin + 1)))
    return tuple(box)


def _position(prediction: dict, reference: dict | None) -> tuple[int, int, int]:
    """Voxel where the three planes cross."""
    for masks in (reference, prediction):
        tumor = None if masks is None else np.logical_or.reduce(list(masks.values()))
        if tumor is not None and tumor.any():
            areas = [tumor.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
            return _nearest(areas[0]), _nearest(areas[1]), int(np.argmax(areas[2]))
    shape = next(iter(prediction.values())).shape
    return shape[0] // 2, shape[1] // 2, shape[2] // 2


def _nearest(areas: np.ndarray) -> int:
    """The plane that cuts the tumor and lies nearest to the centroid, which may lie between two lesions."""
    centroid = np.average(np.arange(len(areas)), weights=areas)
    planes = np.flatnonzero(areas)
    return int(planes[np.argmin(np.abs(planes - centroid))])
