"""Whether a scan still has its skull. numpy only: the panel asks before PyTorch is loaded."""

from __future__ import annotations

import numpy as np

from medmap.checks import brain_ml, more_than_brain
from medmap.volume import Volume

MIN_HEAD_ML = 100.0
"""Less is no head, and too little to judge: such a scan is taken as it is."""

CELL_MM = 4.0
"""Voxels are looked at this far apart: thinner than scalp and skull together, and fast."""

DARK = 0.25
"""Bone and air have less than this share of the head's median intensity."""

FIRST_LAYER = 1
LAST_LAYER = 3
"""Layers of cells below the outer surface in which bone lies: 4 to 12 mm deep. The layer above is
scalp, or the partly filled border of a brain."""

DARK_SHARE = 0.08
"""Share of dark cells in these layers from which they are bone. 124 stripped scans of 31 patients
have at most 0.065. Whole heads are recognized by their volume; of 24 slabs of heads, 6 had less
than this (docs/experiments/preparation.md)."""


def has_skull(volume: Volume) -> bool:
    """Whether a scan shows more than a brain.

    Either there is more foreground than a brain has, or there is bone below the surface: dark
    layers under bright scalp. A limited field of view of a head has little foreground but bone.

    Args:
        volume: scan of a head or of a brain.
    """
    if brain_ml(volume) < MIN_HEAD_ML:
        return False
    if more_than_brain(volume):
        return True
    return _dark_share(volume) > DARK_SHARE


def _dark_share(volume: Volume) -> float:
    """Share of dark cells in the layers where a head has its skull."""
    steps = [max(1, round(CELL_MM / float(size))) for size in volume.grid.spacing]
    cells = tuple(slice(step // 2, None, step) for step in steps)
    background = volume.foreground_parts.background
    intensities = np.abs(volume.array[cells] - background)
    is_foreground = volume.foreground[cells]
    if not is_foreground.any():
        return 0.0
    dark = DARK * float(np.median(intensities[is_foreground]))
    remaining = _filled(is_foreground)
    dark_count = 0
    count = 0
    for layer in range(LAST_LAYER):
        inner = _eroded(remaining)
        shell = intensities[remaining & ~inner]
        if layer >= FIRST_LAYER:
            dark_count += int(np.count_nonzero(shell < dark))
            count += shell.size
        remaining = inner
    return dark_count / max(1, count)


def _filled(mask: np.ndarray) -> np.ndarray:
    """The mask and what it encloses: cells between two of its cells along at least two axes."""
    enclosing_axes = np.zeros(mask.shape, np.uint8)
    for axis in range(3):
        before = np.maximum.accumulate(mask, axis)
        after = np.flip(np.maximum.accumulate(np.flip(mask, axis), axis), axis)
        enclosing_axes += before & after
    return enclosing_axes >= 2


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The mask without the cells that touch its outside; beyond the field of view is inside."""
    result = mask.copy()
    for axis in range(3):
        first = [slice(None)] * 3
        second = [slice(None)] * 3
        first[axis] = slice(1, None)
        second[axis] = slice(None, -1)
        result[tuple(first)] &= mask[tuple(second)]
        result[tuple(second)] &= mask[tuple(first)]
    return result
