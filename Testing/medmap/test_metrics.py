"""Scores against hand-made masks, against MONAI and against a brute-force Hausdorff distance."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_dice, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter

from medmap.boxes import bounding_box
from medmap.errors import InputDataError
from medmap.metrics import (
    compare,
    dice,
    hd95,
    precision,
    region_masks,
    region_volumes_ml,
    sensitivity,
)
from medmap.task import BRATS
from medmap.volume import Grid

EMPTY = np.zeros((6, 6, 6), bool)
ONE = EMPTY.copy()
ONE[2, 3, 4] = True
TWO = ONE.copy()
TWO[2, 3, 5] = True
NAN = float("nan")


def blob(seed: int, shape=(30, 26, 22), share=0.2) -> np.ndarray:
    """A random smooth mask covering about that share of the array."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2.5)
    return field > np.quantile(field, 1 - share)


def as_monai(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.uint8))[None, None]


def grid(shape, spacing=(1.0, 1.0, 1.0)) -> Grid:
    return Grid(tuple(shape), np.diag([*spacing, 1.0]))


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        # Dice, sensitivity, precision, HD95
        (EMPTY, EMPTY, (1.0, 1.0, 1.0, 0.0)),
        (EMPTY, ONE, (0.0, 0.0, NAN, NAN)),
        (ONE, EMPTY, (0.0, NAN, 0.0, NAN)),
        (ONE, ONE, (1.0, 1.0, 1.0, 0.0)),
        (ONE, TWO, (2 / 3, 0.5, 1.0, 0.95)),
        (TWO, ONE, (2 / 3, 1.0, 0.5, 0.95)),
        (ONE, TWO & ~ONE, (0.0, 0.0, 0.0, 1.0)),
    ],
)
def test_scores_of_hand_made_masks(prediction, reference, expected):
    found = (
        dice(prediction, reference),
        sensitivity(prediction, reference),
        precision(prediction, reference),
        hd95(prediction, reference, (1, 1, 1)),
    )
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(6))
def test_dice_is_the_one_of_monai(seed):
    prediction, reference = blob(seed), blob(seed + 100, share=0.3)
    theirs = compute_dice(as_monai(prediction), as_monai(reference), include_background=True)
    assert dice(prediction, reference) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.7, 5.0), (3.0, 1.0, 0.9)])
@pytest.mark.parametrize("seed", range(4))
def test_hd95_is_the_one_of_monai(seed, spacing):
    prediction, reference = blob(seed), blob(seed + 100, share=0.1 + 0.1 * seed)
    theirs = compute_hausdorff_distance(
        as_monai(prediction),
        as_monai(reference),
        include_background=True,
        percentile=95,
        spacing=list(spacing),
    )
    assert hd95(prediction, reference, spacing) == pytest.approx(float(theirs), rel=1e-5)


def test_hd95_agrees_with_comparing_every_pair_of_surface_voxels():
    prediction, reference, spacing = (
        blob(1, (12, 11, 10)),
        blob(2, (12, 11, 10)),
        np.array([1.0, 2.0, 0.5]),
    )

    def surface(mask):
        padded = np.pad(mask, 1)
        return [
            p
            for p in np.argwhere(mask)
            if not all(
                padded[tuple(p + 1 + step * axis)]
                for axis in np.eye(3, dtype=int)
                for step in (-1, 1)
            )
        ]

    a, b = (np.array(surface(mask)) * spacing for mask in (prediction, reference))
    pairs = np.linalg.norm(a[:, None] - b[None], axis=2)
    expected = max(np.percentile(pairs.min(1), 95), np.percentile(pairs.min(0), 95))
    assert hd95(prediction, reference, spacing) == pytest.approx(expected)


def test_hd95_of_a_shifted_box_is_the_shift_in_mm():
    box, shifted = np.zeros((2, 20, 20, 20), bool)
    box[4:10, 4:10, 4:10] = True
    shifted[4:10, 4:10, 8:14] = True
    assert hd95(box, shifted, (1, 1, 2.5)) == pytest.approx(10.0)


