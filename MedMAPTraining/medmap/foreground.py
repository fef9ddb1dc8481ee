"""Brain and background of a skull-stripped scan. numpy only, so that it also lives inside Slicer."""

from __future__ import annotations

import numpy as np


def background_value(array: np.ndarray) -> float | None:
    """The constant around a skull-stripped brain: 0 mostly, something else after a z-score; None if there is none.

    It is the most frequent exact value on the six faces of the volume, if it makes up 5 % of them and is three times
    as frequent as any other value (else it may be quantized noise in air).

    Args:
        array: [I, J, K] intensities; NaN and Inf are left out.
    """
    return _dominant(_faces(array), least=0.05)


def foreground(array: np.ndarray) -> tuple[np.ndarray, float]:
    """What is brain in a skull-stripped scan: finite voxels that differ from the background.

    Without a constant background (``background_value`` is None) the smallest value takes its place, so that nearly
    everything is foreground. A second constant that covers most of the faces of what is left is background, too:
    scans that were normalized first and padded afterwards. The result moves with the voxels under flips and
    permutations of the axes; the cost is a few passes over the array.

    Args:
        array: [I, J, K] intensities.

    Returns:
        [I, J, K] bool mask, and the background value (the outer one if there are two; 0 for an array without any
        finite voxel).
    """
    background = background_value(array)
    finite = np.isfinite(array)
    if background is None:
        background = float(array[finite].min()) if finite.any() else 0.0
        return finite & (array != background), background
    mask = finite & (array != array.dtype.type(background))
    box = bounding_box(mask)
    if box is not None:
        inner = _dominant(_faces(array[box]), least=0.5)
        if inner is not None and inner != background:
            mask &= array != array.dtype.type(inner)
    return mask, background


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Smallest box, one slice per axis, around the True elements of a mask of any dimension; None without any."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(hit):
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def _faces(array: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [np.take(array, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    )


def _dominant(values: np.ndarray, least: float) -> float | None:
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    distinct, counts = np.unique(values, return_counts=True)
    top = int(counts.argmax())
    runner_up = np.delete(counts, top).max(initial=0)
    return float(distinct[top]) if counts[top] >= max(least * values.size, 3 * runner_up) else None
