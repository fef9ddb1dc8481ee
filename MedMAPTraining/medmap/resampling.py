"""Arrays from grid to grid: exact flips and permutations if they suffice, else interpolation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import torch
from torch import Tensor

from medmap.tensors import from_array, to_array
from medmap.volume import Grid

SLAB = 16
"""Planes that are interpolated at a time: coordinates of a whole brain need not fit into memory."""

HALFWAY = 0.5 + 1e-6
"""A point halfway between two slices takes the lower one, whatever its rounding error."""

STRAIGHT_VOXELS = 1e-4
"""Grids whose axes leave each other's by less than this at every corner are interpolated axis by
axis. What headers round away is less, and what it changes is lost in the rounding of float32."""

SAME_LATTICE_VOXELS = 0.1
"""Lattices that agree this well at every corner are the same: voxels are copied."""


def canonical_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How array axes are permuted and flipped to run closest to right, anterior, superior (RAS).

    Args:
        affine: [4, 4] voxel index -> world RAS in mm.

    Returns:
        ``order``: the array axis that becomes axis 0, 1, 2; ``flip``: whether it is reversed.
    """
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs(direction)

    def alignment(axes: tuple[int, ...]) -> float:
        return sum(cosines[world, axis] for world, axis in enumerate(axes))

    # The assignment with the largest total alignment; six permutations are few enough to try all.
    first, second, third = max(permutations(range(3)), key=alignment)
    order = (first, second, third)
    flips = [bool(direction[world, axis] < 0) for world, axis in enumerate(order)]
    return order, (flips[0], flips[1], flips[2])


@dataclass(frozen=True)
class Orientation:
    """How the voxels of a grid are turned to RAS and back.

    Attributes:
        order: the array axis that becomes axis 0, 1, 2.
        flip: whether that axis is reversed.
        canonical: the same voxels with axes closest to RAS.
    """

    order: tuple[int, int, int]
    flip: tuple[bool, bool, bool]
    canonical: Grid

    def reorient(self, array: np.ndarray) -> np.ndarray:
        """A view of [I, J, K] with axes closest to RAS. No voxel changes."""
        return array.transpose(self.order)[self._reversal()]

    def restore(self, array: np.ndarray) -> np.ndarray:
        """Undo ``reorient``: axes closest to RAS -> the axis order of the grid."""
        return array[self._reversal()].transpose(np.argsort(self.order))

    def within(self, box: tuple[slice, ...]) -> Orientation:
        """The same of a box of voxels [I, J, K] of the grid."""
        sides = []
        for axis in range(3):
            side = box[self.order[axis]]
            if self.flip[axis]:
                size = self.canonical.shape[axis]
                side = slice(size - side.stop, size - side.start)
            sides.append(side)
        return Orientation(self.order, self.flip, part_of_grid(self.canonical, tuple(sides)))

    def _reversal(self) -> tuple[slice, ...]:
        forward = slice(None)
        backward = slice(None, None, -1)
        return tuple(backward if flip else forward for flip in self.flip)


def orientation_of(grid: Grid) -> Orientation:
    """How the voxels of a grid are turned to RAS."""
    order, flip = canonical_axes(grid.affine)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, list(order)]
    shape = (grid.shape[order[0]], grid.shape[order[1]], grid.shape[order[2]])
    for axis in range(3):
        if flip[axis]:
            # The origin moves to what was the last voxel of this axis.
            affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
            affine[:3, axis] *= -1
    return Orientation(order, flip, Grid(shape, affine))


def canonical_grid(grid: Grid) -> Grid:
    """The same voxels with axes closest to RAS."""
    return orientation_of(grid).canonical


