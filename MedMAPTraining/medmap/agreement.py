"""Two segmentations of one patient side by side: where they differ, slice by slice, and how large things are.

numpy only, so that a review needs no PyTorch; ``longest_diameters`` and HD95 import SciPy when they are called.
Scores are those of ``medmap.metrics``, with its rule for empty masks. Within one slice an empty pair says nothing, so
the per-slice Dice of a slice without the region in either is nan there, not 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medmap.errors import InputDataError, UsageError
from medmap.foreground import bounding_box
from medmap.metrics import RegionScore, compare, region_masks
from medmap.task import Task
from medmap.volume import Grid

AGREEMENT, OURS_ONLY, REFERENCE_ONLY = 1, 2, 3
"""Values of an error map; 0 is where neither has the region."""

EMPTY_RULE = (
    "Both empty: Dice, sensitivity and precision are 1 and HD95 is 0. One empty: Dice is 0; HD95 and whatever would "
    "divide by zero are not defined. In the slice table, a slice without the region in either is not scored."
)
"""The empty-versus-empty rule of ``medmap.metrics``, in words for the panel."""

PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Plane -> the world axis (R, A, S) that its slices are stacked along."""


@dataclass(frozen=True)
class Diameters:
    """Longest diameters of a region.

    Attributes:
        axial_mm: longest within one slice of the array axis closest to inferior-superior; 0 for an empty region.
        longest_mm: longest in any direction; 0 for an empty region.
        axial_ends: [2, 3] world RAS positions in mm of the ends of the former; None when empty.
        longest_ends: the same of the latter.
    """

    axial_mm: float = 0.0
    longest_mm: float = 0.0
    axial_ends: np.ndarray | None = None
    longest_ends: np.ndarray | None = None


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
        scores: one entry a region that the reference speaks about.
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
        regions: regions that the reference speaks about; None for all of the task.
        plane: ``axial``, ``coronal`` or ``sagittal``: how slices are stacked.

    Raises:
        InputDataError: a shape differs from the grid's, or a label value is unknown.
        UsageError: an unknown region or plane.
    """
    chosen = tuple(regions if regions is not None else (r.name for r in task.regions))
    for name in chosen:
        _known_region(name, task)
    scores = compare(labels, reference, task, grid)
    slices = slice_scores(
        labels, reference, task, grid, axis=slice_axis(grid, plane), regions=chosen
    )
    return Review(labels, reference, grid, task, {name: scores[name] for name in chosen}, slices)


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
    _known_region(region, task)
    box, ours, theirs = _boxed(labels, reference, task)
    result = np.zeros(np.shape(labels), np.uint8)
    a, b = ours[region], theirs[region]
    result[box] = np.select([a & b, a, b], [AGREEMENT, OURS_ONLY, REFERENCE_ONLY], 0)
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
    """Dice and number of wrong voxels of every slice along an array axis; arguments and errors as ``review``."""
    box, ours, theirs = _boxed(labels, reference, task)
    others = tuple(a for a in range(3) if a != axis)
    count = grid.shape[axis]
    dice, wrong = {}, {}
    for name in regions if regions is not None else [r.name for r in task.regions]:
        a, b = ours[name], theirs[name]
        total = a.sum(others, dtype=np.int64) + b.sum(others, dtype=np.int64)
        common = (a & b).sum(others, dtype=np.int64)
        dice[name], wrong[name] = np.full(count, np.nan), np.zeros(count, np.int64)
        here = np.arange(count)[box[axis]]
        dice[name][here[total > 0]] = 2.0 * common[total > 0] / total[total > 0]
        wrong[name][here] = total - 2 * common
    return SliceScores(axis, slice_positions(grid, axis), dice, wrong)


def worst_slices(slices: SliceScores, region: str, *, by: str = "dice") -> list[int]:
    """Indices of the slices that have the region in either segmentation, worst first.

    Args:
        slices: agreement slice by slice.
        region: which region.
        by: ``dice`` ranks by the slice's Dice, equals by wrong voxels; ``voxels`` ranks by wrong voxels, which does not
            prefer the small slices at the ends of a tumor.

    Raises:
        UsageError: the region was not scored, or ``by`` is neither.
    """
    if region not in slices.dice or by not in ("dice", "voxels"):
        raise UsageError(
            f"Slices cannot be ranked by '{by}' of '{region}'.",
            "Use dice or voxels of a scored region.",
        )
    score, wrong = slices.dice[region], slices.wrong_voxels[region]
    keys = (score, -wrong) if by == "dice" else (-wrong, score)
    order = np.lexsort((np.arange(len(score)), *reversed(keys)))
    return [int(n) for n in order if not np.isnan(score[n])]


def heaviest_slices(values: np.ndarray, axis: int) -> list[int]:
    """Slices along an array axis by the sum of their values, largest first; slices that sum to 0 are left out.

    For an uncertainty map the first is the most uncertain slice.

    Args:
        values: [I, J, K] non-negative numbers.
        axis: array axis that the slices are stacked along (``slice_axis``).
    """
    total = values.sum(tuple(a for a in range(values.ndim) if a != axis), dtype=np.float64)
    return [int(n) for n in np.argsort(-total, kind="stable") if total[n] > 0]


def slice_axis(grid: Grid, plane: str = "axial") -> int:
    """Array axis along which slices of that plane are stacked: the one closest to the plane's world axis."""
    if plane not in PLANES:
        raise UsageError(f"'{plane}' is not a plane.", f"Use one of {', '.join(PLANES)}.")
    direction = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    return int(np.abs(direction[PLANES[plane]]).argmax())


