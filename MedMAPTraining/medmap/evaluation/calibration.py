"""Are probabilities as right as they claim, and does uncertainty mark the errors?

Calibration: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv:1706.04599).
Uncertainty: Mehta et al., "QU-BraTS: MICCAI BraTS 2020 Challenge on Quantifying Uncertainty in
Brain Tumor Segmentation", MELBA 2022 (arXiv:2112.10074).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medmap.errors import InputDataError
from medmap.metrics import dice_of_counts

BINS = 15
"""Of the reliability diagram; Guo et al. use 15."""

THRESHOLDS = tuple(2.5 * step for step in range(41))
"""Uncertainties, 0 to 100, up to which voxels are kept; 40 steps, as in the challenge's code."""


@dataclass(frozen=True)
class Reliability:
    """Probabilities of one region against its reference, in bins of equal width.

    Attributes:
        voxels: [B] number of voxels by bin.
        probability: [B] their mean probability; 0 in an empty bin.
        frequency: [B] share of them that the reference has; 0 in an empty bin.
    """

    voxels: np.ndarray
    probability: np.ndarray
    frequency: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of probability and frequency, weighted by voxels: 0 is perfect."""
        total = self.voxels.sum()
        if not total:
            return 0.0
        distances = np.abs(self.probability - self.frequency)
        # Weighted by voxels: an empty bin says nothing.
        weighted = self.voxels * distances
        return float(weighted.sum() / total)


def reliability(probability: np.ndarray, reference: np.ndarray, *, bins: int = BINS) -> Reliability:
    """Bin the probabilities of a region.

    Args:
        probability: numbers in 0..1, of any shape.
        reference: bool, of the same shape.
        bins: of equal width; 1.0 belongs to the last one.

    Raises:
        InputDataError: the shapes differ, or a value is no probability.
    """
    _check(probability, reference)
    values = np.asarray(probability, float).ravel()
    truth = np.asarray(reference, bool).ravel()
    scaled = (values * bins).astype(int)
    # A probability of 1 belongs to the last bin.
    position = np.minimum(scaled, bins - 1)
    voxels = np.bincount(position, minlength=bins)
    probability_sums = np.bincount(position, values, minlength=bins)
    positives = np.bincount(position, truth, minlength=bins)
    divisor = np.maximum(voxels, 1)
    return Reliability(
        voxels=voxels,
        probability=probability_sums / divisor,
        frequency=positives / divisor,
    )


def pooled(parts: Sequence[Reliability]) -> Reliability:
    """One diagram of several cases, each voxel counting once."""
    voxels = np.sum([part.voxels for part in parts], axis=0)
    probabilities = np.sum([part.voxels * part.probability for part in parts], axis=0)
    frequencies = np.sum([part.voxels * part.frequency for part in parts], axis=0)
    # Bins without voxels have sums of zero: 0 / 1 there, not 0 / 0.
    divisor = np.maximum(voxels, 1)
    return Reliability(
        voxels=voxels,
        probability=probabilities / divisor,
        frequency=frequencies / divisor,
    )


def scored_voxels(reference: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Voxels that calibration is measured on: where a network ran, and all of the reference.

    Air, which is most of an image, is always right: counting it would make every model look
    calibrated. Bundles write a probability of exactly 0 outside the brain.
    """
    return np.asarray(reference, bool) | (np.asarray(probability) > 0)


@dataclass(frozen=True)
class UncertaintyScores:
    """QU-BraTS scores of one region of one case, each 0..1.

    Attributes:
        dice_auc: area under Dice of the voxels that are certain enough, over the thresholds.
        ftp_auc: area under the share of true positives that are filtered out as uncertain.
        ftn_auc: the same of true negatives.
        score: (dice_auc + (1 - ftp_auc) + (1 - ftn_auc)) / 3.
    """

    dice_auc: float
    ftp_auc: float
    ftn_auc: float
    score: float


