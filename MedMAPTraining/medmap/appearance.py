"""Does a brain image look like the modality that it is given for? numpy only.

T2 differs from the other modalities by physics: CSF is bright in it and dark in T1 and FLAIR, and
it lies in the ventricles, deep inside, and in the sulci, at the surface. So an image is described
by robust z-scores by depth below the brain's surface and by distance from dark CSF, by the tails
of its histogram, and by the shape of the bulk. A logistic model decides between T2 and not T2.
Its weights are in ``appearance_weights``, fitted on synthetic cases by
``experiments/fit_appearance.py``.

T1 and FLAIR both have dark CSF, and one of them alone is too easily taken for the other. Beside a
T2 they differ: outside CSF, T1 falls where T2 rises (white matter against gray matter, edema),
and FLAIR does not. T1 and T1ce are one kind: where nothing enhances nobody can tell them apart. A
wrong warning costs trust, so nothing is reported unless the evidence is strong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medmap.appearance_weights import CONSTANT, DEVIATION, MEAN, WEIGHTS
from medmap.boxes import bounding_box, widened_box
from medmap.volume import Volume, apply_affine

MODALITIES = ("t1", "t1ce", "t2", "flair")
"""The modalities that the model knows."""
SAMPLING_MM = 3.0
"""Voxels of about this size are sampled: a tenth of a second for a whole brain at 1 mm."""
DEPTH_BORDERS_MM = (4.5, 9.0, 15.0, 27.0)
"""Borders of the layers below the brain's surface."""
CSF_DISTANCE_BORDERS_MM = (3.5, 7.0, 11.0, 16.0)
"""Borders of the layers around dark CSF."""
CSF_Z_SCORE = -1.5
"""Darker voxels count as CSF; in T2 there are none, which the layers then show."""
MIN_VOXELS = 400
"""Fewer sampled voxels allow no statement."""
MAX_Z_SCORE = 6.0
PERCENTILES = (1, 5, 25, 75, 95, 99)
NAMES = (
    *(f"layer {n}" for n in range(5)),
    *(f"from CSF {n}" for n in range(5)),
    "deep p3",
    "deep p97",
    *(f"p{p}" for p in PERCENTILES),
    "peak",
)
"""Names of the features, in order."""
MAX_FEATURE_DEVIATION = 3.0
"""Features farther from those of the training cases count as this many deviations away."""
MAX_TYPICAL_DEVIATION = 2.5
"""Images whose features are this many deviations away (root mean square) are unlike any brain."""
MIN_LOG_ODDS = 3.0
"""Log-odds from which on a mismatch is reported; of two images that lean wrongly, their sum."""
MIN_EXCHANGE_CONTRAST = 0.6
"""Difference of ``t2_relation`` from which on T1 and FLAIR are reported as exchanged.

In their own slots the difference is about -1."""

Mismatch = tuple[tuple[str, ...], str]
"""Modalities that it is about, and the rest of the sentence that begins with them."""


@dataclass(frozen=True)
class Appearance:
    """Appearance descriptors of one image.

    Attributes:
        z_scores: [I, J, K] robust z-score on the sampled grid, NaN outside the brain.
        affine: [4, 4] of the sampled grid.
        features: [F] in the order of ``NAMES``.
    """

    z_scores: np.ndarray
    affine: np.ndarray
    features: np.ndarray


def describe_appearance(volume: Volume, brain: np.ndarray) -> Appearance | None:
    """Describe one skull-stripped image; None if there is too little brain or no contrast.

    Args:
        volume: the image.
        brain: [I, J, K] bool, as from ``medmap.foreground.foreground``.
    """
    spacing = volume.grid.spacing
    steps = np.maximum(1, np.round(SAMPLING_MM / spacing)).astype(int)
    every_nth = tuple(slice(None, None, int(step)) for step in steps)
    inside = brain[every_nth]
    box = bounding_box(inside)
    if box is None or np.count_nonzero(inside) < MIN_VOXELS:
        return None
    values = volume.array[every_nth][inside].astype(np.float64)
    robust = _robust_z_scores(values)
    if robust is None:
        return None
    z_scores = np.full(inside.shape, np.nan)
    z_scores[inside] = robust
    # One voxel around the brain says where it ends.
    around_brain = widened_box(box, inside.shape)
    features = _features(z_scores[around_brain], inside[around_brain], spacing * steps)
    to_sampled = np.diag([*steps.astype(float), 1.0])
    affine = volume.affine @ to_sampled
    return Appearance(z_scores, affine, features)


def _robust_z_scores(values: np.ndarray) -> np.ndarray | None:
    """[N] deviations from the median, within limits; None without any contrast."""
    low, middle, high = np.percentile(values, [16, 50, 84])
    if not high > low:
        return None
    # The 16th and 84th percentile lie two standard deviations apart in a normal distribution.
    robust = 2 * (values - middle) / (high - low)
    return np.clip(robust, -MAX_Z_SCORE, MAX_Z_SCORE)