def slice_positions(grid: Grid, axis: int) -> np.ndarray:
    """[n] position in mm of every slice along the normal of the slices, which points right, anterior or superior."""
    others = [grid.affine[:3, a] for a in range(3) if a != axis]
    normal = np.cross(*others)
    normal = normal / np.linalg.norm(normal)
    normal = normal * np.sign(normal[np.abs(normal).argmax()])
    centers = np.outer(np.arange(grid.shape[axis]), grid.affine[:3, axis]) + grid.affine[:3, 3]
    return centers @ normal


def focus(weights: np.ndarray, grid: Grid, axis: int, index: int) -> np.ndarray:
    """World RAS position in mm worth looking at in one slice: the heaviest-weighted center of ``weights`` in it.

    Args:
        weights: [I, J, K] bool or non-negative numbers; a slice of zeros gives the slice's center.
        grid: where the voxels lie.
        axis: array axis that the slices are stacked along.
        index: which slice.
    """
    plane = np.take(weights, index, axis).astype(np.float64)
    total = plane.sum()
    if total > 0:
        center = [(plane.sum(1 - a) * np.arange(plane.shape[a])).sum() / total for a in (0, 1)]
    else:
        center = [(n - 1) / 2 for n in plane.shape]
    ijk = np.insert(np.array(center), axis, index)
    return grid.affine[:3, :3] @ ijk + grid.affine[:3, 3]


def region_diameters(labels: np.ndarray, task: Task, grid: Grid) -> dict[str, Diameters]:
    """``longest_diameters`` of every region; raises InputDataError for a shape or a label value that does not fit."""
    labels = np.asarray(labels)
    if labels.shape != tuple(grid.shape):
        raise InputDataError(
            f"The labels have the shape {labels.shape}, the grid {grid.shape}.",
            "Use their own grid.",
        )
    box = bounding_box(labels != 0)
    if box is None:
        return {r.name: Diameters() for r in task.regions}
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ [s.start for s in box]
    part = Grid(labels[box].shape, affine)
    return {
        name: longest_diameters(mask, part)
        for name, mask in region_masks(labels[box], task).items()
    }


def longest_diameters(mask: np.ndarray, grid: Grid) -> Diameters:
    """Longest diameters of the largest lesion, in mm.

    Measured from border to border between the centers of the faces of the voxels, the vertices of a marching-cubes
    surface: these are PyRadiomics' ``Maximum2DDiameterSlice`` and ``Maximum3DDiameter``. A mask of several connected components
    (neighborhood of 26) gets the largest value of any one of them, since a distance between two lesions is no diameter.

    Args:
        mask: [I, J, K] bool.
        grid: where the voxels lie.
    """
    from scipy import ndimage  # here: importing medmap.agreement needs numpy only

    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    axis = slice_axis(grid)
    flat, solid = (0.0, None), (0.0, None)
    boxes = ndimage.find_objects(components)
    edges = grid.affine[:3, :3]
    # Largest boxes first: most small components then cannot beat what was found, and are skipped.
    for n in sorted(range(count), key=lambda n: -_diagonal(boxes[n], edges)):
        if _diagonal(boxes[n], edges) <= flat[0]:
            break
        corners = _corner_voxels(components[boxes[n]] == n + 1) + [s.start for s in boxes[n]]
        solid = max(
            solid,
            _farthest(_face_centers(corners, (0, 1, 2)) @ edges.T),
            key=lambda found: found[0],
        )
        flat = max(
            flat, _farthest_in_slices(corners, axis, edges, flat[0]), key=lambda found: found[0]
        )
    ends = [None if e is None else e + grid.affine[:3, 3] for e in (flat[1], solid[1])]
    return Diameters(float(flat[0]), float(solid[0]), *ends)