def reorient(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """A view of [I, J, K] with axes closest to RAS, and its grid. No voxel changes."""
    orientation = orientation_of(grid)
    return orientation.reorient(array), orientation.canonical


def restore_orientation(array: np.ndarray, grid: Grid) -> np.ndarray:
    """Undo ``reorient``: an array with axes closest to RAS -> the axis order of ``grid``."""
    return orientation_of(grid).restore(array)


def slice_axis_of(grid: Grid) -> int:
    """The axis across slices: of the largest voxels; among equals the closest to head and feet.

    Args:
        grid: with axes closest to RAS (``canonical_grid``).
    """
    # Headers store spacings with a few digits only: within 1 % they count as equal.
    relative = np.round(grid.spacing / grid.spacing.max(), 2)
    return max(range(3), key=lambda axis: (relative[axis], axis))


def lattice_offset(canonical: Grid, target: Grid) -> np.ndarray | None:
    """Where a grid begins on the lattice of another one.

    Args:
        canonical: a grid with axes closest to RAS.
        target: the grid whose lattice is asked about.

    Returns:
        [3] int index of the first voxel in ``target``; None if the two grids are no common lattice.
    """
    matrix = target.affine[:3, :3]
    exact = np.linalg.solve(matrix, canonical.affine[:3, 3] - target.affine[:3, 3])
    offset = np.round(exact).astype(int)
    affine = target.affine.copy()
    affine[:3, 3] += matrix @ offset
    on_lattice = Grid(canonical.shape, affine)
    if on_lattice.distance(canonical) < SAME_LATTICE_VOXELS * target.spacing.min():
        return offset
    return None


def resample_to_grid(
    array: np.ndarray, orientation: Orientation, target: Grid, slices: bool = False
) -> Tensor:
    """Bring one array onto a working grid; outside is 0. Copies voxels where the lattices coincide.

    Args:
        array: [I, J, K] of numbers or bool.
        orientation: of the array's grid.
        target: the working grid.
        slices: across the source's slices the nearest one is taken, and none farther than half
            their distance.

    Returns:
        [*target.shape] float32.
    """
    # In canonical order, so that every stored orientation interpolates in the same order of axes.
    canonical = orientation.canonical
    # What the target does not show is not even copied.
    box = visible_box(canonical, target)
    view = orientation.reorient(array)[box]
    canonical = part_of_grid(canonical, box)
    if 0 in view.shape:
        return torch.zeros(target.shape)
    image = from_array(np.ascontiguousarray(view, np.float32))
    offset = lattice_offset(canonical, target)
    if offset is not None:
        return paste(image, offset, target.shape)
    nearest = None
    if slices:
        nearest = slice_axis_of(orientation.canonical)
    return resample_linear(image[None], canonical, target, nearest)[0]


def visible_box(grid: Grid, target: Grid) -> tuple[slice, ...]:
    """The part of a grid that an array on it is resampled from.

    Everything where voxels are averaged first: another first voxel would average others.
    """
    if max(_averaging_factors(grid, target)) > 1:
        return tuple(slice(0, size) for size in grid.shape)
    all_of_target = tuple(slice(0, size) for size in target.shape)
    return covering_box(all_of_target, target, grid)


def to_grid(array: np.ndarray, source: Grid, target: Grid, slices: bool = False) -> Tensor:
    """``resample_to_grid`` for an array whose grid is turned here."""
    return resample_to_grid(array, orientation_of(source), target, slices)


def paste(block: Tensor, start: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """Put a block into zeros so that its first voxel lands at an index; what sticks out is cut.

    Args:
        block: [I, J, K].
        start: [3] index of the block's first voxel, possibly negative.
        shape: of the result.
    """
    result = torch.zeros(shape, dtype=block.dtype)
    target = []
    source = []
    for first, size, space in zip(start, block.shape, shape, strict=True):
        low = max(int(first), 0)
        high = min(int(first) + size, space)
        if low >= high:
            return result
        target.append(slice(low, high))
        source.append(slice(low - int(first), high - int(first)))
    result[tuple(target)] = block[tuple(source)]
    return result


def resample_linear(
    image: Tensor, source: Grid, target: Grid, nearest: int | None = None
) -> Tensor:
    """Linear interpolation at the voxels of another grid; outside is 0.

    Where the source is much finer than the target, it is averaged first, so that nothing aliases.

    Args:
        image: [C, I, J, K] on ``source``.
        source: grid of the image.
        target: grid of the result.
        nearest: axis of the source along which the nearest voxel is taken instead: the one across
            thick slices.

    Returns:
        [C, *target.shape] of the same dtype.
    """
    image, source = _averaged(image, source, target)
    to_source = np.linalg.inv(source.affine) @ target.affine
    if _is_straight(to_source, target.shape):
        return _resampled_by_axis(image, to_source, target.shape, nearest)
    result = image.new_zeros((image.shape[0], *target.shape))
    size = torch.tensor(source.shape, dtype=torch.float64)
    for start in range(0, target.shape[0], SLAB):
        rows = slice(start, min(start + SLAB, target.shape[0]))
        position = _positions_in(source, target, rows)
        if nearest is not None:
            position[..., nearest] = torch.ceil(position[..., nearest] - HALFWAY)
        # grid_sample counts from -1 to 1 between the outer edges of the first and the last voxel,
        # and names the last axis first.
        unit = (2 * position + 1) / size - 1
        slab = torch.nn.functional.grid_sample(
            image[None],
            unit.flip(-1).to(image.dtype)[None],
            mode="bilinear",
            align_corners=False,
        )
        result[:, rows] = slab[0]
    return result


def _positions_in(source: Grid, target: Grid, rows: slice) -> Tensor:
    """[N, J, K, 3] voxel positions in ``source`` of some rows of ``target``.

    float64: the rounding of float32 would decide which of two slices is the nearest one.
    """
    to_source = np.linalg.inv(source.affine) @ target.affine
    rotation = from_array(to_source[:3, :3].T.copy())
    shift = from_array(to_source[:3, 3].copy())
    i = torch.arange(rows.start, rows.stop, dtype=torch.float64)
    j = torch.arange(target.shape[1], dtype=torch.float64)
    k = torch.arange(target.shape[2], dtype=torch.float64)
    index = torch.stack(torch.meshgrid(i, j, k, indexing="ij"), -1)
    return index @ rotation + shift


def _is_straight(to_source: np.ndarray, shape: tuple[int, int, int]) -> bool:
    """Whether each axis of one grid runs along the same axis of the other, up to rounding."""
    directions = to_source[:3, :3]
    sideways = np.abs(directions - np.diag(np.diag(directions)))
    return bool((sideways @ np.array(shape)).max() < STRAIGHT_VOXELS)


def _resampled_by_axis(
    image: Tensor, to_source: np.ndarray, shape: tuple[int, int, int], nearest: int | None
) -> Tensor:
    """``resample_linear`` between grids with parallel axes: two products per voxel and axis instead
    of eight at positions that are computed for every voxel.
    """
    positions = []
    for axis in range(3):
        position = to_source[axis, axis] * np.arange(shape[axis]) + to_source[axis, 3]
        if axis == nearest:
            position = np.ceil(position - HALFWAY)
        positions.append(position)
        start = int(np.clip(np.floor(position.min()), 0, image.shape[axis + 1] - 1))
        stop = int(np.clip(np.ceil(position.max()) + 1, start + 1, image.shape[axis + 1]))
        image = image.narrow(axis + 1, start, stop - start)
        position -= start
    for axis, position in enumerate(positions, 1):
        image = _interpolated_along(image, axis, position)
    return image


def _interpolated_along(image: Tensor, axis: int, position: np.ndarray) -> Tensor:
    """Linear interpolation at positions along one axis of [C, I, J, K]; outside is 0."""
    size = image.shape[axis]
    if axis == 3:
        # Single voxels are gathered slowly; as a matrix product this axis takes half the time.
        hats = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size)))
        return image @ from_array(hats.T).to(image.dtype)
    shape = list(image.shape)
    shape[axis] = len(position)
    values = to_array(image)
    planes = np.moveaxis(values, axis, 0)
    result = np.zeros(shape, values.dtype)
    # Plane by plane, so that terms stay in the cache: as whole volumes they take three times as
    # long, most of it for memory that is used once.
    target_planes = np.moveaxis(result, axis, 0)
    product = np.empty_like(target_planes[0])
    for coordinate, plane in zip(position.tolist(), target_planes, strict=True):
        lower = math.floor(coordinate)
        upper_share = coordinate - lower
        is_empty = True
        for index, share in ((lower, 1 - upper_share), (lower + 1, upper_share)):
            # Every second position lies on a plane where 1 mm become 1.5.
            if share == 0 or not 0 <= index < size:
                continue
            if is_empty:
                np.multiply(planes[index], share, out=plane)
                is_empty = False
            else:
                np.multiply(planes[index], share, out=product)
                plane += product
    return from_array(result)