def _features(z_scores: np.ndarray, inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """[F] features from z-scores [I, J, K] within a mask, voxel size in mm."""
    values = z_scores[inside]
    # Ventricles lie deep, sulci at the surface: CSF shows in the first and the last layers.
    depth = _depth(inside, spacing)[inside]
    depth_means, deepest = _layers(values, depth, DEPTH_BORDERS_MM)
    # Around dark CSF the partial-volume effect darkens T1 and FLAIR; in T2 there is no dark CSF.
    without_nan = np.nan_to_num(z_scores, nan=-9.0)
    tissue = inside & (without_nan > CSF_Z_SCORE)
    bulk = np.clip(z_scores[tissue], -2, 2)
    csf_distance = _depth(tissue, spacing)[tissue]
    csf_means, _ = _layers(bulk - bulk.mean(), csf_distance, CSF_DISTANCE_BORDERS_MM)
    # The height of the peak: in T2 the bulk of the brain is narrower.
    histogram_edges = np.arange(-3, 3.01, 0.25)
    histogram, _ = np.histogram(values, histogram_edges)
    smoothed = np.convolve(histogram, [0.25, 0.5, 0.25], "same")
    deep_tails = np.percentile(deepest, [3, 97])
    tails = np.percentile(values, PERCENTILES)
    peak = 10 * smoothed.max() / values.size
    return np.array([*depth_means, *csf_means, *deep_tails, *tails, peak])


def t2_log_odds(features: np.ndarray) -> float | None:
    """Log-odds of T2 against T1, T1ce or FLAIR; None if the image looks like no brain."""
    # In the units that the model was fitted in.
    deviations = (features - np.array(MEAN)) / np.array(DEVIATION)
    typical_deviation = np.sqrt(np.mean(deviations**2))
    if typical_deviation > MAX_TYPICAL_DEVIATION:
        return None
    # One extreme feature must not outvote all others.
    limited = np.clip(deviations, -MAX_FEATURE_DEVIATION, MAX_FEATURE_DEVIATION)
    log_odds = limited @ np.array(WEIGHTS) + CONSTANT
    return float(log_odds)


def t2_relation(image: Appearance, t2: Appearance) -> float | None:
    """How an image with dark CSF relates to T2: about -1 for T1, about 0 for FLAIR.

    Outside CSF: the correlation with T2, minus how much brighter than its median the image is where
    T2 is darkest (white matter), in robust deviations. None if the two hardly overlap.
    """
    image_values, t2_values = _paired_values(image, t2)
    # Without CSF and its partial volume.
    tissue = np.isfinite(t2_values) & (image_values > -1.0)
    image_values = image_values[tissue]
    t2_values = t2_values[tissue]
    inner = image_values > -0.5
    if np.count_nonzero(inner) < MIN_VOXELS:
        return None
    image_inner = np.clip(image_values[inner], -3, 3)
    t2_inner = np.clip(t2_values[inner], -3, 3)
    # A constant image has no correlation.
    have_contrast = image_inner.std() > 0 and t2_inner.std() > 0
    if not have_contrast:
        return None
    correlation = np.corrcoef(image_inner, t2_inner)[0, 1]
    darkest_in_t2 = t2_values <= np.percentile(t2_values, 30)
    white_matter = image_values[darkest_in_t2]
    white_matter_excess = white_matter.mean() - np.median(image_values)
    return float(correlation - white_matter_excess)


def _paired_values(image: Appearance, t2: Appearance) -> tuple[np.ndarray, np.ndarray]:
    """[N] z-scores of the image's brain voxels within the T2's grid, and of T2 at these places."""
    voxels = np.argwhere(np.isfinite(image.z_scores))
    to_t2 = np.linalg.inv(t2.affine) @ image.affine
    t2_positions = apply_affine(to_t2, voxels)
    t2_voxels = np.rint(t2_positions).astype(int)
    # Fields of view differ: only voxels that both images show can be compared.
    coordinate_within = (t2_voxels >= 0) & (t2_voxels < t2.z_scores.shape)
    within = coordinate_within.all(axis=1)
    image_index = tuple(voxels[within].T)
    t2_index = tuple(t2_voxels[within].T)
    return image.z_scores[image_index], t2.z_scores[t2_index]


def mismatches(appearances: Mapping[str, Appearance | None]) -> list[Mismatch]:
    """Images that look like another modality than they are given for.

    Args:
        appearances: by modality name; those that are None or not in ``MODALITIES`` are left out.
    """
    log_odds: dict[str, float | None] = {}
    relations: dict[str, float | None] = {}
    t2 = appearances.get("t2")
    for name, appearance in appearances.items():
        if appearance is None or name not in MODALITIES:
            continue
        log_odds[name] = t2_log_odds(appearance.features)
        if t2 is not None and name != "t2":
            relations[name] = t2_relation(appearance, t2)
    return mismatches_of_scores(log_odds, relations)


def mismatches_of_scores(
    log_odds: Mapping[str, float | None], relations: Mapping[str, float | None]
) -> list[Mismatch]:
    """As ``mismatches``, from numbers.

    Args:
        log_odds: ``t2_log_odds`` of the images by modality name.
        relations: ``t2_relation`` of T1, T1ce and FLAIR, where there is a T2.
    """
    certain = {name: value for name, value in log_odds.items() if value is not None}
    found_mismatches = _exchanged_with_t2(certain)
    exchanged = _names_of(found_mismatches)
    remaining = {name: value for name, value in certain.items() if name not in exchanged}
    found_mismatches += _misplaced(remaining)
    # A mismatched image, or one unlike a brain, says nothing about T1 against FLAIR.
    unusable = _names_of(found_mismatches)
    unlike_brain = {name for name, value in log_odds.items() if value is None}
    unusable |= unlike_brain
    found_mismatches += _exchanged_t1_and_flair(relations, unusable)
    return found_mismatches


def _names_of(entries: Sequence[Mismatch]) -> set[str]:
    names: set[str] = set()
    for members, _ in entries:
        names.update(members)
    return names


def _exchanged_with_t2(log_odds: Mapping[str, float]) -> list[Mismatch]:
    """Pairs of T2 and another modality that both lean towards the other kind."""
    t2_value = log_odds.get("t2", 0.0)
    if t2_value >= 0:
        return []
    text = "look exchanged: CSF is bright in the first and dark in the second"
    pairs: list[Mismatch] = []
    for name, value in log_odds.items():
        leans_to_t2 = name != "t2" and value > 0
        evidence = value - t2_value
        if leans_to_t2 and evidence > MIN_LOG_ODDS:
            pairs.append(((name, "t2"), text))
    return pairs


def _misplaced(log_odds: Mapping[str, float]) -> list[Mismatch]:
    """Single images that surely look like the other kind."""
    entries: list[Mismatch] = []
    for name, value in log_odds.items():
        if name == "t2" and value < -MIN_LOG_ODDS:
            entries.append(((name,), "looks more like T1 or FLAIR: its CSF is dark"))
        elif name != "t2" and value > MIN_LOG_ODDS:
            entries.append(((name,), "looks more like T2"))
    return entries


def _exchanged_t1_and_flair(
    relations: Mapping[str, float | None], unusable: set[str]
) -> list[Mismatch]:
    """Pairs of T1 (or T1ce) and FLAIR of which each relates to T2 like the other."""
    flair = relations.get("flair")
    if flair is None or unusable & {"t2", "flair"}:
        return []
    pairs: list[Mismatch] = []
    for name in ("t1", "t1ce"):
        relation = relations.get(name)
        if name in unusable or relation is None:
            continue
        if relation - flair > MIN_EXCHANGE_CONTRAST:
            pairs.append(((name, "flair"), "look exchanged: beside T2 each looks like the other"))
    return pairs


def _depth(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance in mm to the nearest voxel outside a mask, the smallest along the three axes.

    Axis-wise instead of Euclidean, because scipy is not available inside Slicer; the layers need no
    more. Infinite where the volume ends before the mask does.

    Args:
        mask: [I, J, K] bool.
        spacing: [3] voxel size in mm.
    """
    depth = np.full(mask.shape, np.inf)
    for axis, mm in enumerate(spacing):
        steps = _steps_to_outside(mask, axis)
        distance_mm = float(mm) * steps.astype(float)
        np.minimum(depth, distance_mm, out=depth)
    return depth


def _steps_to_outside(mask: np.ndarray, axis: int) -> np.ndarray:
    """[I, J, K] voxels to the nearest one outside a mask, along one axis in both directions."""
    far = np.float32(np.inf)
    shape = [1, 1, 1]
    shape[axis] = -1
    # Voxel numbers are exact in float32, at half the memory.
    positions = np.arange(mask.shape[axis], dtype=np.float32).reshape(shape)
    # Running extremes: the last voxel outside before each one, and the next one after it.
    outside_or_before = np.where(mask, -far, positions)
    last_outside = np.maximum.accumulate(outside_or_before, axis=axis)
    outside_or_after = np.where(mask, far, positions)
    reversed_outside = np.flip(outside_or_after, axis)
    reversed_next = np.minimum.accumulate(reversed_outside, axis=axis)
    next_outside = np.flip(reversed_next, axis)
    steps_back = positions - last_outside
    steps_ahead = next_outside - positions
    return np.minimum(steps_back, steps_ahead)


def _layers(
    values: np.ndarray, depth: np.ndarray, borders: Sequence[float]
) -> tuple[list[float], np.ndarray]:
    """Mean of each layer, and the values of the deepest one.

    A layer with less than 1 % of the voxels repeats the one above.
    """
    means = []
    deepest = values
    least_voxels = 0.01 * values.size
    for low, high in zip((0.0, *borders), (*borders, np.inf), strict=True):
        in_layer = (depth > low) & (depth <= high)
        layer = values[in_layer]
        if layer.size >= least_voxels:
            deepest = layer
        means.append(float(deepest.mean()))
    return means, deepest