def _diagonal(box: tuple[slice, ...], edges: np.ndarray) -> float:
    """An upper bound of every diameter inside the box: the longest of its four diagonals."""
    size = np.array([s.stop - s.start for s in box])
    signs = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]])
    return float(np.linalg.norm(signs * size @ edges.T, axis=1).max())


def _corner_voxels(mask: np.ndarray) -> np.ndarray:
    """[N, 3] voxels that end the mask along all three axes, among which are the corners of its convex hull.

    A corner of the hull of one slice ends the mask within that slice only, so ends along two axes suffice to stay.
    """
    ends = np.zeros(mask.shape, np.uint8)
    for axis in range(3):
        first = mask.argmax(axis)
        last = mask.shape[axis] - 1 - np.flip(mask, axis).argmax(axis)
        line = np.arange(mask.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
        ends += (line == np.expand_dims(first, axis)) | (line == np.expand_dims(last, axis))
    return np.argwhere(mask & (ends >= 2)).astype(float)


def _face_centers(voxels: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    offsets = np.concatenate([np.eye(3)[list(axes)], -np.eye(3)[list(axes)]]) / 2
    return (voxels[:, None] + offsets).reshape(-1, 3)


def _farthest_in_slices(voxels: np.ndarray, axis: int, edges: np.ndarray, least: float):
    """The farthest pair within one slice, if it is farther than ``least``: distance and [2, 3] points, or (0, None)."""
    others = tuple(a for a in range(3) if a != axis)
    order = np.argsort(voxels[:, axis], kind="stable")
    groups = np.split(voxels[order], np.flatnonzero(np.diff(voxels[order, axis])) + 1)
    slices = [_face_centers(group, others) @ edges.T for group in groups]
    # No pair is farther than twice the radius around any center, which rules out most slices.
    bounds = [2 * np.linalg.norm(p - (p.min(0) + p.max(0)) / 2, axis=1).max() for p in slices]
    best = (least, None)
    for n in np.argsort(bounds)[::-1]:
        if bounds[n] <= best[0]:
            break
        best = max(best, _farthest(slices[n], flat=True), key=lambda found: found[0])
    return best if best[1] is not None else (0.0, None)


def _farthest(points: np.ndarray, flat: bool = False) -> tuple[float, np.ndarray]:
    """Largest distance between two of [N, 3] points and the two points; ``flat`` says that they lie in a plane."""
    from scipy.spatial.distance import cdist

    if len(points) > 300:
        points = points[_hull(points, flat)]
    best, ends = -1.0, points[:2]
    for start in range(0, len(points), 1024):  # blocks, so that the matrix of distances stays small
        distance = cdist(points[start : start + 1024], points)
        a, b = np.unravel_index(distance.argmax(), distance.shape)
        if distance[a, b] > best:
            best, ends = float(distance[a, b]), np.stack([points[start + a], points[b]])
    return best, ends


def _hull(points: np.ndarray, flat: bool) -> np.ndarray:
    """Indices of the corners of the convex hull."""
    from scipy.spatial import ConvexHull

    if flat:
        centered = points - points.mean(0)
        points = centered @ np.linalg.svd(centered, full_matrices=False)[2][:2].T
    return ConvexHull(points).vertices


def _boxed(labels: np.ndarray, reference: np.ndarray, task: Task):
    """The box outside of which both are background, and the region masks of both inside it."""
    labels, reference = np.asarray(labels), np.asarray(reference)
    if labels.shape != reference.shape:
        raise InputDataError(
            f"Our segmentation has the shape {labels.shape}, the reference {reference.shape}.",
            "Resample both segmentations to one grid first.",
        )
    box = bounding_box((labels != 0) | (reference != 0)) or (slice(0, 0),) * labels.ndim
    return box, region_masks(labels[box], task), region_masks(reference[box], task)


def _known_region(name: str, task: Task) -> None:
    names = [r.name for r in task.regions]
    if name not in names:
        raise UsageError(
            f"'{name}' is not a region of the task {task.name}.", f"Use one of {', '.join(names)}."
        )
