"""The comparison of generated with real cases: it sees a difference where there is one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "MedMAPTraining/experiments"))

from generator_realism import Sample, discriminate, distribution_table, measures


def sample(seed: int, brightness: float = 0.0) -> Sample:
    """A cube of noise as a brain, with a tumor in it."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(4, 40, 40, 40, generator=generator)
    label = torch.zeros(40, 40, 40, dtype=torch.uint8)
    label[10:20, 10:20, 10:20] = 2
    image[:, label > 0] += 3 + brightness
    brain = torch.zeros(40, 40, 40, dtype=torch.bool)
    brain[4:36, 4:36, 4:36] = True
    return Sample(image, label, brain)


@pytest.fixture(scope="module")
def cohorts() -> tuple[list[Sample], list[Sample]]:
    """Two cohorts of one kind."""
    return [sample(seed) for seed in range(8)], [sample(seed) for seed in range(8, 16)]


def test_the_table_says_where_cases_differ(cohorts):
    real, generated = cohorts
    brighter = [sample(seed, brightness=4) for seed in range(8, 16)]
    row = next(line for line in distribution_table(real, generated) if "T1, ED" in line)
    assert int(row.split("|")[-2].strip(" %")) > 40
    row = next(line for line in distribution_table(real, brighter) if "T1, ED" in line)
    assert row.split("|")[-2].strip() == "0%"


def test_sizes_are_in_milliliters(cohorts):
    volume_ml = measures()["WT: ml"](cohorts[0][0])
    assert volume_ml == pytest.approx(1000 * 1.5**3 / 1000)


def test_patches_of_one_kind_cannot_be_told_apart(cohorts):
    accuracy = discriminate(*cohorts, seed=0, steps=30)
    assert accuracy["mean"] < 0.8


def test_patches_of_two_kinds_can(cohorts):
    real, generated = cohorts
    smooth = [replace(case, image=case.image * 0.2) for case in generated]
    assert discriminate(real, smooth, seed=0, steps=30)["mean"] > 0.9
