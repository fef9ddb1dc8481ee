"""Whether a scan still has its skull. numpy only: the panel asks before PyTorch is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medmap.checks import brain_ml, more_than_brain
from medmap.volume import Volume

MIN_HEAD_ML = 100.0
"""Less is no head, and too little to judge: such a scan is taken as it is."""

CELL_MM = 4.0
"""Voxels are looked at this far apart: thinner than scalp and skull together, and fast."""

GAP = 0.5
"""A cell with less than this share of the cells outside it lies in a gap: bone under scalp."""

GAP_LAYERS = (1, 2, 3)
"""Layers of cells below the outer surface in which bone lies: 4 to 16 mm deep. The layer above is
scalp, or the partly filled border of a brain."""

RIM_LAYERS = (1, 2)
DEEP_LAYER = 4
"""Fat of the scalp lies 4 to 12 mm deep, and is brighter than what lies at 16 to 20 mm."""

LOWEST_DEEP = 0.3
"""Least share of the head's median that the deep layer is taken to have: air cells and orbits."""

RIM_WEIGHT = 0.1
NOISY_RIM_WEIGHT = 0.2
"""How much of the rim's surplus counts. Fluid around an atrophied brain is a bright rim in T2, too,
but where air is noisy nothing has been stripped, as a rule."""

MAX_SURPLUS = 1.0
"""The rim counts up to twice the brightness of the deep layer. Fluid in T2 has three times it."""

EVIDENCE = 0.17
"""Evidence from which there is a skull. Of 87 slabs of heads none has less than 0.18; of 162 slabs
of stripped scans none has more than 0.16, and of 54 whole ones none more than 0.10
(docs/experiments/preparation.md)."""


def has_skull(volume: Volume) -> bool:
    """Whether a scan shows more than a brain.

    Either there is more foreground than a brain has, or there is a skull below the surface: a dark
    gap between scalp and brain, and a rim of bright fat. A limited field of view of a head has
    little foreground, but both of them.

    Args:
        volume: scan of a head or of a brain.
    """
    if brain_ml(volume) < MIN_HEAD_ML:
        return False
    if more_than_brain(volume):
        return True
    return skull_evidence(volume) > EVIDENCE


def skull_evidence(volume: Volume) -> float:
    """Share of the cells below the surface that lie in a gap, plus the surplus of a bright rim."""
    steps = [max(1, round(CELL_MM / float(size))) for size in volume.grid.spacing]
    cells = tuple(slice(step // 2, None, step) for step in steps)
    parts = volume.foreground_parts
    is_foreground = parts.mask[cells]
    if not is_foreground.any():
        return 0.0
    # Relative to the median of the foreground: intensities of MRI have no unit.
    intensities = np.abs(volume.array[cells] - parts.background)
    median = float(np.median(intensities[is_foreground]))
    intensities = intensities / max(median, 1e-6)
    head = _filled(is_foreground)
    layers = _layers(head)
    weight = NOISY_RIM_WEIGHT
    if parts.is_constant:
        weight = RIM_WEIGHT
    excess = _rim_brightness(intensities, layers) - 1.0
    surplus = float(np.clip(excess, 0.0, MAX_SURPLUS))
    return _gap_share(intensities, layers) + weight * surplus


def _layers(body: np.ndarray) -> list[np.ndarray]:
    """Masks of the layers of cells below the surface of a body, the outermost first."""
    layers = []
    remaining = body
    for _ in range(DEEP_LAYER + 1):
        inner = _eroded(remaining)
        layers.append(remaining & ~inner)
        remaining = inner
    return layers


def _gap_share(intensities: np.ndarray, layers: Sequence[np.ndarray]) -> float:
    """Share of the cells that are darker than cells outside them, and than the body's median."""
    outside = layers[0]
    gap_count = 0
    count = 0
    for number in GAP_LAYERS:
        layer = layers[number]
        outer_intensities = np.where(outside, intensities, 0.0)
        around = _brightest_neighbor(outer_intensities)[layer]
        # 1 is the body's median: a cell below bright fat is no gap unless it is dark by itself.
        darkness = GAP * np.minimum(around, 1.0)
        gap_count += int(np.count_nonzero(intensities[layer] < darkness))
        count += int(np.count_nonzero(layer))
        outside = outside | layer
    return gap_count / max(1, count)


def _rim_brightness(intensities: np.ndarray, layers: Sequence[np.ndarray]) -> float:
    """Intensity of the bright layer below the surface, relative to that of the deep layer."""
    deep_layer = layers[DEEP_LAYER]
    if not deep_layer.any():
        return 1.0
    medians = []
    for number in RIM_LAYERS:
        layer_intensities = intensities[layers[number]]
        medians.append(float(np.median(layer_intensities)))
    deep = float(np.median(intensities[deep_layer]))
    return max(medians) / max(deep, LOWEST_DEEP)


def _brightest_neighbor(intensities: np.ndarray) -> np.ndarray:
    """Largest intensity of a cell and all that touch it, corners included."""
    brightest = intensities
    for axis in range(3):
        without_first, without_last = _shifted(axis)
        # Each half is compared with the other one, in both directions.
        upper = brightest[without_first]
        lower = brightest[without_last]
        spread = brightest.copy()
        spread[without_first] = np.maximum(spread[without_first], lower)
        spread[without_last] = np.maximum(spread[without_last], upper)
        brightest = spread
    return brightest


def _shifted(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Indices of all cells but the first, and of all but the last, along one axis.

    Together they pair every cell with its neighbor.
    """
    without_first = [slice(None)] * 3
    without_last = [slice(None)] * 3
    without_first[axis] = slice(1, None)
    without_last[axis] = slice(None, -1)
    return tuple(without_first), tuple(without_last)


def _filled(mask: np.ndarray) -> np.ndarray:
    """The mask and what it encloses: cells between two of its cells along at least two axes."""
    enclosing_axes = np.zeros(mask.shape, np.uint8)
    for axis in range(3):
        before = np.maximum.accumulate(mask, axis)
        reversed_mask = np.flip(mask, axis)
        reversed_after = np.maximum.accumulate(reversed_mask, axis)
        after = np.flip(reversed_after, axis)
        enclosing_axes += before & after
    # Along one axis alone the groove between two lobes would count as enclosed.
    return enclosing_axes >= 2


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The mask without the cells that touch its outside; beyond the field of view is inside."""
    result = mask.copy()
    for axis in range(3):
        without_first, without_last = _shifted(axis)
        result[without_first] &= mask[without_last]
        result[without_last] &= mask[without_first]
    return result
