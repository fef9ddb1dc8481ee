"""Each scan is prepared from that scan alone, and the way back leads to the very same voxels."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmap import resampling
from medmap.errors import BundleError, InputDataError, UsageError
from medmap.foreground import foreground
from medmap.postprocess.reference_labels import labels_on_reference
from medmap.preprocess import PreprocessSpec, normalize, prepare
from medmap.resampling import (
    canonical_axes,
    reorient,
    resample_linear,
    resample_nearest,
    restore_orientation,
)
from medmap.task import BRATS
from medmap.volume import Grid, Volume, choose_reference

SPEC = PreprocessSpec(spacing=2.0)


def stored(volume: Volume, order, flips) -> Volume:
    """The same voxels at the same places, stored along other axes."""
    array = volume.array.transpose(order)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, old in enumerate(order):
        change[old, new] = -1 if flips[new] else 1
        change[old, 3] = volume.array.shape[old] - 1 if flips[new] else 0
    return Volume(np.ascontiguousarray(array), volume.affine @ change, volume.name)


def normalized(array):
    mask, _ = foreground(array)
    return normalize(array, mask, SPEC)


def test_a_scan_is_normalized_over_its_own_foreground(volumes):
    array, mask = normalized(volumes["t1"].array)
    assert abs(array[mask].mean()) < 0.05
    assert abs(array[mask].std() - 1) < 0.05
    assert (array[~mask] == 0).all()


def test_normalization_does_not_see_gain_and_offset_of_the_scanner(volumes):
    array = volumes["t2"].array
    scaled = np.where(array == 0, -7.5, array * 13 + 40).astype(np.float32)
    np.testing.assert_allclose(normalized(scaled)[0], normalized(array)[0], atol=1e-3)


def test_present_scans_are_prepared_alike_whatever_else_there_is(volumes):
    alone = prepare({"t1ce": volumes["t1ce"]}, BRATS, SPEC, multiple=8)
    full = prepare(volumes, BRATS, SPEC, reference="t1ce", multiple=8)
    assert alone.grid.shape == full.grid.shape
    assert np.array_equal(alone.grid.affine, full.grid.affine)
    m = BRATS.index("t1ce")
    assert torch.equal(alone.image[m], full.image[m])
    assert (alone.image[[n for n in range(4) if n != m]] == 0).all()


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3))[::3], ids=str)
def test_every_stored_orientation_gives_the_same_tensor(volumes, order, flips):
    expected = prepare({"t1": volumes["t1"]}, BRATS, SPEC, multiple=8)
    turned = prepare({"t1": stored(volumes["t1"], order, flips)}, BRATS, SPEC, multiple=8)
    assert turned.grid.distance(expected.grid) < 1e-6
    # Axes are interpolated in another order: a few roundings of the largest z-score.
    error = 16 * torch.finfo(torch.float32).eps * float(expected.image.abs().max())
    torch.testing.assert_close(turned.image, expected.image, atol=error, rtol=0)


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_labels_come_back_voxel_for_voxel_where_nothing_was_interpolated(volumes, order):
    scan = stored(volumes["t1"], order, (True, False, True))
    prepared = prepare({"t1": scan}, BRATS, SPEC, multiple=16)
    rng = np.random.default_rng(0)
    truth = np.where(normalized(scan.array)[1], rng.integers(0, 4, scan.array.shape), 0)
    from medmap.resampling import to_grid

    hot = torch.stack(
        [to_grid((truth == c).astype(np.float32), scan.grid, prepared.grid) for c in range(4)]
    )
    labels = labels_on_reference(hot, prepared, BRATS)
    assert np.array_equal(labels, np.array([0, 1, 2, 4])[truth])
    assert labels.dtype == np.uint8


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.tuples(*[st.floats(-0.5, 0.5)] * 3),
    st.tuples(*[st.floats(0.8, 4.0)] * 3),
    st.sampled_from(list(permutations(range(3)))),
    st.tuples(*[st.booleans()] * 3),
)
def test_a_ball_returns_to_its_place_from_any_grid(angles, spacing, order, flips):
    affine = np.eye(4)
    affine[:3, :3] = rotation(*angles) @ np.diag(spacing)
    shape = tuple(int(64 / s) for s in spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    world = ijk @ affine[:3, :3].T + affine[:3, 3]
    head = np.linalg.norm(world, axis=-1) < 28
    ball = np.linalg.norm(world - [6, -5, 4], axis=-1) < 11
    scan = Volume(
        np.where(head, 100 + world[..., 0] + 50 * ball, 0).astype(np.float32), affine, "ball"
    )
    scan = stored(scan, order, flips)
    ball = stored(Volume(ball.astype(np.float32), affine), order, flips).array > 0.5
    prepared = prepare({"t1": scan}, BRATS, SPEC, multiple=8)
    centers = torch.stack(
        torch.meshgrid(
            *(torch.arange(n, dtype=torch.float64) for n in prepared.grid.shape), indexing="ij"
        ),
        -1,
    )
    position = centers @ torch.tensor(prepared.grid.affine[:3, :3]).T + torch.tensor(
        prepared.grid.affine[:3, 3]
    )
    inside = torch.clamp(
        (11 - (position - torch.tensor([6.0, -5.0, 4.0])).norm(dim=-1)) / 2 + 0.5, 0, 1
    ).float()
    probability = torch.stack(
        [1 - inside, inside, torch.zeros_like(inside), torch.zeros_like(inside)]
    )
    labels = labels_on_reference(probability, prepared, BRATS)
    overlap = 2 * (ball & (labels == 1)).sum() / (ball.sum() + (labels == 1).sum())
    assert labels.shape == scan.array.shape
    assert overlap > 0.93


def rotation(a: float, b: float, c: float) -> np.ndarray:
    result = np.eye(3)
    for axis, angle in enumerate((a, b, c)):
        i, j = (n for n in range(3) if n != axis)
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        result = result @ turn
    return result


def test_the_finest_scan_is_the_reference_and_t1ce_wins_among_equals(make_case):
    fine = make_case(spacing=2.0)["t1"].grid
    coarse = make_case(shape=(20, 24, 18), spacing=4.0)["t1"].grid
    assert choose_reference({"flair": fine, "t1ce": fine, "t1": fine}) == "t1ce"
    assert choose_reference({"flair": fine, "t1ce": coarse}) == "flair"


def test_a_reference_that_was_not_given_is_refused(volumes):
    with pytest.raises(UsageError, match="t2"):
        prepare({"t1": volumes["t1"]}, BRATS, SPEC, reference="t2")


def test_no_scan_at_all_is_refused():
    with pytest.raises(UsageError, match="No image"):
        prepare({}, BRATS, SPEC)


def test_a_scan_without_contrast_is_refused(volumes):
    flat = np.where(volumes["t1"].array != 0, 5.0, 0.0).astype(np.float32)
    with pytest.raises(InputDataError, match="contrast"):
        normalized(flat)


def test_inputs_are_never_changed(volumes):
    before = {name: v.array.copy() for name, v in volumes.items()}
    prepare(volumes, BRATS, SPEC)
    assert all(np.array_equal(before[name], volumes[name].array) for name in volumes)


def test_reorienting_and_back_is_the_identity():
    array = np.arange(24).reshape(2, 3, 4)
    for order in permutations(range(3)):
        affine = np.eye(4)[:, [*order, 3]] * [1, -1, 1, 1]
        view, grid = reorient(array, Grid(array.shape, affine))
        assert canonical_axes(grid.affine) == ((0, 1, 2), (False, False, False))
        assert np.array_equal(restore_orientation(view, Grid(array.shape, affine)), array)


def test_sampling_a_linear_field_is_exact():
    source = Grid(
        (12, 10, 8), np.array([[0, 2.0, 0, -5], [1.5, 0, 0, 3], [0, 0, -1.0, 2], [0, 0, 0, 1]])
    )
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in source.shape), indexing="ij"), -1)
    world = ijk @ source.affine[:3, :3].T + source.affine[:3, 3]
    field = torch.tensor(world @ [1.0, -2.0, 0.5], dtype=torch.float32)
    inner = source.affine @ np.array([[1, 0, 0, 3.3], [0, 1, 0, 2.2], [0, 0, 1, 1.7], [0, 0, 0, 1]])
    target = Grid((5, 4, 3), inner)
    got = resample_linear(field[None], source, target)[0].numpy()
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in target.shape), indexing="ij"), -1)
    expected = (ijk @ inner[:3, :3].T + inner[:3, 3]) @ [1.0, -2.0, 0.5]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("nearest", [None, 0, 2])
def test_parallel_grids_are_interpolated_axis_by_axis_as_any_grids_are(monkeypatch, nearest):
    generator = np.random.default_rng(0)
    image = torch.from_numpy(generator.normal(size=(2, 14, 20, 9)))
    for _ in range(20):
        affines = []
        for _grid in range(2):
            affine = np.diag([*generator.uniform(0.7, 3, 3), 1.0])
            affine[:3, 3] = generator.uniform(-12, 12, 3)
            affines.append(affine)
        source = Grid((14, 20, 9), affines[0])
        target = Grid((8, 11, 13), affines[1])
        by_axis = resample_linear(image, source, target, nearest)
        with monkeypatch.context() as patch:
            patch.setattr(resampling, "_is_straight", lambda *_: False)
            anyhow = resample_linear(image, source, target, nearest)
        torch.testing.assert_close(by_axis, anyhow, rtol=0, atol=1e-11)


def test_a_point_halfway_between_two_slices_takes_the_lower_one():
    image = torch.arange(4.0).reshape(1, 1, 1, 4)
    halfway = np.eye(4)
    halfway[2, 3] = 0.5
    for slanted in (0.0, 1e-2):
        affine = halfway.copy()
        affine[0, 1] = slanted
        moved = resample_linear(image, Grid((1, 1, 4), np.eye(4)), Grid((1, 1, 3), affine), 2)
        assert moved.flatten().tolist() == [0, 1, 2]


def test_labels_are_sampled_by_the_nearest_voxel_and_empty_outside():
    source = Grid((4, 4, 4), np.eye(4))
    labels = np.arange(64).reshape(4, 4, 4)
    moved = np.eye(4)
    moved[:3, 3] = (1.2, 0.4, -0.3)
    got = resample_nearest(labels, source, Grid((4, 4, 4), moved))
    assert np.array_equal(got[:3], labels[1:])
    assert (got[3] == 0).all()


@pytest.mark.parametrize("spacing", [2.0, 1.5])
def test_one_segmentation_looks_at_each_scan_once(volumes, tiny_bundle, monkeypatch, spacing):
    """Two scans: two foreground masks, two orientations, one pass for connected components."""
    from dataclasses import replace

    from medmap import checks, foreground, preprocess, resampling, volume
    from medmap.inference import segment
    from medmap.postprocess import components
    from medmap.postprocess.spec import ConfidenceSpec, PostprocessSpec

    counts = {"foreground": 0, "axes": 0, "components": 0}

    def counted(name, function):
        def call(*arguments):
            counts[name] += 1
            return function(*arguments)

        return call

    look = counted("foreground", foreground.find_foreground)
    for module in (foreground, volume, checks, preprocess):
        monkeypatch.setattr(module, "find_foreground", look, raising=False)
    monkeypatch.setattr(resampling, "canonical_axes", counted("axes", resampling.canonical_axes))
    number_components = counted("components", components.number_components)
    monkeypatch.setattr(components, "number_components", number_components)
    bundle = replace(
        tiny_bundle,
        preprocess=replace(tiny_bundle.preprocess, spacing=spacing),
        postprocess=PostprocessSpec(1.0, 0.1, 0.4),
        confidence=ConfidenceSpec({"t1ce+flair": 0.5}),
    )
    segment({name: volumes[name] for name in ("t1ce", "flair")}, bundle)
    assert counts == {"foreground": 2, "axes": 2, "components": 1}


def test_intensities_can_be_scaled_to_minus_one_and_one():
    """MedMAP's conference version; the percentiles are the ends, background stays 0."""
    array = np.linspace(100, 300, 1000).reshape(10, 10, 10)
    foreground = np.ones(array.shape, bool)
    foreground[0] = False
    spec = PreprocessSpec(percentiles=(0, 100), scaling="minmax")
    scaled, organ = normalize(array, foreground, spec)
    values = array[foreground]
    expected = 2 * (values - values.min()) / (values.max() - values.min()) - 1
    np.testing.assert_allclose(scaled[organ], expected, atol=1e-6)
    assert not scaled[~organ].any()
    clipped, _ = normalize(array, foreground, PreprocessSpec(scaling="minmax"))
    assert clipped.min() == -1
    assert clipped.max() == 1
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec
    assert "scaling" not in PreprocessSpec().to_dict(), "bundles and caches are those of before"
    with pytest.raises(BundleError):
        PreprocessSpec.from_dict({"scaling": "rank"})
