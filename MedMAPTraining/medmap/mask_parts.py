"""Connected parts of a mask, looked for among cells of some millimeters.

numpy only, so that it also lives inside Slicer, which has no SciPy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medmap.boxes import bounding_box, widened_box

CELL_MM = 4.0
"""Edge of the cells in which connected parts are looked for."""

FILLED_CELL = 0.25
"""Share of a cell's voxels that makes it part of a body rather than of crumbs."""

LEAST_PART = 0.05
"""Parts smaller than this share of the largest are no brain. Parts of a brain that a limited field
of view divides, cerebellum and temporal lobes, are larger; markers and letters are smaller."""


def largest_parts(
    mask: np.ndarray, spacing: Sequence[float], least_share: float = LEAST_PART
) -> np.ndarray:
    """The mask without what lies apart from its largest connected parts.

    Parts are looked for among cells of about 4 mm of which a quarter is filled; sparser cells at
    the rim of a part belong to it. A gap of less than a cell does not divide parts.

    Args:
        mask: [I, J, K] bool.
        spacing: [3] mm.
        least_share: parts of this share of the largest one belong to the result, too.

    Returns:
        [I, J, K] bool; the mask itself where it has no filled cell.
    """
    counts = cell_counts(spacing)
    filling = filling_of_cells(mask, counts)
    box = bounding_box(filling >= FILLED_CELL)
    if box is None:
        return mask
    # Cells at the rim are less than a quarter full; without them every brain would lose its edge.
    around = widened_box(box, filling.shape)
    cells = np.zeros(filling.shape, bool)
    cells[around] = _grown(_largest_bodies(filling[around], least_share))
    if not filling[~cells].any():
        return mask
    voxels = cells & (filling > 0)
    for axis in range(3):
        voxels = voxels.repeat(counts[axis], axis)
    inside = tuple(slice(size) for size in mask.shape)
    return mask & voxels[inside]


def _largest_bodies(filling: np.ndarray, least_share: float) -> np.ndarray:
    """The connected parts of the filled cells that are not much smaller than the largest.

    Args:
        filling: [I, J, K] share of each cell, at least one of them filled.
        least_share: of the largest part.

    Returns:
        [I, J, K] bool.
    """
    remaining = filling >= FILLED_CELL
    parts: list[tuple[float, np.ndarray]] = []
    # From the fullest cell on. Slicer has no SciPy, and a head has few parts at this resolution.
    while remaining.any():
        seed = np.unravel_index(int((filling * remaining).argmax()), filling.shape)
        part = _flooded(remaining, seed)
        parts.append((float(filling[part].sum()), part))
        remaining = remaining & ~part
    largest = max(size for size, _ in parts)
    cells = np.zeros(filling.shape, bool)
    for size, part in parts:
        if size >= least_share * largest:
            cells |= part
    return cells


def cell_counts(spacing: Sequence[float]) -> list[int]:
    """Voxels along each edge of a cell."""
    return [max(1, round(CELL_MM / float(step))) for step in spacing]


def filling_of_cells(mask: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Share of the voxels of each cell that are in the mask."""
    padding = [(0, -size % count) for size, count in zip(mask.shape, counts, strict=True)]
    voxels_per_cell = int(np.prod(counts))
    # Planes are added to planes, in the smallest type that holds the count: a mean over six axes
    # goes through the voxels one by one and takes twenty times as long.
    dtype = np.min_scalar_type(voxels_per_cell)
    filled = np.pad(mask, padding).astype(dtype)
    for axis, count in enumerate(counts):
        planes = np.moveaxis(filled, axis, 0)
        sums = planes[::count].copy()
        for start in range(1, count):
            sums += planes[start::count]
        filled = np.moveaxis(sums, 0, axis)
    return filled.astype(np.float32) / np.float32(voxels_per_cell)


def _flooded(cells: np.ndarray, seed: tuple[np.intp, ...]) -> np.ndarray:
    """The connected part of the cells that holds the seed."""
    part = np.zeros_like(cells)
    part[seed] = True
    size = 0
    while (count := int(np.count_nonzero(part))) > size:
        size = count
        for axis in range(3):
            part = _spread(part, axis) & cells
    return part


def _grown(cells: np.ndarray) -> np.ndarray:
    """The cells and all that touch them, corners included."""
    for axis in range(3):
        cells = _spread(cells, axis)
    return cells


def _spread(cells: np.ndarray, axis: int) -> np.ndarray:
    """The cells and their two neighbors along an axis."""
    result = cells.copy()
    first = [slice(None)] * 3
    second = [slice(None)] * 3
    first[axis] = slice(1, None)
    second[axis] = slice(None, -1)
    result[tuple(first)] |= cells[tuple(second)]
    result[tuple(second)] |= cells[tuple(first)]
    return result
