"""Lesion-wise scores and surface distances, against independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from medmap.errors import UsageError
from medmap.evaluation.lesions import LESION_RULES, LesionRule, find_lesion_rule, lesion_scores
from medmap.evaluation.surfaces import (
    area_weighted_hd95,
    normalized_surface_distance,
    surface_areas,
    surface_distances,
)

RANDOM_PAIRS = 500


def random_pair(seed):
    """Masks of several blobs, some of them in one mask only; one in eight is empty."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(14, 26, 3))
    masks = []
    blobs = [(rng.integers(0, shape), rng.integers(1, 5, 3)) for _ in range(rng.integers(1, 7))]
    axes = np.indices(shape)
    for _ in range(2):
        mask = np.zeros(shape, bool)
        for center, radii in blobs:
            if rng.random() < 0.75:
                moved = center + rng.integers(-1, 2, 3)
                offsets = (axes - moved[:, None, None, None]) / radii[:, None, None, None]
                mask |= (offsets**2).sum(0) <= 1
        if rng.random() < 0.125:
            mask[:] = False
        masks.append(mask)
    return masks


def oracle_hd95(prediction, reference, spacing):
    """DeepMind's HD95 from distance transforms, with MONAI's copy of the table of areas."""
    codes, areas = {}, {}
    table, kernel = monai_table(spacing)
    for name, mask in (("prediction", prediction), ("reference", reference)):
        padded = np.pad(mask, 1).astype(int)
        code = ndimage.correlate(padded, kernel, mode="constant", origin=0)
        codes[name] = (code != 0) & (code != 255)
        areas[name] = table[code]
    results = []
    for name, other in (("prediction", "reference"), ("reference", "prediction")):
        here = codes[name]
        if not here.any() or not codes[other].any():
            return math.inf
        distance = ndimage.distance_transform_edt(~codes[other], sampling=spacing)[here]
        weights = areas[name][here]
        order = np.argsort(distance, kind="stable")
        cumulative = np.cumsum(weights[order]) / weights.sum()
        position = np.flatnonzero(cumulative >= 0.95 - 1e-12)[0]
        results.append(distance[order][position])
    return max(results)


def monai_table(spacing):
    from monai.metrics.utils import get_code_to_measure_table

    table, kernel = get_code_to_measure_table(spacing)
    # ``correlate`` centers a kernel of two on its second entry; the offset
    # is the same for all masks.
    return np.asarray(table.tolist()), np.array(kernel.tolist()[0][0], int)


def oracle_lesions(prediction, reference, spacing, rule):
    """The challenge's procedure on whole arrays, component by component; no line is shared."""
    structure, everywhere = ndimage.generate_binary_structure(3, 2), np.ones((3, 3, 3))
    grow = {"structure": structure, "iterations": rule.dilation}
    grown, grown_count = ndimage.label(ndimage.binary_dilation(reference, **grow), everywhere)
    components, component_count = ndimage.label(prediction, everywhere)
    hits, dices, distances = set(), [], []
    for number in range(1, grown_count + 1):
        lesion = reference & (grown == number)
        area = ndimage.binary_dilation(lesion, **grow)
        matched = [c for c in range(1, component_count + 1) if (area & (components == c)).any()]
        hits |= set(matched)
        if lesion.sum() * np.prod(spacing) <= rule.min_volume_mm3:
            continue
        union = np.isin(components, matched) & (components > 0)
        dices.append(2 * (union & lesion).sum() / (union.sum() + lesion.sum()))
        distance = oracle_hd95(union, lesion, spacing)
        distances.append(374.0 if math.isinf(distance) else distance)
    false = component_count - len(hits)
    total = len(dices) + false
    if total == 0:
        return 1.0, 0.0
    return sum(dices) / total, (sum(distances) + 374.0 * false) / total


