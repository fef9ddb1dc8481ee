"""Slices worth looking at first, and the way there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer

from medmap.agreement import AGREEMENT, Review, error_map, focus, worst_slices

from .review import Request, slicesOf


@dataclass(frozen=True)
class WorstSlice:
    """One slice worth looking at.

    Attributes:
        index: along the slice axis of the array, from 0.
        dice: Dice of the region in it.
        wrongVoxels: voxels that only one of the two has.
        ras: world position in mm of the middle of what is wrong, to jump to.
        rank: 0 is the worst.
        count: number of slices with the region.
    """

    index: int
    dice: float
    wrongVoxels: int
    ras: tuple[float, float, float]
    rank: int
    count: int


def worstSlice(
    request: Request, comparison: Review, region: str, rank: int = 0, by: str = "dice"
) -> WorstSlice | None:
    """The slice of that rank, worst first; past the last it starts again. None when no slice has
    the region.

    Args:
        request: what was compared.
        comparison: what ``compute`` returned.
        region: a region that was scored.
        rank: 0 for the worst, 1 for the next.
        by: ``dice`` or ``voxels`` (see ``medmap.agreement.worst_slices``).
    """
    slices = slicesOf(comparison)
    order = worst_slices(slices, region, by=by)
    if not order:
        return None
    rank %= len(order)
    index = order[rank]
    return WorstSlice(
        index=index,
        dice=float(slices.dice[region][index]),
        wrongVoxels=int(slices.wrong_voxels[region][index]),
        ras=positionOfSlice(request, comparison, region, index),
        rank=rank,
        count=len(order),
    )


def worstSlices(
    request: Request, comparison: Review, region: str, count: int = 5
) -> tuple[WorstSlice, ...]:
    """The slices with the most wrong voxels, worst first; fewer where fewer have the region."""
    entries = []
    for rank in range(count):
        entry = worstSlice(request, comparison, region, rank, by="voxels")
        # Past the last slice it begins again with the first.
        if entry is None or entry.rank < rank:
            break
        entries.append(entry)
    return tuple(entries)


def positionOfSlice(
    request: Request, comparison: Review, region: str, index: int
) -> tuple[float, float, float]:
    """World position in mm of what is wrong in a slice, or of its labels where all is right.

    Args:
        request, comparison: as for ``worstSlice``.
        region: a region that was scored.
        index: along the slice axis of the array, from 0.
    """
    axis = slicesOf(comparison).axis
    # One slice only: the whole error map would cost a second per click.
    part = [slice(None)] * 3
    part[axis] = slice(index, index + 1)
    labels = request.labels[tuple(part)]
    reference = request.reference[tuple(part)]
    values = error_map(labels, reference, request.task, region)
    wrong = values > AGREEMENT
    weights = np.zeros(request.labels.shape, bool)
    weights[tuple(part)] = wrong if wrong.any() else values > 0
    right, anterior, superior = focus(weights, request.geometry.grid, axis, index)
    return float(right), float(anterior), float(superior)


def jumpTo(scene: Any, ras: tuple[float, float, float]) -> None:
    """Let every slice view of the scene show a world position, centered."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(scene, *ras, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
