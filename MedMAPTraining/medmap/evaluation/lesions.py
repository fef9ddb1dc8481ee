"""Scores by lesion, as the BraTS challenges of 2023 and later rank segmentations.

Source: Saluja et al., "BraTS 2023 lesion-wise performance metrics"
(https://github.com/rachitsaluja/BraTS-2023-Metrics); written from its description. A case with one
large and ten small lesions is scored by eleven numbers, so that missed small lesions count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medmap.boxes import bounding_box
from medmap.errors import UsageError
from medmap.evaluation.surfaces import area_weighted_hd95, surface_distances
from medmap.metrics import dice

PENALTY_MM = 374.0
"""HD95 of a missed lesion and of a false one: the diagonal of BraTS's grid, rounded up."""


@dataclass(frozen=True)
class LesionRule:
    """What counts as one lesion.

    Attributes:
        name: of the challenge.
        dilation: voxels by which the reference is grown; parts that then touch are one lesion, and
            predicted components that touch a grown lesion belong to it.
        min_volume_mm3: lesions up to this volume are not scored.
    """

    name: str
    dilation: int
    min_volume_mm3: float


LESION_RULES = {
    rule.name: rule
    for rule in (
        LesionRule("BraTS-GLI", 3, 50.0),
        LesionRule("BraTS-SSA", 3, 50.0),
        LesionRule("BraTS-PED", 3, 50.0),
        LesionRule("BraTS-MEN", 1, 50.0),
        LesionRule("BraTS-MET", 1, 2.0),
    )
}
"""The rules of the challenges of 2023: glioma, Sub-Saharan Africa, pediatric, meningioma,
metastases."""


@dataclass(frozen=True)
class LesionScores:
    """Scores of one region of one case.

    Attributes:
        dice: mean over lesions and false positives, which count 0; 1 where there is neither.
        hd95_mm: mean in mm; a missed lesion and a false positive count ``PENALTY_MM``;
            0 where there is neither.
        lesions: lesions of the reference that are scored.
        missed: those of them that no predicted component touches.
        false_positives: predicted components that touch no lesion.
    """

    dice: float
    hd95_mm: float
    lesions: int
    missed: int
    false_positives: int


def find_lesion_rule(name: str) -> LesionRule:
    """The rule of a challenge, in any case of letters. Raises UsageError."""
    for rule in LESION_RULES.values():
        if rule.name.lower() == name.lower():
            return rule
    raise UsageError(
        f"There is no lesion-wise rule '{name}'.", f"Use one of {', '.join(LESION_RULES)}."
    )


def lesion_scores(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], rule: LesionRule
) -> LesionScores:
    """Score a predicted mask lesion by lesion.

    Args:
        prediction: [I, J, K] bool.
        reference: [I, J, K] bool.
        spacing: [3] voxel size in mm.
        rule: what counts as one lesion.
    """
    box = bounding_box(prediction | reference)
    if box is None:
        return LesionScores(1.0, 0.0, 0, 0, 0)
    box = _grown(box, rule.dilation, prediction.shape)
    comparison = _compare(prediction[box], reference[box], spacing, rule)
    counted = len(comparison.dices) + comparison.false_positives
    if not counted:
        return LesionScores(1.0, 0.0, 0, 0, 0)
    penalties_mm = comparison.false_positives * PENALTY_MM
    return LesionScores(
        dice=sum(comparison.dices) / counted,
        hd95_mm=(sum(comparison.distances_mm) + penalties_mm) / counted,
        lesions=len(comparison.dices),
        missed=comparison.missed,
        false_positives=comparison.false_positives,
    )


@dataclass(frozen=True)
class _Comparison:
    """Scores of each lesion that is scored, and how many were missed or invented."""

    dices: list[float]
    distances_mm: list[float]
    missed: int
    false_positives: int


def _compare(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], rule: LesionRule
) -> _Comparison:
    """Compare every lesion with the predicted components that touch it."""
    from scipy import ndimage

    components, component_count = ndimage.label(prediction, np.ones((3, 3, 3)))
    lesions = _lesions(reference, rule)
    voxel_mm3 = float(np.prod(spacing))
    dices: list[float] = []
    distances_mm: list[float] = []
    missed = 0
    touched: set[int] = set()
    for number, lesion_box in enumerate(ndimage.find_objects(lesions), 1):
        # Masks of one lesion are small: dilating the whole volume for each would take minutes.
        near = _grown(lesion_box, rule.dilation, lesions.shape)
        lesion_near = lesions[near] == number
        touching = _labels_in(components[near], _dilated(lesion_near, rule.dilation))
        touched |= touching
        # Small lesions are not scored, but a component that touches one is no false positive.
        volume_mm3 = lesion_near.sum() * voxel_mm3
        if volume_mm3 <= rule.min_volume_mm3:
            continue
        if not touching:
            missed += 1
            dices.append(0.0)
            distances_mm.append(PENALTY_MM)
            continue
        lesion = lesions == number
        matched = np.isin(components, list(touching))
        distances = surface_distances(matched, lesion, spacing)
        dices.append(dice(matched, lesion))
        distances_mm.append(area_weighted_hd95(distances))
    false_positives = component_count - len(touched)
    return _Comparison(dices, distances_mm, missed, false_positives)


def _lesions(reference: np.ndarray, rule: LesionRule) -> np.ndarray:
    """Number of the lesion at each voxel of the reference, 0 elsewhere."""
    from scipy import ndimage

    # Parts that touch after dilation are one lesion: a gap of a voxel is no second tumor.
    dilated = _dilated(reference, rule.dilation)
    grown, _ = ndimage.label(dilated, np.ones((3, 3, 3)))
    return np.where(reference, grown, 0)


def _dilated(mask: np.ndarray, voxels: int) -> np.ndarray:
    """The mask grown step by step across faces and edges (neighborhood of 18)."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(3, 2)
    return ndimage.binary_dilation(mask, structure, iterations=voxels)


def _grown(box: tuple[slice, ...], voxels: int, shape: Sequence[int]) -> tuple[slice, ...]:
    """A box that is larger on all sides, but not than the array."""
    grown = []
    for side, size in zip(box, shape, strict=True):
        start = max(0, side.start - voxels)
        stop = min(size, side.stop + voxels)
        grown.append(slice(start, stop))
    return tuple(grown)


def _labels_in(labels: np.ndarray, mask: np.ndarray) -> set[int]:
    """Numbers of the components within a mask; 0 is background."""
    return {int(number) for number in np.unique(labels[mask]) if number}