def test_lesion_wise_scores_are_those_of_the_oracle_on_500_random_pairs():
    rules = list(LESION_RULES.values())
    several = 0
    for seed in range(RANDOM_PAIRS):
        prediction, reference = random_pair(seed)
        rule = rules[seed % len(rules)]
        spacing = (1.0, 1.0, 1.0) if seed % 3 else (0.9, 1.2, 2.0)
        scores = lesion_scores(prediction, reference, spacing, rule)
        expected = oracle_lesions(prediction, reference, spacing, rule)
        assert (scores.dice, scores.hd95_mm) == pytest.approx(expected, abs=1e-5), seed
        several += scores.lesions > 1
    assert several > RANDOM_PAIRS // 5, "cases of several lesions are what the rule is for"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 3.0), (0.5, 0.5, 5.0)])
def test_areas_of_surface_elements_are_those_of_deepminds_table(spacing):
    table, kernel = monai_table(spacing)
    areas = surface_areas(spacing)
    for code in range(256):
        corners = np.array([code >> bit & 1 for bit in range(8)]).reshape(2, 2, 2)
        assert areas[code] == pytest.approx(table[(corners * kernel).sum()], abs=1e-4), code


def test_nsd_is_that_of_monai():
    import torch
    from monai.metrics import compute_surface_dice

    for seed in range(40):
        prediction, reference = random_pair(seed)
        if not (prediction.any() and reference.any()):
            continue
        spacing = (1.0, 1.5, 2.0)
        one_hot = [
            torch.from_numpy(np.stack([~mask, mask])[None]) for mask in (prediction, reference)
        ]
        expected = compute_surface_dice(
            one_hot[0], one_hot[1], [1.0], spacing=spacing, use_subvoxels=True
        )
        distances = surface_distances(prediction, reference, spacing)
        assert normalized_surface_distance(distances, 1.0) == pytest.approx(
            float(expected[0, 0]), abs=1e-5
        )


def test_scores_by_hand():
    rule = LesionRule("by hand", dilation=1, min_volume_mm3=10.0)
    reference = np.zeros((30, 30, 30), bool)
    reference[2:6, 2:6, 2:6] = True
    reference[20:24, 20:24, 20:24] = True
    reference[10, 10, 10] = True  # 1 mm³: not scored
    prediction = reference.copy()
    assert lesion_scores(prediction, reference, (1, 1, 1), rule).dice == 1.0
    prediction[20:24, 20:24, 20:24] = False
    prediction[27:29, 2:4, 2:4] = True
    scores = lesion_scores(prediction, reference, (1, 1, 1), rule)
    assert (scores.lesions, scores.missed, scores.false_positives) == (2, 1, 1)
    assert scores.dice == pytest.approx(1 / 3)
    assert scores.hd95_mm == pytest.approx(2 * 374 / 3)
    nothing = np.zeros_like(reference)
    assert lesion_scores(nothing, nothing, (1, 1, 1), rule).dice == 1.0
    assert lesion_scores(nothing, reference, (1, 1, 1), rule).dice == 0.0


def test_lesions_that_touch_when_grown_are_one():
    reference = np.zeros((20, 20, 20), bool)
    reference[2:6, 2:6, 2:6] = True
    reference[8:12, 2:6, 2:6] = True
    prediction = reference.copy()
    prediction[8:12, 2:6, 2:6] = False
    glioma = lesion_scores(prediction, reference, (1, 1, 1), LESION_RULES["BraTS-GLI"])
    assert (glioma.lesions, glioma.missed) == (1, 0)
    assert glioma.dice == pytest.approx(2 / 3)
    assert find_lesion_rule("brats-met").dilation == 1
    with pytest.raises(UsageError, match="BraTS-MET"):
        find_lesion_rule("BraTS-XYZ")


def test_an_empty_mask_is_infinitely_far():
    mask = np.zeros((8, 8, 8), bool)
    mask[2:5, 2:5, 2:5] = True
    nothing = np.zeros_like(mask)
    assert area_weighted_hd95(surface_distances(mask, nothing, (1, 1, 1))) == math.inf
    assert area_weighted_hd95(surface_distances(nothing, nothing, (1, 1, 1))) == 0.0
    assert normalized_surface_distance(surface_distances(mask, nothing, (1, 1, 1)), 1.0) == 0.0
    assert normalized_surface_distance(surface_distances(nothing, nothing, (1, 1, 1)), 1.0) == 1.0
