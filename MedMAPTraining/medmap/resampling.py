"""Moving arrays between grids: exact flips and permutations where they suffice, linear interpolation elsewhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medmap.volume import Grid


def canonical_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to permute and flip array axes so that they run closest to right, anterior and superior (RAS).

    Args:
        affine: [4, 4] voxel index -> world RAS in mm.

    Returns:
        ``order``: the array axis that becomes axis 0, 1, 2; ``flip``: whether that axis is then reversed.
    """
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    order, taken = [], set()
    # The assignment with the largest total alignment; six permutations are few enough to try all.
    best = max(
        ((a, b, c) for a in range(3) for b in range(3) for c in range(3) if len({a, b, c}) == 3),
        key=lambda axes: sum(abs(direction[world, axis]) for world, axis in enumerate(axes)),
    )
    for axis in best:
        order.append(axis)
        taken.add(axis)
    flip = tuple(bool(direction[world, axis] < 0) for world, axis in enumerate(order))
    return tuple(order), flip


def canonical_grid(grid: Grid) -> Grid:
    """The same voxels with axes closest to RAS."""
    order, flip = canonical_axes(grid.affine)
    affine = grid.affine.copy()
    affine[:3, :3] = grid.affine[:3, list(order)]
    shape = tuple(grid.shape[axis] for axis in order)
    for axis in range(3):
        if flip[axis]:
            affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
            affine[:3, axis] *= -1
    return Grid(shape, affine)


def reorient(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """A view of [I, J, K] with axes closest to RAS, and its grid. No voxel changes."""
    order, flip = canonical_axes(grid.affine)
    view = array.transpose(order)[tuple(slice(None, None, -1) if f else slice(None) for f in flip)]
    return view, canonical_grid(grid)


def restore_orientation(array: np.ndarray, grid: Grid) -> np.ndarray:
    """Undo ``reorient``: an array with axes closest to RAS -> the axis order of ``grid``."""
    order, flip = canonical_axes(grid.affine)
    unflipped = array[tuple(slice(None, None, -1) if f else slice(None) for f in flip)]
    return unflipped.transpose(np.argsort(order))


def resample_linear(
    image: Tensor, source: Grid, target: Grid, nearest: int | None = None
) -> Tensor:
    """Linear interpolation of [C, I, J, K] on ``source`` at the voxels of ``target``; outside is 0.

    Where the source is much finer than the target, it is averaged first, so that nothing aliases.

    Args:
        nearest: axis of the source along which the nearest voxel is taken instead: the one across thick slices.

    Returns:
        [C, *target.shape] of the same dtype.
    """
    image, source = _average(image, source, target)
    matrix = np.linalg.inv(source.affine) @ target.affine
    result = image.new_zeros((image.shape[0], *target.shape))
    axes = [torch.arange(n, dtype=torch.float64) for n in target.shape]
    size = torch.tensor([max(n, 1) for n in source.shape], dtype=torch.float64)
    for start in range(
        0, target.shape[0], 16
    ):  # slabs, so that coordinates of a whole head need not fit at once
        ijk = torch.stack(
            torch.meshgrid(axes[0][start : start + 16], axes[1], axes[2], indexing="ij"), -1
        )
        position = ijk @ torch.from_numpy(matrix[:3, :3].T.copy()) + torch.from_numpy(
            matrix[:3, 3].copy()
        )
        if nearest is not None:
            position[..., nearest] = torch.floor(position[..., nearest] + 0.5 - 1e-6)
        unit = ((2 * position + 1) / size - 1).flip(-1).to(image.dtype)
        slab = torch.nn.functional.grid_sample(
            image[None], unit[None], mode="bilinear", align_corners=False
        )
        result[:, start : start + 16] = slab[0]
    return result


def _average(image: Tensor, source: Grid, target: Grid) -> tuple[Tensor, Grid]:
    """Average whole voxels along axes on which the source is at least twice as fine as the target."""
    factors = [max(1, int(target.spacing.min() / s + 1e-3)) for s in source.spacing]
    if max(factors) == 1:
        return image, source
    factors = [min(f, n) for f, n in zip(factors, source.shape, strict=True)]
    pooled = torch.nn.functional.avg_pool3d(
        image[None], factors, ceil_mode=True, count_include_pad=False
    )[0]
    affine = source.affine.copy()
    affine[:3, :3] = source.affine[:3, :3] * factors
    affine[:3, 3] += source.affine[:3, :3] @ ((np.array(factors) - 1) / 2)
    return pooled, Grid(tuple(pooled.shape[1:]), affine)


def resample_nearest(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Nearest-voxel resampling of an [I, J, K] integer array; 0 outside."""
    matrix = np.linalg.inv(source.affine) @ target.affine
    result = np.zeros(target.shape, labels.dtype)
    j, k = np.meshgrid(np.arange(target.shape[1]), np.arange(target.shape[2]), indexing="ij")
    for i in range(target.shape[0]):
        ijk = np.stack([np.full(j.size, i), j.ravel(), k.ravel()])
        index = np.round(matrix[:3, :3] @ ijk + matrix[:3, 3:]).astype(int)
        inside = ((index >= 0) & (index < np.array(source.shape)[:, None])).all(0)
        plane = np.zeros(j.size, labels.dtype)
        plane[inside] = labels[tuple(index[:, inside])]
        result[i] = plane.reshape(j.shape)
    return result
