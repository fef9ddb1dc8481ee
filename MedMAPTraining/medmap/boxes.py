"""Boxes of voxels: one slice per axis. numpy only, so that they also live inside Slicer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Smallest box, one slice per axis, around the True elements of a mask; None without any."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        # Within the sides that are known already: later axes have less to go through.
        inner = mask[tuple(box)]
        other_axes = tuple(a for a in range(mask.ndim) if a != axis)
        hit = np.flatnonzero(inner.any(axis=other_axes))
        if not len(hit):
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def widened_box(box: Sequence[slice], shape: Sequence[int]) -> tuple[slice, ...]:
    """The box and one voxel more on every side, as far as the array goes."""
    sides = []
    for side, size in zip(box, shape, strict=True):
        sides.append(slice(max(side.start - 1, 0), min(side.stop + 1, size)))
    return tuple(sides)
