"""The longest diameters of lesions, within axial slices and in any direction.

numpy only, so that results need no PyTorch; SciPy is imported when diameters are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medmap.agreement import slice_axis
from medmap.boxes import bounding_box
from medmap.errors import InputDataError
from medmap.metrics import region_masks
from medmap.task import Task
from medmap.volume import Grid

MANY_POINTS = 300
"""Above this number the convex hull, of which both ends are corners, is cheaper than all pairs."""

BLOCK = 1024
"""Rows of the matrix of distances at a time, so that it stays small."""


@dataclass(frozen=True)
class Diameters:
    """Longest diameters of a region.

    Attributes:
        axial_mm: longest within one slice of the array axis closest to inferior-superior; 0 for an
            empty region.
        longest_mm: longest in any direction; 0 for an empty region.
        axial_ends: [2, 3] world RAS positions in mm of the ends of the former; None when empty.
        longest_ends: the same of the latter.
    """

    axial_mm: float = 0.0
    longest_mm: float = 0.0
    axial_ends: np.ndarray | None = None
    longest_ends: np.ndarray | None = None


def region_diameters(labels: np.ndarray, task: Task, grid: Grid) -> dict[str, Diameters]:
    """``longest_diameters`` of every region.

    Raises:
        InputDataError: the shape differs from the grid's, or a label value is unknown.
    """
    labels = np.asarray(labels)
    if labels.shape != tuple(grid.shape):
        raise InputDataError(
            f"The labels have the shape {labels.shape}, the grid {grid.shape}.",
            "Use their own grid.",
        )
    box = bounding_box(labels != 0)
    if box is None:
        return {region.name: Diameters() for region in task.regions}
    part = _grid_of_box(grid, box)
    masks = region_masks(labels[box], task)
    return {name: longest_diameters(mask, part) for name, mask in masks.items()}


def _grid_of_box(grid: Grid, box: Sequence[slice]) -> Grid:
    """Where the voxels of a box lie: its origin is another one than the volume's."""
    first_voxel = [side.start for side in box]
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ first_voxel
    i, j, k = (side.stop - side.start for side in box)
    return Grid((i, j, k), affine)


@dataclass(frozen=True)
class _Span:
    """A distance in mm and its ends [2, 3] in mm; without ends nothing was measured."""

    length_mm: float = 0.0
    ends: np.ndarray | None = None


def longest_diameters(mask: np.ndarray, grid: Grid) -> Diameters:
    """Longest diameters of the largest lesion, in mm.

    Measured from border to border between the centers of the faces of the voxels, the vertices of a
    marching-cubes surface: these are PyRadiomics' ``Maximum2DDiameterSlice`` and
    ``Maximum3DDiameter``. A mask of several connected components (neighborhood of 26) gets the
    largest value of any one of them, since a distance between two lesions is no diameter.

    Args:
        mask: [I, J, K] bool.
        grid: where the voxels lie.
    """
    from scipy import ndimage  # here: importing medmap.diameters needs numpy only

    components, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    axis = slice_axis(grid)
    edges = grid.affine[:3, :3]
    numbered_boxes = list(enumerate(ndimage.find_objects(components), 1))
    # Largest boxes first: most small components then cannot beat what was
    # measured, and are skipped.
    numbered_boxes.sort(key=lambda entry: -_diagonal(entry[1], edges))
    axial = _Span()
    longest = _Span()
    for number, box in numbered_boxes:
        if _diagonal(box, edges) <= axial.length_mm:
            break
        first_voxel = [side.start for side in box]
        component = components[box] == number
        corners = _corner_voxels(component) + first_voxel
        surface = _face_centers(corners, (0, 1, 2)) @ edges.T
        longest = _longer(longest, _farthest(surface))
        axial_candidate = _farthest_in_slices(corners, axis, edges, axial.length_mm)
        axial = _longer(axial, axial_candidate)
    origin = grid.affine[:3, 3]
    return Diameters(
        axial_mm=axial.length_mm,
        longest_mm=longest.length_mm,
        axial_ends=None if axial.ends is None else axial.ends + origin,
        longest_ends=None if longest.ends is None else longest.ends + origin,
    )


