"""Tumors of one case in the brain of another: what changes, what does not, and what is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medmap.task import BRATS
from medmap.training.cache import PreparedArrays
from medmap.training.dataset import Augmentation
from medmap.training.missingness import full
from medmap.training.transplanted import (
    LEAST_INSIDE,
    TransplantedSampler,
    contrasts,
    cut_graft,
    transplanted,
)

SHAPE = (40, 44, 36)
HEALTHY_Z = 0.25
TUMOR_Z = 2.0


def case_of(name: str, tumor: bool, modalities: str = "1111", gain: float = 1.0) -> PreparedArrays:
    """A brain of one tissue with some noise; its tumor is brighter and has a core."""
    rng = np.random.default_rng(len(name))
    brain = np.zeros(SHAPE, np.uint8)
    brain[4:-4, 4:-4, 4:-4] = 1
    label = np.zeros(SHAPE, np.uint8)
    if tumor:
        label[15:25, 18:28, 13:23] = 2
        label[18:22, 21:25, 16:20] = 3
    images = []
    for digit in modalities:
        if digit == "0":
            images.append(None)
            continue
        values = HEALTHY_Z + rng.normal(0, 0.1, SHAPE)
        values[label > 0] = TUMOR_Z
        images.append((gain * values * brain).astype(np.float16))
    return PreparedArrays(
        case_id=name,
        image=tuple(images),
        available=np.array([digit == "1" for digit in modalities]),
        label=label,
        brain=brain,
    )


class HeldSampler(TransplantedSampler):
    """The sampler on cases in memory, by name."""

    def __init__(self, hosts, donors):
        self.by_name = {case.case_id: case for case in (*hosts, *donors)}
        folders = [Path(name) for name in self.by_name]
        donor_folders = [Path(case.case_id) for case in donors]
        augmentation = Augmentation(foreground=1.0)
        super().__init__(folders, donor_folders, full(BRATS), 5, augmentation)

    def _case(self, folder):
        case = self.by_name[folder.name]
        self._tumor_voxels[folder] = np.flatnonzero(case.label)
        return case


def drawn(sampler, number):
    _, case, voxels = sampler._drawn_case(np.random.default_rng([1, number]))
    return case, voxels


def test_a_healthy_brain_receives_the_tumor_and_is_the_same_elsewhere():
    host = case_of("host", tumor=False)
    graft = cut_graft(case_of("donor", tumor=True), np.random.default_rng(0))
    case = transplanted(host, graft, np.random.default_rng(0))
    assert set(np.unique(case.label)) == {0, 2, 3}
    assert np.array_equal(case.brain, host.brain)
    for scan, original in zip(case.image, host.image, strict=True):
        is_changed = scan != original
        assert is_changed[case.label == 2].all()
        assert is_changed.mean() < 0.25
        assert not scan[case.brain == 0].any()
    assert not host.label.any()


def test_the_tumor_takes_the_contrast_of_its_new_brain():
    donor = case_of("donor", tumor=True, gain=1.3)
    host = case_of("host", tumor=False)
    sampler = HeldSampler([host], [donor])
    hosted = [drawn(sampler, n)[0] for n in range(12)]
    grown = [case for case in hosted if case.case_id == "host"]
    assert grown
    for case in grown:
        core = case.label == 3
        # The donor's tumor stands out by so many spreads of its healthy tissue.
        healthy = contrasts(donor)[0]
        z = (1.3 * TUMOR_Z - healthy.median) / healthy.spread
        expected = contrasts(host)[0].median + z * contrasts(host)[0].spread
        assert np.median(case.image[0][core]) == pytest.approx(expected, rel=0.1)


def test_the_rim_fades_from_the_tumor_to_the_host():
    for seed in range(8):
        graft = cut_graft(case_of("donor", tumor=True), np.random.default_rng(seed))
        assert (graft.weight[graft.label > 0] == 1).all()
        profile = graft.weight[:, graft.weight.shape[1] // 2, graft.weight.shape[2] // 2]
        steps = np.diff(profile)
        assert profile[0] == profile[-1] == 0
        assert np.abs(steps).max() < 0.5


def test_only_modalities_of_both_are_shown():
    host = case_of("host", tumor=False, modalities="1011")
    donor = case_of("donor", tumor=True, modalities="1101")
    sampler = HeldSampler([host], [donor])
    cases = [drawn(sampler, n)[0] for n in range(12)]
    grown = [case for case in cases if case.label.any() and case.case_id == "host"]
    assert grown
    for case in grown:
        assert case.available.tolist() == [True, False, False, True]
        assert [scan is None for scan in case.image] == [False, True, True, False]


def test_without_a_common_modality_or_another_donor_the_host_stays():
    apart = HeldSampler(
        [case_of("host", tumor=False, modalities="1000")],
        [case_of("donor", tumor=True, modalities="0001")],
    )
    for number in range(8):
        case, voxels = drawn(apart, number)
        assert case is apart.by_name[case.case_id]
        assert voxels.size == np.count_nonzero(case.label)


def test_a_tumor_that_fits_nowhere_is_not_cut():
    host = case_of("host", tumor=False)
    small = np.zeros(SHAPE, np.uint8)
    small[18:21, 18:21, 16:18] = 1
    graft = cut_graft(case_of("donor", tumor=True), np.random.default_rng(0))
    assert transplanted(replace(host, brain=small), graft, np.random.default_rng(0)) is None
    case = transplanted(host, graft, np.random.default_rng(0))
    placed = np.count_nonzero(case.label)
    assert placed >= LEAST_INSIDE * np.count_nonzero(graft.label)


def test_a_sample_is_a_function_of_seed_step_and_number():
    def sampler():
        return HeldSampler([case_of("host", tumor=False)], [case_of("donor", tumor=True)])

    together = sampler().batch(3, 4, (16, 16, 16))
    alone = sampler().batch(3, 1, (16, 16, 16), first=2)
    assert np.array_equal(together.image[2], alone.image[0])
    assert np.array_equal(together.label[2], alone.label[0])
    assert together.label.any()