def test_a_mask_that_fills_the_array_has_its_surface_at_the_edge():
    full = np.ones((8, 8, 8), bool)
    core = np.zeros_like(full)
    core[2:6, 2:6, 2:6] = True
    assert 2.0 < hd95(full, core, (1, 1, 1)) < 2 * math.sqrt(3) + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.02, 0.5), st.floats(0.02, 0.5))
def test_dice_and_hd95_do_not_care_which_mask_is_the_reference(seed, share, other):
    a, b = blob(seed, (9, 8, 7), share), blob(seed + 1, (9, 8, 7), other)
    assert dice(a, b) == dice(b, a)
    assert hd95(a, b, (1, 2, 3)) == hd95(b, a, (1, 2, 3))
    assert sensitivity(a, b) == precision(b, a)


def test_far_empty_space_changes_nothing():
    a, b = blob(3), blob(4)
    wide = [np.pad(mask, 15) for mask in (a, b)]
    assert hd95(*wide, (1, 1, 1)) == hd95(np.pad(a, 1), np.pad(b, 1), (1, 1, 1))


@pytest.mark.parametrize(
    "score", [dice, sensitivity, precision, lambda a, b: hd95(a, b, (1, 1, 1))]
)
def test_refuses_masks_of_two_shapes(score):
    with pytest.raises(InputDataError, match=r"\(6, 6, 6\).*\(6, 6, 5\)"):
        score(EMPTY, EMPTY[..., :5])


@pytest.mark.parametrize(
    ("value", "regions"),
    [(0, set()), (1, {"WT", "TC"}), (2, {"WT"}), (4, {"WT", "TC", "ET"})],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, np.float32])
def test_every_label_value_belongs_to_its_regions(value, regions, dtype):
    masks = region_masks(np.full((1, 1, 1), value, dtype), BRATS)
    assert {name for name, mask in masks.items() if mask.all()} == regions
    assert all(mask.dtype == bool for mask in masks.values())


@pytest.mark.parametrize(
    ("stray", "words"), [([7], "7"), ([3], "3"), ([-1, 9], "-1, 9"), ([2.5], "2.5")]
)
def test_refuses_label_values_that_the_task_does_not_know(stray, words):
    with pytest.raises(InputDataError, match=f"values {words},") as error:
        region_masks(np.array([0, 1, *stray]), BRATS)
    assert "0, 1, 2, 4" in error.value.remedy


def test_region_volumes_count_voxels_in_ml():
    labels = np.array([0, 1, 1, 2, 2, 2, 4, 4], np.uint8).reshape(2, 2, 2)
    assert region_volumes_ml(labels, BRATS, 0.5) == {"WT": 3.5, "TC": 2.0, "ET": 1.0}


def test_compare_scores_every_region_in_mm_and_ml():
    reference = np.zeros((20, 20, 20), np.uint8)
    reference[4:12, 4:12, 4:12] = 2
    reference[6:10, 6:10, 6:10] = 1
    prediction = np.roll(reference, 2, axis=2)
    scores = compare(prediction, reference, BRATS, grid(reference.shape, (1, 1, 2)))
    assert list(scores) == ["WT", "TC", "ET"]
    assert (
        scores["WT"].dice
        == scores["WT"].precision
        == scores["WT"].sensitivity
        == pytest.approx(6 / 8)
    )
    assert scores["TC"].dice == pytest.approx(2 / 4)
    assert scores["WT"].hd95_mm == pytest.approx(4.0)
    assert scores["WT"].reference_ml == scores["WT"].prediction_ml == pytest.approx(8**3 * 2 / 1000)
    assert asdict(scores["ET"]) == {
        "dice": 1.0,
        "sensitivity": 1.0,
        "precision": 1.0,
        "hd95_mm": 0.0,
        "prediction_ml": 0.0,
        "reference_ml": 0.0,
    }


