"""How far apart two scans of one patient lie, measured without SimpleITK. numpy only.

A rough measurement to about 1 mm, which decides whether an alignment is needed at all; the
alignment itself is that of ``registration.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medmap.preparation.motion import Motion
from medmap.volume import Grid, Volume, apply_affine

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
            # The best of the neighbors is where the next round begins.
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
    """The motion with one more shift or rotation, along or about each axis, either way."""
    degrees = float(np.degrees(step_mm / LEVER_MM))
    neighbors = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            shift = np.zeros(3)
            shift[axis] = sign * step_mm
            angle = sign * degrees
            neighbors.append(motion.shifted(shift))
            neighbors.append(motion.turned(axis, angle))
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
        stride = max(1, len(inside) // POINTS)
        inside = inside[::stride]
        points = fixed_grid.world(inside)
        values = fixed_image[tuple(inside.T)]
        moving_image, moving_grid = _averaged(moving.array, moving.grid)
        to_image = np.linalg.inv(moving_grid.affine)
        sampled, is_inside = _interpolated(moving_image, to_image, points)
        edges = np.zeros(BINS - 1)
        if is_inside.any():
            edges = _bin_edges(sampled[is_inside])
        bins = np.searchsorted(_bin_edges(values), values)
        return _Comparison(points, bins, moving_image, to_image, edges)

    def information(self, motion: Motion) -> float:
        """Mutual information in nats between the fixed scan and the moving one at moved points.

        Points outside the moving scan's field of view count with no information, so that moving out
        of view never pays.
        """
        moved_points = motion.apply(self.points)
        values, is_inside = _interpolated(self.image, self.to_image, moved_points)
        if not is_inside.any():
            return 0.0
        columns = np.searchsorted(self.edges, values[is_inside])
        # One number per pair of bins, so that a single count gives the joint histogram.
        codes = self.bins[is_inside] * BINS + columns
        counts = np.bincount(codes, minlength=BINS * BINS)
        joint = counts.reshape(BINS, BINS) / len(codes)
        fixed_share = joint.sum(axis=1, keepdims=True)
        moving_share = joint.sum(axis=0, keepdims=True)
        independent = fixed_share * moving_share
        # Empty bins add nothing, but their logarithm is not finite.
        occupied = joint > 0
        shares = joint[occupied]
        ratio = shares / independent[occupied]
        information = (shares * np.log(ratio)).sum()
        # Moving all points out of the image but a few that agree must not be a gain.
        return float(information) * len(codes) / len(self.points)


def _bin_edges(values: np.ndarray) -> np.ndarray:
    """[BINS - 1] edges between bins of equal counts.

    Intensities of MRI have no unit, and equal widths would put most of a brain into a few bins.
    """
    levels = np.linspace(0, 1, BINS + 1)[1:-1]
    return np.quantile(values, levels)


def _interpolated(
    image: np.ndarray, to_image: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[N] interpolated values at [N, 3] world points, and [N] whether they lie in the image."""
    position = apply_affine(to_image, points)
    last = np.array(image.shape) - 1
    is_within = (position >= 0) & (position <= last)
    is_inside = np.asarray(is_within.all(axis=1))
    # Points outside get the value of the nearest border; the caller leaves them out.
    position = np.clip(position, 0, last)
    last_lower = np.maximum(last - 1, 0)
    lower = np.minimum(position.astype(int), last_lower)
    weight = position - lower
    values = _trilinear(image, lower, weight)
    return values, is_inside


def _trilinear(image: np.ndarray, lower: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[N] values between eight voxels each, by hand: scipy may not be installed yet.

    Args:
        image: [I, J, K].
        lower: [N, 3] index of the voxel with the lowest coordinates.
        weight: [N, 3] share of its neighbor along each axis.
    """
    last = np.array(image.shape) - 1
    flat = image.ravel()
    # Flat indices: one look-up per corner instead of three index arrays.
    _, rows, columns = image.shape
    strides = np.array([rows * columns, columns, 1])
    start = lower @ strides
    values = np.zeros(len(lower))
    for corner in range(8):
        # The bits of its number are the corner's coordinates.
        offset = np.array([(corner >> axis) & 1 for axis in range(3)])
        axis_shares = np.where(offset, weight, 1 - weight)
        share = axis_shares.prod(axis=1)
        # Along an axis of one voxel there is no neighbor, and its share is zero.
        existing = np.minimum(offset, last)
        step = int(existing @ strides)
        index = np.minimum(start + step, flat.size - 1)
        values += share * flat[index]
    return values


def _voxels_per_cell(grid: Grid) -> list[int]:
    """How many voxels along each axis are averaged."""
    counts = []
    for size, spacing in zip(grid.shape, grid.spacing, strict=True):
        wanted_count = round(CELL_MM / float(spacing))
        # At least two cells along every axis, so that interpolation has neighbors.
        count = min(wanted_count, size // 2)
        counts.append(max(1, count))
    return counts


def _averaged(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """The scan in voxels of about ``CELL_MM``, and their grid; what fills no cell is cut off."""
    counts = _voxels_per_cell(grid)
    cells = [size // count for size, count in zip(grid.shape, counts, strict=True)]
    inner = tuple(slice(cell * count) for cell, count in zip(cells, counts, strict=True))
    i, j, k = cells
    di, dj, dk = counts
    blocks = array[inner].reshape(i, di, j, dj, k, dk)
    average = blocks.mean(axis=(1, 3, 5), dtype=np.float32)
    affine = grid.affine.copy()
    axes = grid.affine[:3, :3]
    # The center of a cell lies between the centers of its first and last voxel.
    first_center = (np.array(counts) - 1) / 2
    affine[:3, 3] += axes @ first_center
    affine[:3, :3] = axes * counts
    return average, Grid((i, j, k), affine)
