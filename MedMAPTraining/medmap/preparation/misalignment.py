"""How far apart two scans of one patient lie, measured without SimpleITK. numpy only.

A rough measurement to about 1 mm, which decides whether an alignment is needed at all; the
alignment itself is that of ``registration.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medmap.preparation.motion import Motion
from medmap.volume import Grid, Volume

CELL_MM = 3.0
"""Scans are averaged to about this size first."""

POINTS = 4000
"""Points of the brain that are compared."""

BINS = 24

STEPS_MM = (8.0, 4.0, 2.0, 1.0)
"""Lengths of the steps of the search, coarse to fine."""

LEVER_MM = 60.0
"""A rotation moves the surface of a brain as far as a shift does: radius of a brain."""

MIN_GAIN = 0.02
"""Mutual information (nats) below which a better position may be chance: the bias of 24 x 24 bins
and 4000 points is 0.04 everywhere, its scatter 0.003."""


@dataclass(frozen=True)
class Misalignment:
    """How far a scan lies from where it agrees best with another one.

    Attributes:
        mm: mean displacement of the brain.
        gain: mutual information, in nats, that the displacement would gain.
    """

    mm: float
    gain: float


def measure_misalignment(fixed: Volume, moving: Volume, fixed_mask: np.ndarray) -> Misalignment:
    """Mean distance in mm by which a scan is displaced from another one, to about 1 mm.

    A pattern search (Hooke and Jeeves 1961) over shifts and rotations maximizes the mutual
    information of points in the brain. It finds displacements of up to about 20 mm. Gains that may
    be chance count as aligned.

    Args:
        fixed: the scan that stays.
        moving: the other scan, on any grid.
        fixed_mask: [I, J, K] bool brain of the fixed scan.
    """
    comparison = _Comparison.build(fixed, moving, fixed_mask)
    motion = Motion.identity(comparison.points.mean(axis=0))
    initial = comparison.information(motion)
    information = initial
    for step_mm in STEPS_MM:
        improved = True
        while improved:
            improved = False
            for candidate in _neighbors(motion, step_mm):
                value = comparison.information(candidate)
                if value > information + 1e-9:
                    motion = candidate
                    information = value
                    improved = True
    gain = information - initial
    if gain < MIN_GAIN:
        return Misalignment(0.0, gain)
    identity = Motion.identity(motion.center)
    return Misalignment(motion.distance_mm(identity, comparison.points), gain)


def _neighbors(motion: Motion, step_mm: float) -> list[Motion]:
    neighbors = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            shift = np.zeros(3)
            shift[axis] = sign * step_mm
            neighbors.append(motion.shifted(shift))
            neighbors.append(motion.turned(axis, sign * float(np.degrees(step_mm / LEVER_MM))))
    return neighbors


@dataclass(frozen=True)
class _Comparison:
    """Points of the fixed brain with the bins of their intensities, and the moving scan."""

    points: np.ndarray
    bins: np.ndarray
    image: np.ndarray
    to_image: np.ndarray
    edges: np.ndarray

    @staticmethod
    def build(fixed: Volume, moving: Volume, fixed_mask: np.ndarray) -> _Comparison:
        fixed_image, fixed_grid = _averaged(fixed.array, fixed.grid)
        brain, _ = _averaged(fixed_mask.astype(np.float32), fixed.grid)
        inside = np.argwhere(brain > 0.5)
        inside = inside[:: max(1, len(inside) // POINTS)]
        points = inside @ fixed_grid.affine[:3, :3].T + fixed_grid.affine[:3, 3]
        values = fixed_image[tuple(inside.T)]
        moving_image, moving_grid = _averaged(moving.array, moving.grid)
        to_image = np.linalg.inv(moving_grid.affine)
        levels = np.linspace(0, 1, BINS + 1)[1:-1]
        sampled, is_inside = _interpolated(moving_image, to_image, points)
        edges = np.quantile(sampled[is_inside], levels) if is_inside.any() else np.zeros(BINS - 1)
        bins = np.searchsorted(np.quantile(values, levels), values)
        return _Comparison(points, bins, moving_image, to_image, edges)

    def information(self, motion: Motion) -> float:
        """Mutual information in nats between the fixed scan and the moving one at moved points.

        Points outside the moving scan's field of view count with no information, so that moving out
        of view never pays.
        """
        values, is_inside = _interpolated(self.image, self.to_image, motion.apply(self.points))
        if not is_inside.any():
            return 0.0
        columns = np.searchsorted(self.edges, values[is_inside])
        codes = self.bins[is_inside] * BINS + columns
        joint = np.bincount(codes, minlength=BINS * BINS).reshape(BINS, BINS) / len(codes)
        product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
        occupied = joint > 0
        information = (joint[occupied] * np.log(joint[occupied] / product[occupied])).sum()
        return float(information) * len(codes) / len(self.points)


def _interpolated(
    image: np.ndarray, to_image: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[N] interpolated values at [N, 3] world points, and [N] whether they lie in the image."""
    position = points @ to_image[:3, :3].T + to_image[:3, 3]
    last = np.array(image.shape) - 1
    is_inside = ((position >= 0) & (position <= last)).all(axis=1)
    position = np.clip(position, 0, last)
    lower = np.minimum(position.astype(int), np.maximum(last - 1, 0))
    weight = position - lower
    flat = image.ravel()
    strides = np.array([image.shape[1] * image.shape[2], image.shape[2], 1])
    start = lower @ strides
    values = np.zeros(len(points))
    for corner in range(8):
        offset = np.array([(corner >> axis) & 1 for axis in range(3)])
        share = np.where(offset, weight, 1 - weight).prod(axis=1)
        step = int(np.minimum(offset, last) @ strides)
        values += share * flat[np.minimum(start + step, flat.size - 1)]
    return values, is_inside


def _averaged(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """The scan in voxels of about ``CELL_MM``, and their grid; what fills no cell is cut off."""
    counts = []
    for size, spacing in zip(grid.shape, grid.spacing, strict=True):
        counts.append(max(1, min(round(CELL_MM / float(spacing)), size // 2)))
    cells = [size // count for size, count in zip(grid.shape, counts, strict=True)]
    inner = tuple(slice(cell * count) for cell, count in zip(cells, counts, strict=True))
    blocks = array[inner].reshape(cells[0], counts[0], cells[1], counts[1], cells[2], counts[2])
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ ((np.array(counts) - 1) / 2)
    affine[:3, :3] = grid.affine[:3, :3] * counts
    average = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    return average, Grid((cells[0], cells[1], cells[2]), affine)
