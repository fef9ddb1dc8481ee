"""Scans that still show the skull are told from stripped ones, and stripped ones are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from Testing.medmap.preparation.conftest import (
    brain_of,
    grown,
    head_scan,
    in_thick_slices,
    stripped_scan,
)

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


THIN_SKULL = 0.75
"""Signal of thin bone in 4 mm cells, as a share of the brain: hardly darker, for scalp and brain
share its cells."""


def slab_under_bright_scalp(name: str, scalp: float) -> Volume:
    """A slab of a head with a thin skull under bright fat, as FLAIR shows near the vertex."""
    brain = torch.from_numpy(brain_of())[None, None].float()
    skull = grown(brain, 4.0)
    head = grown(skull, 8.0)[0, 0].numpy() > 0
    scan = stripped_scan(name).array
    level = float(np.median(scan[brain_of()]))
    array = np.where(head, scalp * level, 0.0)
    array = np.where(skull[0, 0].numpy() > 0, THIN_SKULL * level, array)
    array = np.where(brain_of(), scan, array)
    noise = np.random.default_rng(4).rayleigh(0.02 * level, array.shape)
    array = (array + noise).astype(np.float32)
    return Volume(array[:, :, 52:76], stripped_scan(name).affine)


@pytest.mark.parametrize("name", MODALITIES)
def test_bright_scalp_over_thin_bone_is_a_skull(name):
    assert has_skull(slab_under_bright_scalp(name, 2.2))


@pytest.mark.parametrize("name", ["t1", "flair"])
def test_dark_sulci_of_a_stripped_slab_are_no_skull(name):
    """An eighth of the cells below the surface are dark, as with wide sulci and fissures."""
    scan = stripped_scan(name)
    array = scan.array.copy()
    array[:, :, 30:34] *= 0.2
    array[:, ::16, :] *= 0.2
    for start in (0, 30, 60):
        slab = Volume(array[:, :, start : start + 28], scan.affine)
        assert not has_skull(slab)


def test_fluid_around_an_atrophied_brain_is_no_scalp():
    """The outer 4 mm of a stripped brain, a quarter of it, are fluid, three times as bright."""
    scan = stripped_scan("t2")
    outside = torch.from_numpy(~brain_of())[None, None].float()
    is_fluid = (grown(outside, 4.0)[0, 0].numpy() > 0) & brain_of()
    level = float(np.median(scan.array[brain_of()]))
    array = np.where(is_fluid, 3.0 * level, scan.array).astype(np.float32)
    assert not has_skull(Volume(array, scan.affine))


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