def uncertainty_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    uncertainty: np.ndarray,
    brain: np.ndarray,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> UncertaintyScores:
    """Score an uncertainty map: errors should be uncertain, and right voxels certain.

    At each threshold the voxels whose uncertainty exceeds it are left out; Dice of the remaining
    ones should rise, while few true positives and true negatives are lost (Eq. 2 of the paper).

    Args:
        prediction: bool, of any shape.
        reference: bool, of the same shape.
        uncertainty: 0 (certain) to 100.
        brain: bool; true positives and true negatives count within it only.
        thresholds: ascending, the last one 100: there nothing is filtered.

    Raises:
        InputDataError: the shapes differ, or an uncertainty is not in 0..100.
    """
    _check(np.asarray(uncertainty) / 100, reference)
    _check(np.asarray(prediction, float), reference)
    prediction = np.asarray(prediction, bool).ravel()
    reference = np.asarray(reference, bool).ravel()
    values = np.asarray(uncertainty, float).ravel()
    inside = np.asarray(brain, bool).ravel()
    correct_inside = (prediction == reference) & inside
    true_positives = correct_inside & prediction
    true_negatives = correct_inside & ~prediction
    certain_overlap = _counts_up_to(values[prediction & reference], thresholds)
    certain_prediction = _counts_up_to(values[prediction], thresholds)
    certain_reference = _counts_up_to(values[reference], thresholds)
    dices = []
    for position in range(len(thresholds)):
        overlap = int(certain_overlap[position])
        predicted = int(certain_prediction[position])
        actual = int(certain_reference[position])
        dices.append(dice_of_counts(overlap, predicted, actual))
    lost_positives = _lost(values[true_positives], thresholds)
    lost_negatives = _lost(values[true_negatives], thresholds)
    dice_auc = _area(dices, thresholds)
    ftp_auc = _area(lost_positives, thresholds)
    ftn_auc = _area(lost_negatives, thresholds)
    # The challenge's score: filtering may cost neither Dice nor many right voxels.
    score = (dice_auc + (1 - ftp_auc) + (1 - ftn_auc)) / 3
    return UncertaintyScores(dice_auc=dice_auc, ftp_auc=ftp_auc, ftn_auc=ftn_auc, score=score)


def uncertainty_of(probability: np.ndarray) -> np.ndarray:
    """Uncertainty 0..100 of a region from its probability: 0 at 0 and 1, 100 at one half."""
    return 100 * (1 - np.abs(2 * np.asarray(probability, float) - 1))


def _counts_up_to(values: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """How many of the values are at most each threshold."""
    return np.searchsorted(np.sort(values), thresholds, side="right")


def _lost(values: np.ndarray, thresholds: Sequence[float]) -> list[float]:
    """Share of the values that lies above each threshold; nothing can be lost of nothing."""
    total = len(values)
    if not total:
        return [0.0] * len(thresholds)
    certain = _counts_up_to(values, thresholds)
    shares = []
    for count in certain:
        certain_share = int(count) / total
        shares.append(1 - certain_share)
    return shares


def _area(values: Sequence[float], thresholds: Sequence[float]) -> float:
    """Area under a curve over the thresholds by the trapezoidal rule, over their range."""
    span = thresholds[-1] - thresholds[0]
    return float(np.trapezoid(values, thresholds) / span)


def _check(probability: np.ndarray, reference: np.ndarray) -> None:
    if np.shape(probability) != np.shape(reference):
        raise InputDataError(
            f"The probabilities have the shape {np.shape(probability)}, the reference "
            f"{np.shape(reference)}.",
            "Bring both to one grid first.",
        )
    low = float(np.min(probability, initial=0))
    high = float(np.max(probability, initial=0))
    if not (low >= 0 and high <= 1):
        raise InputDataError(
            f"The values reach from {low:g} to {high:g}, which are no probabilities.",
            "Give values from 0 to 1 (uncertainties from 0 to 100).",
        )
