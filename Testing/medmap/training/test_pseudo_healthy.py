"""Cases without their tumor: the other side of the brain in its place, nothing else changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medmap.training.cache import PreparedArrays
from medmap.training.pseudo_healthy import FADING_VOXELS, midline, mirrored, without_tumor

SHAPE = (41, 44, 36)
BRAIN = (slice(3, 36), slice(4, 40), slice(4, 32))
TUMOR = (slice(7, 13), slice(16, 24), slice(14, 20))
TUMOR_Z = 5.0


def case_of(*tumors: tuple[slice, ...], lacking: int | None = None) -> PreparedArrays:
    """A symmetric brain, its middle at index 19 of the first axis, with bright tumors."""
    brain = np.zeros(SHAPE, np.uint8)
    brain[BRAIN] = 1
    label = np.zeros(SHAPE, np.uint8)
    for tumor in tumors:
        label[tumor] = 2
    distance = np.abs(np.arange(SHAPE[0]) - 19.0)
    tissue = (1 + 0.05 * distance)[:, None, None] * brain
    images = []
    for modality in range(4):
        values = tissue * (1 + 0.1 * modality)
        values[label > 0] = TUMOR_Z
        images.append(None if modality == lacking else values.astype(np.float16))
    return PreparedArrays(
        case_id="case",
        image=tuple(images),
        available=np.array([image is not None for image in images]),
        label=label,
        brain=brain,
    )


def test_the_other_side_replaces_the_tumor():
    case = case_of(TUMOR, lacking=1)
    original = case_of(lacking=1)
    healthy = without_tumor(case)
    assert not healthy.label.any()
    assert np.array_equal(healthy.brain, case.brain)
    assert healthy.image[1] is None
    assert healthy.available.tolist() == case.available.tolist()
    for m in (0, 2, 3):
        # The brain is symmetric, so its healthy half restores it.
        np.testing.assert_allclose(healthy.image[m], original.image[m], rtol=2e-3)
        assert (case.image[m][TUMOR] == TUMOR_Z).all()


def test_far_from_the_tumor_nothing_changes():
    case = case_of(TUMOR)
    healthy = without_tumor(case)
    is_far = np.ones(SHAPE, bool)
    reach = 2 * FADING_VOXELS
    is_far[tuple(slice(part.start - reach, part.stop + reach) for part in TUMOR)] = False
    for scan, original in zip(healthy.image, case.image, strict=True):
        assert np.array_equal(scan[is_far], original[is_far])


def test_a_case_without_a_tumor_is_taken_as_it_is():
    case = case_of()
    assert without_tumor(case) is case


def test_where_both_sides_have_tumor_the_field_of_view_ends():
    across = (slice(12, 26), slice(16, 24), slice(14, 20))
    healthy = without_tumor(case_of(across))
    assert not healthy.label.any()
    shown = np.flatnonzero(healthy.brain.any(axis=(0, 1)))
    # Above the tumor there are twelve slices, below it ten.
    assert shown.tolist() == list(range(20, 32))
    for scan in healthy.image:
        assert not scan[..., :20].any()
        assert (scan < TUMOR_Z).all()


def test_a_tumor_in_nearly_every_slice_of_both_sides_leaves_nothing():
    assert without_tumor(case_of((slice(12, 26), slice(16, 24), slice(6, 30)))) is None


@pytest.mark.parametrize("shift", [-2, 0, 3])
def test_the_midline_is_that_of_the_brain(shift):
    brain = np.zeros((30, 6, 6), bool)
    brain[8 + shift : 22 + shift] = True
    assert midline(brain) == 29 + 2 * shift
    assert np.array_equal(mirrored(brain, midline(brain)), brain)


def test_mirroring_leaves_zeros_outside():
    row = np.arange(1, 6).reshape(5, 1, 1)
    assert mirrored(row, 4).ravel().tolist() == [5, 4, 3, 2, 1]
    assert mirrored(row, 2).ravel().tolist() == [3, 2, 1, 0, 0]
    assert mirrored(row, 6).ravel().tolist() == [0, 0, 5, 4, 3]


def test_a_brain_that_ends_earlier_on_the_other_side_is_cut():
    case = case_of(TUMOR)
    brain = case.brain.copy()
    brain[26:36, 16:24, 14:20] = 0
    healthy = without_tumor(replace(case, brain=brain))
    gap = healthy.brain[TUMOR] == 0
    assert gap.any()
    for scan in healthy.image:
        assert not scan[healthy.brain == 0].any()
        assert (scan < TUMOR_Z).all()