def _averaging_factors(source: Grid, target: Grid) -> list[int]:
    """Voxels along each axis that are averaged, where the source is at least twice as fine."""
    factors = []
    for spacing, size in zip(source.spacing, source.shape, strict=True):
        factor = max(1, int(target.spacing.min() / spacing + 1e-3))
        factors.append(min(factor, size))
    return factors


def _averaged(image: Tensor, source: Grid, target: Grid) -> tuple[Tensor, Grid]:
    """Average whole voxels along axes on which the source is at least twice as fine."""
    factors = _averaging_factors(source, target)
    if max(factors) == 1:
        return image, source
    pooled = torch.nn.functional.avg_pool3d(
        image[None], factors, ceil_mode=True, count_include_pad=False
    )[0]
    affine = source.affine.copy()
    affine[:3, :3] = source.affine[:3, :3] * factors
    # The first pooled voxel lies in the middle of those that it averages.
    affine[:3, 3] += source.affine[:3, :3] @ ((np.array(factors) - 1) / 2)
    i, j, k = pooled.shape[1:]
    return pooled, Grid((i, j, k), affine)


def part_of_grid(grid: Grid, box: tuple[slice, ...]) -> Grid:
    """The grid of a box of voxels."""
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
    i, j, k = (side.stop - side.start for side in box)
    return Grid((i, j, k), affine)


