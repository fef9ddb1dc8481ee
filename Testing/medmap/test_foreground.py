"""Brain and background as tools write them: noise, ringing, padding, strays, oblique headers."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import ndimage

from medmap import foreground
from medmap.checks import check_inputs
from medmap.foreground import find_foreground
from medmap.inference import plausibility_warnings, segment
from medmap.metrics import dice
from medmap.preprocess import PreprocessSpec, prepare
from medmap.task import BRATS, MYOPS
from medmap.volume import Volume

SHAPE = (90, 104, 80)


@pytest.fixture(scope="module")
def brain():
    """An ellipsoid with texture, intensities about 300, fluid below 10, background 0."""
    axes = [np.linspace(-1, 1, size) * 1.5 for size in SHAPE]
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    rng = np.random.default_rng(0)
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2)
    scan = 300 + 600 * texture
    scan[(radius > 0.2) & (radius < 0.24)] = 6.0
    # Fluid at the surface, as in a brain: edges are not the brightest steps of a scan.
    scan[radius > 0.92] = 40.0
    return np.where(radius < 1, np.clip(scan, 4, None), 0).astype(np.float32)


def with_strays(scan):
    scan = scan.copy()
    scan[1, 1, 1] = scan[-2, -2, -2] = scan.max()
    return scan


def with_letters(scan):
    scan = scan.copy()
    scan[2:9, 2:4, 10:60] = scan.max()
    return scan


def with_marker(scan):
    scan = scan.copy()
    scan[2:6, 50:54, 38:42] = scan.max()
    return scan


def with_noise(scan):
    noise = np.random.default_rng(1).random(scan.shape)
    return (scan + 0.01 * scan.max() * noise).astype(np.float32)


def with_normal_noise(scan):
    noise = np.random.default_rng(1).standard_normal(scan.shape)
    return (scan + 0.004 * scan.max() * noise).astype(np.float32)


def with_ringing(scan):
    return ndimage.shift(scan, (0.4, 0.3, 0.2), order=3)


VARIANTS = [
    with_strays, with_letters, with_marker, with_noise, with_normal_noise, with_ringing,
]  # fmt: skip


@pytest.mark.parametrize("change", VARIANTS, ids=lambda f: f.__name__)
def test_the_mask_is_that_of_the_plain_scan(brain, change):
    expected = find_foreground(brain).mask
    mask = find_foreground(change(brain)).mask
    assert dice(mask, expected) > 0.97
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        extent = np.flatnonzero(mask.any(others))[[0, -1]]
        plain = np.flatnonzero(expected.any(others))[[0, -1]]
        assert np.abs(extent - plain).max() <= 1


def test_ringing_that_was_rounded_to_integers_is_background(brain):
    # With bright tissue up to the edge, lobes are deep; far from it they round to 0.
    bright = np.where(brain > 0, np.maximum(brain, 200), 0)
    interpolated = ndimage.shift(bright, (1 / 3,) * 3, order=3)
    step = interpolated.max() / 1000
    mask = find_foreground((interpolated / step).round()).mask
    expected = find_foreground(interpolated).mask
    assert dice(mask, expected) > 0.997
    assert not mask[interpolated < -step].any()


def test_a_plain_scan_keeps_every_voxel_dark_fluid_included(brain):
    assert np.array_equal(find_foreground(brain).mask, brain != 0)


def test_two_hemispheres_and_parts_of_a_limited_field_of_view_stay(brain):
    divided = brain.copy()
    divided[40:50] = 0
    assert np.array_equal(find_foreground(divided).mask, divided != 0)


def test_noise_that_was_padded_with_a_constant_is_background(brain):
    padded = np.pad(with_noise(brain), 12)
    inner = find_foreground(padded).mask[12:-12, 12:-12, 12:-12]
    assert dice(inner, find_foreground(brain).mask) > 0.99


@pytest.mark.parametrize("level", [0.0, -1000.0, 40.0])
def test_the_background_may_have_any_value(brain, level):
    shifted = np.where(brain == 0, level, brain + 50).astype(np.float32)
    assert np.array_equal(find_foreground(shifted).mask, brain != 0)


def test_a_z_scored_brain_on_both_sides_of_its_background(brain):
    inside = brain != 0
    scores = np.where(inside, (brain - brain[inside].mean()) / brain[inside].std(), 0.0)
    noisy = scores + np.random.default_rng(0).normal(0, 0.002, scores.shape)
    mask = find_foreground(noisy.astype(np.float32)).mask
    assert dice(mask, inside) > 0.94


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("change", [with_noise, with_strays], ids=lambda f: f.__name__)
def test_the_mask_moves_with_the_voxels(brain, change, order):
    scan = change(brain)
    turned = find_foreground(scan.transpose(order)[::-1, :, ::-1]).mask
    plain = find_foreground(scan).mask.transpose(order)[::-1, :, ::-1]
    assert dice(turned, plain) > 0.999


def rotation(degrees, axis):
    angle = np.radians(degrees)
    i, j = (a for a in range(3) if a != axis)
    matrix = np.eye(4)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j] = -np.sin(angle)
    matrix[j, i] = np.sin(angle)
    return matrix


def about(point, matrix):
    there = np.eye(4)
    there[:3, 3] = point
    return there @ matrix @ np.linalg.inv(there)


def padded(volume, count):
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.full(3, count)
    return Volume(np.pad(volume.array, count), affine, volume.name)


@pytest.mark.parametrize("spacing", [2.0, 1.5])
@pytest.mark.parametrize("angles", [(12, -6), (25, -12), (30, 30)], ids=str)
def test_a_header_that_turns_the_patient_changes_nothing(volumes, tiny_bundle, angles, spacing):
    from dataclasses import replace

    bundle = replace(tiny_bundle, preprocess=PreprocessSpec(spacing=spacing))
    turn = about((11.0, -20.0, 33.3), rotation(angles[0], 0) @ rotation(angles[1], 2))
    turned = {}
    for name, volume in volumes.items():
        turned[name] = Volume(volume.array, turn @ volume.affine, volume.name)
    plain = segment(volumes, bundle)
    result = segment(turned, bundle)
    assert dice(result.labels > 0, plain.labels > 0) > 0.97
    for name, volume_ml in plain.volumes_ml.items():
        assert result.volumes_ml[name] == pytest.approx(volume_ml, rel=0.03)


@pytest.mark.parametrize("change", ["strays", "padding"])
def test_strays_and_padding_change_nothing(volumes, tiny_bundle, change):
    changed = dict(volumes)
    if change == "strays":
        array = with_strays(volumes["flair"].array)
        changed["flair"] = Volume(array, volumes["flair"].affine, "flair")
    else:
        changed = {name: padded(volume, 31) for name, volume in volumes.items()}
    plain = segment(volumes, tiny_bundle)
    result = segment(changed, tiny_bundle)
    labels = result.labels
    if change == "padding":
        labels = labels[31:-31, 31:-31, 31:-31]
    assert dice(labels > 0, plain.labels > 0) > 0.97


def test_the_working_axes_are_those_of_an_oblique_reference(volumes):
    turn = rotation(20, 0)
    turned = {}
    for name, volume in volumes.items():
        turned[name] = Volume(volume.array, turn @ volume.affine, volume.name)
    spec = PreprocessSpec(spacing=1.7)
    plain = prepare(volumes, BRATS, spec, multiple=8)
    result = prepare(turned, BRATS, spec, multiple=8)
    assert result.grid.shape == plain.grid.shape
    assert np.allclose(result.image, plain.image, atol=1e-3)
    assert np.allclose(result.grid.affine, turn @ plain.grid.affine, atol=1e-6)


def test_what_lies_apart_is_reported(volumes):
    volume = padded(volumes["flair"], 10)
    stray = Volume(with_strays(volume.array), volume.affine, "flair")
    findings = check_inputs({"flair": stray}, BRATS)
    apart = [finding for finding in findings if finding.check == "apart"]
    assert len(apart) == 1
    assert "lie apart from the brain" in apart[0].message


def test_a_tumor_of_half_a_brain_is_reported():
    (finding,) = plausibility_warnings({"WT": 500.0, "TC": 20.0, "ET": 0.0}, 1400.0, BRATS)
    assert "36% of the brain" in finding.message
    assert not plausibility_warnings({"WT": 300.0}, 1400.0, BRATS)
    assert not plausibility_warnings({"LV": 500.0}, 1400.0, MYOPS)


@pytest.mark.parametrize("level", [-3.0, 0.0, 7.0])
@pytest.mark.parametrize("count", [0, 3, 400, 717])
def test_quantiles_are_those_of_all_finite_voxels(level, count):
    rng = np.random.default_rng(count)
    scan = np.full((8, 9, 10), level)
    scan.ravel()[rng.permutation(720)[:count]] = rng.normal(2, 4, count)
    scan[0, 0, :2] = np.nan
    finite = np.isfinite(scan)
    exact = finite & (scan != level)
    shares = (0.001, 0.3, 0.999)
    part = foreground._Part(scan, finite, exact, level, scan.ravel(), 0)
    quantiles = foreground._quantiles(part, shares)
    np.testing.assert_allclose(quantiles, np.quantile(scan[finite], shares), rtol=0, atol=1e-12)
    scan[4:, 4:, 4:] = 1.5
    exact[4:, 4:, 4:] = False
    two_backgrounds = foreground._quantiles(part, shares)
    np.testing.assert_array_equal(two_backgrounds, np.quantile(scan[finite], shares))
