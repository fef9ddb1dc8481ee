"""Scans as they are looked at after every click: every second or third voxel, at the same place.

Nothing in the scene is changed, and voxels are copied only when a scan is new or has changed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer.util

from medmap.errors import InputDataError
from medmap.volume import Grid, Volume

from .geometry import ijkToRAS, parentToWorld
from .scene import shapeOf

MAX_SAMPLED_VOXELS = 400_000
"""Number of voxels to look at in each volume. On eleven real cases the plan of preparation is the
same as with all voxels, in a tenth of the time."""

Key = tuple[int, bytes]


def gridOf(node: Any) -> Grid:
    """Where a volume node's voxels lie in the world, without copying them.

    Raises:
        InputDataError: no voxels, or a non-linear transform.
    """
    shape = shapeOf(node)
    if shape is None:
        raise InputDataError(
            f"The volume '{node.GetName()}' has no voxels.", "Choose another volume."
        )
    return Grid(shape, parentToWorld(node) @ ijkToRAS(node))


def sampledVolume(node: Any) -> Volume:
    """Every n-th voxel of a node as a volume at the same place; NaN and infinite become 0.

    Raises:
        InputDataError: no voxels, several values per voxel, or a non-linear transform.
    """
    grid = gridOf(node)
    kji = slicer.util.arrayFromVolume(node)
    if kji.ndim != 3:
        raise InputDataError(
            f"The volume '{node.GetName()}' has several values per voxel.",
            "Choose a volume with one value per voxel.",
        )
    step = max(1, int(np.ceil((kji.size / MAX_SAMPLED_VOXELS) ** (1 / 3))))
    # At least eight samples along each axis: few thick slices stay as they are.
    steps = np.minimum(step, np.maximum(1, np.array(grid.shape) // 8))
    every_nth = tuple(slice(None, None, int(size)) for size in steps)
    ijk = kji.transpose(2, 1, 0)[every_nth]
    array = np.nan_to_num(np.array(ijk, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    affine = grid.affine @ np.diag([*map(float, steps), 1.0])
    return Volume(array, affine, node.GetName())


def stateOf(node: Any) -> Key:
    """Changes whenever the voxels of a volume node or their place do.

    Raises InputDataError as ``gridOf`` does.
    """
    affine = gridOf(node).affine.tobytes()
    return node.GetImageData().GetMTime(), affine


class ScanSamples:
    """Sampled volumes of nodes, kept until a node changes."""

    def __init__(self) -> None:
        self._volumes: dict[str, tuple[Key, Volume]] = {}

    def volume(self, node: Any) -> Volume:
        """The sampled volume of a node. Raises InputDataError as ``sampledVolume`` does."""
        key = stateOf(node)
        entry = self._volumes.get(node.GetID())
        if entry is None or entry[0] != key:
            entry = (key, sampledVolume(node))
            self._volumes[node.GetID()] = entry
        return entry[1]

    def clear(self) -> None:
        """Forget all of them: the scene is closed."""
        self._volumes.clear()
