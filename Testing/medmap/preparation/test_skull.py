"""Scans that still show the skull are told from stripped ones, and stripped ones are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from Testing.medmap.preparation.conftest import head_scan, in_thick_slices, stripped_scan

from medmap.preparation.brain_extraction import STRIPPED, extract_brain
from medmap.preparation.skull import has_skull
from medmap.volume import Volume

MODALITIES = ("t1", "t1ce", "t2", "flair")


@pytest.mark.parametrize("name", MODALITIES)
def test_a_head_has_a_skull_and_a_brain_has_none(name):
    assert has_skull(head_scan(name))
    assert not has_skull(stripped_scan(name))


@pytest.mark.parametrize("name", ["t1", "flair"])
def test_thick_slices_and_limited_fields_of_view_change_nothing(name):
    for build, expected in ((head_scan, True), (stripped_scan, False)):
        thick = in_thick_slices(build(name), (1.5, 1.5, 5.0))
        assert has_skull(thick) == expected
        slab = Volume(thick.array[:, :, 12:24], thick.affine)
        assert has_skull(slab) == expected


def test_a_stripped_scan_with_another_background_is_recognized():
    scan = stripped_scan("t2")
    brain = scan.array != 0
    scores = np.where(brain, (scan.array - scan.array[brain].mean()) / scan.array[brain].std(), -9)
    assert not has_skull(Volume(scores.astype(np.float32), scan.affine))


def test_extraction_leaves_a_stripped_scan_alone():
    scan = stripped_scan("t1ce")
    brain = extract_brain(scan, "t1ce")
    assert brain.method == STRIPPED
    lost = np.count_nonzero((scan.array != 0) & ~brain.mask) / np.count_nonzero(scan.array != 0)
    assert lost <= 0.01
