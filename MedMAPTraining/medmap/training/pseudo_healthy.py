"""Cases whose tumor was replaced by the mirrored other side of the brain.

A cohort of patients has tumors in every case, and a network that sees nothing else finds tumors
everywhere. The other half of the same examination shows what that scanner makes of healthy tissue.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from medmap.training.cache import PreparedArrays
from medmap.training.dataset import PatchSampler, sparse_voxels
from medmap.training.transplanted import bounding_box, fading_weight

FADING_VOXELS = 3
"""Half the width of the rim in which both sides are mixed. Swelling around the labels goes with the
tumor, and a midline that is a little off leaves no edge."""

LEAST_SLICES = 1 / 3
"""Share of the brain's axial slices that must be free of tumor: fewer are hardly a brain."""


class PseudoHealthySampler(PatchSampler):
    """Random patches of cases without their tumor.

    Cases without a tumor are taken as they are, and so are those whose tumor reaches both sides in
    most slices.

    Args:
        folders: prepared cases.
        missingness: which modalities a sample shows.
        seed: of everything drawn.
        augmentation: how strongly patches are augmented.
    """

    def _drawn_case(self, rng: np.random.Generator) -> tuple[Path, PreparedArrays, np.ndarray]:
        folder, case, tumor_voxels = super()._drawn_case(rng)
        healthy = without_tumor(case)
        if healthy is None:
            return folder, case, tumor_voxels
        return folder, healthy, sparse_voxels(np.asarray(healthy.label))


def without_tumor(case: PreparedArrays) -> PreparedArrays | None:
    """The case with the other side of the brain in place of its tumor.

    Where the tumor reaches both sides, the field of view ends: the longest run of axial slices
    without a tumor is kept.

    Args:
        case: its axes run from left to right, posterior to anterior, inferior to superior.

    Returns:
        Arrays in memory; the case itself if it has no tumor; None if too few slices remain.
    """
    label = np.asarray(case.label)
    if not label.any():
        return case
    brain = np.asarray(case.brain) > 0
    mirror_sum = midline(brain)
    box = bounding_box(label > 0, 2 * FADING_VOXELS)
    tumor = torch.from_numpy(label[box] > 0)
    weight = fading_weight(tumor, FADING_VOXELS).numpy() * brain[box]
    is_replaced = weight >= 0.5
    healthy_label = label.copy()
    healthy_label[box] = np.where(is_replaced, mirrored(label, mirror_sum)[box], 0)
    slices = _free_slices(brain, healthy_label > 0)
    if slices.stop - slices.start < LEAST_SLICES * np.count_nonzero(brain.any(axis=(0, 1))):
        return None
    # Brains are not symmetric: where the other side ends earlier, this one now ends there, too.
    other_brain = mirrored(brain, mirror_sum)[box]
    healthy_brain = np.zeros_like(brain)
    healthy_brain[..., slices] = brain[..., slices]
    healthy_brain[box] &= other_brain | ~is_replaced
    weight = np.where(other_brain, weight, 0)
    images: list[np.ndarray | None] = []
    for scan in case.image:
        if scan is None:
            images.append(None)
            continue
        values = np.array(scan)
        other_side = mirrored(values, mirror_sum)[box].astype(np.float32)
        values[box] = weight * other_side + (1 - weight) * values[box].astype(np.float32)
        values[~healthy_brain] = 0
        images.append(values)
    return PreparedArrays(
        case_id=case.case_id,
        image=tuple(images),
        available=case.available,
        label=np.zeros_like(label),
        brain=healthy_brain.astype(np.uint8),
    )


def _free_slices(brain: np.ndarray, tumor: np.ndarray) -> slice:
    """The longest run of axial slices that show the brain and no tumor."""
    is_free = brain.any(axis=(0, 1)) & ~tumor.any(axis=(0, 1))
    # A slice that is not free behind the last one ends the last run.
    flags = np.append(is_free, False)
    longest = slice(0, 0)
    start = 0
    for index, flag in enumerate(flags):
        if flag:
            continue
        if index - start > longest.stop - longest.start:
            longest = slice(start, index)
        start = index + 1
    return longest


def midline(brain: np.ndarray) -> int:
    """The sum of two indices of the first axis that mirror each other.

    Args:
        brain: [D, H, W] bool.

    Returns:
        The sum at which the brain covers its mirror image best, slice by slice.
    """
    areas = brain.sum(axis=(1, 2)).astype(np.float64)
    return int(np.argmax(np.convolve(areas, areas)))


def mirrored(array: np.ndarray, mirror_sum: int) -> np.ndarray:
    """An array with left and right exchanged.

    Args:
        array: [D, H, W].
        mirror_sum: index i of the first axis shows what index ``mirror_sum - i`` holds.

    Returns:
        [D, H, W], 0 where the mirror image lies outside the array.
    """
    size = len(array)
    result = np.zeros_like(array)
    first = max(0, mirror_sum - size + 1)
    last = min(size - 1, mirror_sum)
    indices = np.arange(first, last + 1)
    result[indices] = array[mirror_sum - indices]
    return result
