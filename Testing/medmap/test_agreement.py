"""Agreement is that of medmap.metrics and of independent libraries.

Diameters are those of known shapes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import ConfusionMatrixMetric, compute_dice, compute_hausdorff_distance
from scipy.spatial.distance import pdist

from medmap import metrics
from medmap.agreement import (
    AGREEMENT,
    OURS_ONLY,
    REFERENCE_ONLY,
    error_map,
    focus,
    heaviest_slices,
    review,
    slice_axis,
    slice_positions,
    worst_slices,
)
from medmap.diameters import longest_diameters, region_diameters
from medmap.errors import InputDataError, UsageError
from medmap.metrics import region_masks
from medmap.task import BRATS
from medmap.volume import Grid

REGIONS = [r.name for r in BRATS.regions]


def rotation(degrees, axis=2):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [n for n in range(3) if n != axis]
    result = np.eye(4)
    result[a, a], result[a, b], result[b, a], result[b, b] = c, -s, s, c
    return result


def grid(shape=(20, 22, 18), affine=None):
    return Grid(shape, np.diag([-1.0, -1.5, 2.0, 1.0]) if affine is None else affine)


@pytest.fixture
def pair():
    """Two nested tumors that overlap in part, BraTS label values."""
    ijk = np.stack(np.meshgrid(*map(np.arange, (20, 22, 18)), indexing="ij"), -1)

    def tumor(center, radius):
        r = np.linalg.norm(ijk - center, axis=-1) / radius
        return np.select([r < 0.4, r < 0.7, r < 1], [1, 4, 2], 0).astype(np.uint8)

    return tumor((9, 10, 8), 7), tumor((10, 11, 9), 6)


def test_scores_are_those_of_medmap_metrics(pair):
    found = review(*pair, BRATS, grid())
    assert found.scores == metrics.compare(*pair, BRATS, grid())


@pytest.mark.parametrize("region", REGIONS)
def test_scores_equal_monais(pair, region):
    found = review(*pair, BRATS, grid()).scores[region]
    a, b = (
        torch.from_numpy(region_masks(labels, BRATS)[region])[None, None].float() for labels in pair
    )
    assert found.dice == pytest.approx(float(compute_dice(a, b)), abs=1e-6)
    hd95 = compute_hausdorff_distance(
        a, b, include_background=True, percentile=95, spacing=(1.0, 1.5, 2.0)
    )
    assert found.hd95_mm == pytest.approx(float(hd95), abs=1e-4)
    counts = ConfusionMatrixMetric(metric_name=["sensitivity", "precision"])
    counts(a, b)
    sensitivity, precision = (float(v) for v in counts.aggregate())
    assert found.sensitivity == pytest.approx(sensitivity, abs=1e-6)
    assert found.precision == pytest.approx(precision, abs=1e-6)
    assert found.prediction_ml == pytest.approx(float(a.sum()) * 3e-3)


@pytest.mark.parametrize("region", REGIONS)
def test_the_error_map_has_each_voxel_in_the_right_class(pair, region):
    ours, theirs = (region_masks(labels, BRATS)[region] for labels in pair)
    found = error_map(*pair, BRATS, region)
    assert found.dtype == np.uint8
    for value, expected in (
        (AGREEMENT, ours & theirs),
        (OURS_ONLY, ours & ~theirs),
        (REFERENCE_ONLY, theirs & ~ours),
    ):
        assert np.array_equal(found == value, expected)
    assert 2 * (found == 1).sum() / (ours.sum() + theirs.sum()) == pytest.approx(
        metrics.dice(ours, theirs)
    )


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("region", REGIONS)
def test_each_slice_has_the_dice_of_that_slice(pair, region, plane):
    slices = review(*pair, BRATS, grid(), plane=plane).slices
    assert slices.axis == {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    ours, theirs = (region_masks(labels, BRATS)[region] for labels in pair)
    for n in range(ours.shape[slices.axis]):
        a, b = np.take(ours, n, slices.axis), np.take(theirs, n, slices.axis)
        expected = metrics.dice(a, b) if a.any() or b.any() else np.nan
        assert slices.dice[region][n] == pytest.approx(expected, nan_ok=True)
        assert slices.wrong_voxels[region][n] == (a != b).sum()


def test_worst_slices_come_in_order_and_without_empty_ones(pair):
    slices = review(*pair, BRATS, grid()).slices
    order = worst_slices(slices, "WT")
    dice = slices.dice["WT"][order]
    assert (np.diff(dice) >= 0).all()
    assert len(order) == (~np.isnan(slices.dice["WT"])).sum() < grid().shape[2]
    ties = [n for n in order if slices.dice["WT"][n] == 0]
    assert (np.diff(slices.wrong_voxels["WT"][ties]) <= 0).all()
    largest = worst_slices(slices, "WT", by="voxels")
    assert (np.diff(slices.wrong_voxels["WT"][largest]) <= 0).all()


@pytest.mark.parametrize(("region", "by"), [("CSF", "dice"), ("WT", "luck")])
def test_slices_cannot_be_ranked_by_what_is_not_there(pair, region, by):
    slices = review(*pair, BRATS, grid()).slices
    with pytest.raises(UsageError):
        worst_slices(slices, region, by=by)


def test_two_empty_segmentations_agree_and_have_no_worst_slice():
    nothing = np.zeros((4, 5, 6), np.uint8)
    found = review(nothing, nothing, BRATS, grid(nothing.shape))
    assert all(s.dice == 1.0 and s.hd95_mm == 0.0 for s in found.scores.values())
    assert worst_slices(found.slices, "WT") == []
    assert not error_map(nothing, nothing, BRATS, "WT").any()


def test_only_regions_that_the_reference_speaks_about_are_scored(pair):
    found = review(*pair, BRATS, grid(), regions=["WT"])
    assert list(found.scores) == list(found.slices.dice) == ["WT"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda a, b: review(a[1:], b, BRATS, grid()), InputDataError),
        (lambda a, b: review(a, b * 0 + 9, BRATS, grid()), InputDataError),
        (lambda a, b: review(a, b, BRATS, grid(), regions=["XY"]), UsageError),
        (lambda a, b: review(a, b, BRATS, grid(), plane="oblique"), UsageError),
        (lambda a, b: error_map(a[1:], b, BRATS, "WT"), InputDataError),
        (lambda a, b: error_map(a, b, BRATS, "XY"), UsageError),
        (lambda a, b: region_diameters(a[1:], BRATS, grid()), InputDataError),
    ],
)
def test_what_cannot_be_compared_is_refused(pair, change, error):
    with pytest.raises(error):
        change(*pair)


@pytest.mark.parametrize("degrees", [0, 20, -40])
def test_slice_axes_and_positions_follow_the_affine(degrees):
    affine = (rotation(degrees, 0) @ np.diag([1, 2, 3.0, 1]))[:, [2, 0, 1, 3]]
    affine[:3, 3] = (5, 6, 7)
    turned = grid((4, 5, 6), affine)
    assert [slice_axis(turned, p) for p in ("sagittal", "coronal", "axial")] == [1, 2, 0]
    positions = slice_positions(turned, 0)
    np.testing.assert_allclose(np.diff(positions), 3.0)
    assert positions[0] == pytest.approx(affine[:3, 0] / 3 @ affine[:3, 3])


def test_focus_is_the_middle_of_what_matters_in_the_slice():
    weights = np.zeros((9, 9, 9), bool)
    weights[2:5, 6, 4] = True
    affine = rotation(30) @ np.diag([1, 2, 3, 1.0])
    np.testing.assert_allclose(
        focus(weights, Grid((9, 9, 9), affine), 2, 4), (affine @ [3, 6, 4, 1])[:3]
    )
    np.testing.assert_allclose(
        focus(weights, Grid((9, 9, 9), affine), 2, 0), (affine @ [4, 4, 0, 1])[:3]
    )


def test_the_heaviest_slice_has_the_largest_sum():
    values = np.zeros((3, 4, 5), np.float32)
    values[:, :, 1], values[0, 0, 3] = 0.1, 0.9
    assert heaviest_slices(values, 2) == [1, 3]
    assert heaviest_slices(values * 0, 2) == []


def brute(mask, affine, axes=(0, 1, 2)):
    """Longest distance between face centers, by trying all pairs; ``axes`` says which faces."""
    offsets = np.concatenate([np.eye(3)[list(axes)], -np.eye(3)[list(axes)]]) / 2
    points = (np.argwhere(mask)[:, None] + offsets).reshape(-1, 3) @ affine[:3, :3].T
    return pdist(points).max() if mask.any() else 0.0


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0, 17, -60]),
    st.sampled_from([(1, 1, 1), (0.9, 0.9, 3), (1, 2, 0.5)]),
)
def test_diameters_equal_all_pairs_of_one_piece(seed, degrees, spacing):
    rng = np.random.default_rng(seed)
    mask = np.zeros((9, 8, 7), bool)
    walk = np.clip(
        np.cumsum(rng.integers(-1, 2, (60, 3)), 0) + 4, 0, (8, 7, 6)
    )  # a walk is one piece
    mask[tuple(walk.T)] = True
    affine = rotation(degrees, 0) @ np.diag([*spacing, 1.0])
    found = longest_diameters(mask, Grid(mask.shape, affine))
    assert found.longest_mm == pytest.approx(brute(mask, affine))
    axis = slice_axis(Grid(mask.shape, affine))
    others = [a for a in range(3) if a != axis]
    flat = []
    for n in range(mask.shape[axis]):
        one = np.zeros_like(mask)
        one.swapaxes(0, axis)[n] = mask.swapaxes(0, axis)[n]
        flat.append(brute(one, affine, others))
    assert found.axial_mm == pytest.approx(max(flat))
    for mm, ends in ((found.longest_mm, found.longest_ends), (found.axial_mm, found.axial_ends)):
        assert np.linalg.norm(ends[0] - ends[1]) == pytest.approx(mm)


@pytest.mark.parametrize("degrees", [0, 25])
def test_an_ellipsoid_has_its_axes_as_diameters(degrees):
    affine = rotation(degrees, 1) @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = (3, 4, 5)
    ijk = np.stack(np.meshgrid(*[np.arange(100)] * 3, indexing="ij"), -1)
    mask = np.linalg.norm((ijk - 50) / [20, 30, 45], axis=-1) <= 1
    found = longest_diameters(mask, Grid(mask.shape, affine))
    assert found.longest_mm == pytest.approx(45, abs=1)
    assert found.axial_mm == pytest.approx(30, abs=1)
    center = affine[:3, :3] @ [50, 50, 50] + affine[:3, 3]
    np.testing.assert_allclose(found.longest_ends.mean(0), center, atol=0.6)


def test_a_bar_of_ten_voxels_is_ten_voxels_long_and_a_far_lesion_does_not_count():
    mask = np.zeros((30, 30, 30), bool)
    mask[5:15, 5, 5] = True
    assert longest_diameters(mask, grid(mask.shape, np.eye(4))).longest_mm == pytest.approx(10)
    mask[29, 29, 29] = True
    assert longest_diameters(mask, grid(mask.shape, np.eye(4))).longest_mm == pytest.approx(10)


def test_regions_without_voxels_have_no_diameter(pair):
    labels = np.where(pair[0] == 4, 2, pair[0])
    found = region_diameters(labels, BRATS, grid())
    assert (found["ET"].axial_mm, found["ET"].longest_mm, found["ET"].longest_ends) == (
        0.0,
        0.0,
        None,
    )
    assert found["WT"].longest_mm >= found["WT"].axial_mm > found["TC"].axial_mm > 0
    whole = longest_diameters(labels > 0, grid())
    np.testing.assert_allclose(found["WT"].longest_ends, whole.longest_ends)
    assert not any(d.longest_mm for d in region_diameters(labels * 0, BRATS, grid()).values())