def _longer(first: _Span, second: _Span) -> _Span:
    """The longer of two; the first of equal ones."""
    if second.length_mm > first.length_mm:
        return second
    return first


def _diagonal(box: tuple[slice, ...], edges: np.ndarray) -> float:
    """An upper bound of every diameter inside the box: the longest of its four diagonals."""
    size = np.array([side.stop - side.start for side in box])
    # Of opposite diagonals one suffices; in a sheared grid the four differ.
    signs = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]])
    diagonals_mm = signs * size @ edges.T
    lengths_mm = np.linalg.norm(diagonals_mm, axis=1)
    return float(lengths_mm.max())


def _corner_voxels(mask: np.ndarray) -> np.ndarray:
    """[N, 3] voxels that end the mask along two axes, with all corners of its convex hull.

    A corner of the hull of the mask ends it along all three axes, but one of the hull of a single
    slice within that slice only: two axes.
    """
    ends = np.zeros(mask.shape, np.uint8)
    for axis in range(3):
        # The first voxel of every line that is inside, counted from either end.
        size = mask.shape[axis]
        first = mask.argmax(axis)
        last = size - 1 - np.flip(mask, axis).argmax(axis)
        shape = [1, 1, 1]
        shape[axis] = -1
        line = np.arange(size).reshape(shape)
        is_first = line == np.expand_dims(first, axis)
        is_last = line == np.expand_dims(last, axis)
        ends += is_first | is_last
    return np.argwhere(mask & (ends >= 2)).astype(float)


def _face_centers(voxels: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Centers of the faces of voxels [N, 3] that look along the axes."""
    directions = np.eye(3)[list(axes)]
    offsets = np.concatenate([directions, -directions]) / 2
    centers = voxels[:, None] + offsets
    return centers.reshape(-1, 3)


def _farthest_in_slices(voxels: np.ndarray, axis: int, edges: np.ndarray, least_mm: float) -> _Span:
    """The farthest pair within one slice, if it is farther than ``least_mm``."""
    plane_axes = tuple(other for other in range(3) if other != axis)
    # Groups of voxels by the slice that they lie in.
    order = np.argsort(voxels[:, axis], kind="stable")
    ordered = voxels[order]
    borders = np.flatnonzero(np.diff(ordered[:, axis])) + 1
    groups = np.split(ordered, borders)
    slices = [_face_centers(group, plane_axes) @ edges.T for group in groups]
    # Slices of large bounds first: the others then need not be measured.
    bounds = [_largest_possible(points) for points in slices]
    largest_first = np.argsort(bounds)[::-1]
    best = _Span(least_mm)
    for number in largest_first:
        if bounds[number] <= best.length_mm:
            break
        candidate = _farthest(slices[number], flat=True)
        best = _longer(best, candidate)
    if best.ends is None:
        return _Span()
    return best


def _largest_possible(points: np.ndarray) -> float:
    """No pair of [N, 3] points is farther apart than twice the radius around any center."""
    center = (points.min(0) + points.max(0)) / 2
    radii = np.linalg.norm(points - center, axis=1)
    return float(2 * radii.max())


def _farthest(points: np.ndarray, flat: bool = False) -> _Span:
    """The farthest two of [N, 3] points; ``flat`` if they lie in a plane."""
    from scipy.spatial.distance import cdist

    if len(points) > MANY_POINTS:
        points = points[_hull(points, flat)]
    best = _Span(-1.0, points[:2])
    for start in range(0, len(points), BLOCK):
        block = points[start : start + BLOCK]
        distance = cdist(block, points)
        row, column = np.unravel_index(distance.argmax(), distance.shape)
        ends = np.stack([points[start + row], points[column]])
        length_mm = float(distance[row, column])
        best = _longer(best, _Span(length_mm, ends))
    return best


def _hull(points: np.ndarray, flat: bool) -> np.ndarray:
    """Indices of the corners of the convex hull."""
    from scipy.spatial import ConvexHull

    if flat:
        # Qhull rejects points in a plane: they become two-dimensional in the plane's own axes.
        centered = points - points.mean(0)
        _, _, directions = np.linalg.svd(centered, full_matrices=False)
        plane_axes = directions[:2]
        points = centered @ plane_axes.T
    return ConvexHull(points).vertices