def covering_box(box: tuple[slice, ...], grid: Grid, other: Grid) -> tuple[slice, ...]:
    """The part of another grid within a voxel of a box of voxels of a grid; possibly empty."""
    sides = [(side.start - 1, side.stop) for side in box]
    corners = np.array([(*corner, 1) for corner in product(*sides)])
    positions = (np.linalg.solve(other.affine, grid.affine) @ corners.T)[:3]
    low = np.floor(positions.min(1)).astype(int)
    high = np.ceil(positions.max(1)).astype(int) + 1
    covering = []
    for start, stop, size in zip(low, high, other.shape, strict=True):
        first = min(max(int(start), 0), size)
        covering.append(slice(first, max(min(int(stop), size), first)))
    return tuple(covering)


def resample_nearest(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Nearest-voxel resampling of an [I, J, K] integer array; 0 outside."""
    to_source = np.linalg.inv(source.affine) @ target.affine
    result = np.zeros(target.shape, labels.dtype)
    limits = np.array(source.shape)[:, None]
    plane_shape = target.shape[1:]
    j, k = np.indices(plane_shape).reshape(2, -1)
    # Plane by plane: the positions of a whole brain volume take 200 MB.
    for i in range(target.shape[0]):
        positions = np.stack([np.full(j.size, i), j, k])
        exact = to_source[:3, :3] @ positions + to_source[:3, 3:]
        index = np.round(exact).astype(int)
        is_inside = ((index >= 0) & (index < limits)).all(0)
        plane = np.zeros(j.size, labels.dtype)
        plane[is_inside] = labels[tuple(index[:, is_inside])]
        result[i] = plane.reshape(plane_shape)
    return result