def test_compare_of_two_empty_segmentations_is_perfect():
    nothing = np.zeros((4, 5, 6), np.uint8)
    scores = compare(nothing, nothing, BRATS, grid(nothing.shape))
    assert all(score.dice == 1.0 and score.hd95_mm == 0.0 for score in scores.values())


def test_compare_does_not_change_its_inputs_and_its_scores_go_into_json():
    prediction, reference = blob(6).astype(np.uint8), blob(7).astype(np.uint8) * 2
    before = prediction.copy(), reference.copy()
    scores = compare(prediction, reference, BRATS, grid(prediction.shape))
    assert np.array_equal(prediction, before[0])
    assert np.array_equal(reference, before[1])
    assert json.loads(json.dumps(asdict(scores["WT"])))["dice"] == scores["WT"].dice


@pytest.mark.parametrize("wrong", ["prediction", "reference"])
def test_compare_refuses_what_does_not_lie_on_the_grid(wrong):
    arrays = {
        "prediction": np.zeros((4, 4, 4), np.uint8),
        "reference": np.zeros((4, 4, 4), np.uint8),
    }
    arrays[wrong] = np.zeros((4, 4, 5), np.uint8)
    with pytest.raises(InputDataError, match=f"The {wrong} has the shape"):
        compare(arrays["prediction"], arrays["reference"], BRATS, grid((4, 4, 4)))


def test_the_bounding_box_is_tight_and_none_for_an_empty_mask():
    assert bounding_box(TWO) == (slice(2, 3), slice(3, 4), slice(4, 6))
    assert bounding_box(EMPTY) is None


def test_everything_but_hd95_works_without_scipy():
    code = (
        "import sys, numpy as np; from medmap import metrics; from medmap.task import BRATS;"
        "a = np.ones((2, 2, 2), int);"
        "metrics.dice(a, a); metrics.sensitivity(a, a); metrics.precision(a, a);"
        "metrics.region_volumes_ml(a, BRATS, 1);"
        "assert not {'scipy', 'torch', 'monai', 'nibabel'} & sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_thousand_random_pairs_score_as_in_monai_empty_ones_included():
    """MONAI leaves cases without any reference out by default: there our own rule is checked."""
    rng = np.random.default_rng(2024)
    pairs, empty = [], {"both": 0, "prediction": 0, "reference": 0}
    for n in range(1000):
        masks = [
            gaussian_filter(rng.standard_normal((9, 8, 7)), rng.uniform(0.4, 1.6)) for _ in range(2)
        ]
        shares = rng.uniform(0.02, 0.6, 2)
        prediction, reference = (
            m > np.quantile(m, 1 - share) for m, share in zip(masks, shares, strict=True)
        )
        # Of a thousand: 100 without prediction, 100 without reference, 34 of them without either.
        if n % 10 == 0:
            prediction[:] = False
        if n % 10 == 1 or n % 30 == 0:
            reference[:] = False
        pairs.append((prediction, reference))
    ours, theirs = (
        torch.from_numpy(np.stack(side))[:, None].float() for side in zip(*pairs, strict=True)
    )
    spacing = (1.0, 1.5, 3.0)
    dices = compute_dice(ours, theirs, include_background=True, ignore_empty=False)[:, 0].numpy()
    distances = compute_hausdorff_distance(
        ours, theirs, include_background=True, percentile=95, spacing=list(spacing)
    )
    for (prediction, reference), score, distance in zip(
        pairs, dices, distances[:, 0].numpy(), strict=True
    ):
        assert dice(prediction, reference) == pytest.approx(score, abs=1e-6)
        found = hd95(prediction, reference, spacing)
        if prediction.any() and reference.any():
            assert found == pytest.approx(distance, rel=1e-5)
        elif prediction.any() or reference.any():
            empty["reference" if prediction.any() else "prediction"] += 1
            assert math.isnan(found)
            assert not math.isfinite(distance)
        else:
            empty["both"] += 1
            assert found == 0
    assert empty == {"both": 34, "prediction": 66, "reference": 100}
