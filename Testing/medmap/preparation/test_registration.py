"""Rigid registration: known displacements are found, and nothing is made worse."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from Testing.medmap.preparation.conftest import (
    brain_of,
    displaced,
    head_scan,
    in_thick_slices,
    patient,
    stripped_scan,
)

from medmap.errors import UnavailableError
from medmap.preparation.availability import simple_itk_is_installed
from medmap.preparation.misalignment import measure_misalignment
from medmap.preparation.motion import Motion, mask_points
from medmap.preparation.registration import register, transform_text

sitk = pytest.importorskip("SimpleITK")


def error_mm(movement: np.ndarray, truth: np.ndarray) -> float:
    """Mean displacement that remains over the voxels of the brain."""
    points = mask_points(brain_of(), patient().affine)
    origin = Motion.identity(np.zeros(3))
    return Motion(movement @ truth, np.zeros(3)).distance_mm(origin, points)


def registered(fixed, moving):
    return register(fixed, moving, fixed.foreground, moving.foreground)


CASES = [
    ("t1ce", "t2", 4.0, (5.0, -3.0, 2.0), 0),
    ("flair", "t1", 15.0, (0.0, 12.0, 16.0), 1),
    ("t2", "flair", -9.0, (-8.0, 6.0, 0.0), 2),
]


def test_displaced_contrasts_in_thick_slices_are_found_to_half_a_millimeter(motion):
    errors = []
    for fixed_name, moving_name, degrees, shift_mm, axis in CASES:
        truth = motion(degrees, shift_mm, axis)
        fixed = in_thick_slices(stripped_scan(fixed_name), (1.5, 1.5, 4.0))
        moving = displaced(in_thick_slices(stripped_scan(moving_name), (2.0, 4.0, 2.0)), truth)
        result = registered(fixed, moving)
        assert result.is_accepted, result.reason
        assert result.metric_after > result.metric_before
        assert result.repeat_mm < 1.0
        errors.append(error_mm(result.movement, truth))
    assert np.median(errors) <= 0.5
    assert max(errors) <= 2.0


def test_aligned_scans_stay_within_a_fraction_of_a_voxel():
    result = registered(stripped_scan("t1"), stripped_scan("t2"))
    assert error_mm(result.movement, np.eye(4)) < 0.5


def test_scans_of_two_patients_are_not_forced_onto_each_other():
    fixed = stripped_scan("t1")
    other = stripped_scan("t1")
    # Half of a brain, mirrored front to back: no motion makes it the same.
    array = np.where(np.arange(108)[None, :, None] < 54, other.array[:, ::-1], 0)
    moving = type(other)(np.ascontiguousarray(array), other.affine, "other")
    result = registered(fixed, moving)
    assert not result.is_accepted
    assert np.array_equal(result.movement, np.eye(4))
    assert result.reason


def test_the_transform_file_places_the_moving_scan(tmp_path, motion):
    movement = motion(10.0, (3.0, 4.0, 5.0))
    path = tmp_path / "t.tfm"
    path.write_text(transform_text(movement))
    transform = sitk.ReadTransform(str(path))
    point = np.array([20.0, -30.0, 10.0])
    moved = (movement @ [*point, 1])[:3]
    lps = np.array([-1.0, -1.0, 1.0])
    # ITK asks for each fixed point where it lies in the moving scan.
    assert transform.TransformPoint((moved * lps).tolist()) == pytest.approx(point * lps)


def test_without_simpleitk_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    assert not simple_itk_is_installed()
    scan = stripped_scan("t1")
    with pytest.raises(UnavailableError, match=r"SimpleITK.*medmap\[clinic\]"):
        registered(scan, scan)


@pytest.mark.parametrize(
    ("degrees", "shift_mm"),
    [(0.0, (0.0, 0.0, 0.0)), (0.0, (4.0, -4.0, 4.0)), (8.0, (6.0, 0.0, 8.0))],
)
def test_misalignment_is_measured_without_simpleitk(degrees, shift_mm, motion):
    truth = motion(degrees, shift_mm)
    fixed = head_scan("t1")
    moving = displaced(in_thick_slices(head_scan("t2"), (1.5, 1.5, 4.0)), truth)
    expected = error_mm(np.eye(4), truth)
    measured = measure_misalignment(fixed, moving, brain_of())
    assert measured.mm == pytest.approx(expected, abs=1.5)
