"""The experiment that trains every network and objective: its recipes, and what its table marks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "MedMAPTraining/experiments"))

from learning import SPLIT, Study, coarse_cohort, coarser, subset_table, table
from learning_methods import ALL, COHORT_SPACING, methods
from shared import synthetic_cohort

from medmap.devices import SMALLEST_DEEPEST_GRID
from medmap.io.cohorts import find_cases
from medmap.io.labels import read_case_labels
from medmap.networks import NETWORKS, build_network
from medmap.task import BRATS
from medmap.training.setup import check_recipe
from medmap.training.splits import read_split
from medmap.volume import Grid

METHODS = methods()


def test_no_network_is_left_out():
    assert {method.recipe.network for method in METHODS.values()} == set(NETWORKS)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_can_be_trained_in_bf16(name):
    """A smaller deepest map would be trained in fp32, which takes up to four times as long."""
    method = METHODS[name]
    teacher = None
    if method.teacher:
        recipe = METHODS[method.teacher].recipe
        options = {"modalities": 4, "classes": 4, "spatial_dims": 3, **recipe.network_options}
        teacher = build_network(recipe.network, options)
    assert check_recipe(method.recipe, BRATS, teacher) >= SMALLEST_DEEPEST_GRID


def test_the_table_marks_what_stays_below_the_floor_in_any_seed(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for name, seed, wt in (("UHeMIS", 0, 0.7), ("UHeMIS", 1, 0.59), ("UHVED", 0, 0.61)):
        dice = {ALL: {"WT": wt, "TC": 0.5, "ET": 0.4}}
        result = {"method": name, "seed": seed, "cpu_seconds": 60.0, "dice": dice}
        (results / f"{name}-{seed}.json").write_text(json.dumps(result))
    text = table(tmp_path, list(METHODS))
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "64.5 ± 7.8" in lines["UHeMIS"]
    assert "below the floor" in lines["UHeMIS"]
    assert "below the floor" not in lines["UHVED"]
    assert "| 61.0 |" in lines["UHVED"], "one seed has no SD"


def test_the_table_of_subsets_has_the_mean_over_seeds_and_dashes(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for name, seed, wt in (("UHeMIS", 0, 0.7), ("UHeMIS", 1, 0.6), ("VNet", 0, 0.8)):
        dice = {ALL: {"WT": wt}}
        if name == "UHeMIS":
            dice["t1ce"] = {"WT": wt - 0.5}
        result = {"method": name, "seed": seed, "dice": dice}
        (results / f"{name}-{seed}.json").write_text(json.dumps(result))
    lines = subset_table(tmp_path, list(METHODS)).splitlines()
    assert lines[0] == "| modalities | VNet | UHeMIS |"
    assert "| T1ce | – | 15 |" in lines
    assert "| T1 + T1ce + T2 + FLAIR | 80 | 65 |" in lines
    assert len(lines) == 2 + 15


def test_patients_are_averaged_to_the_phantoms_voxels(tmp_path):
    fine = synthetic_cohort(tmp_path / "fine", 1, 7, 1.5)
    (case,) = find_cases(coarse_cohort(fine, tmp_path / "coarse"), BRATS)
    (original,) = find_cases(fine, BRATS)
    labels = read_case_labels(case, BRATS)
    reference = read_case_labels(original, BRATS)
    assert set(case.scans) == set(BRATS.modality_names)
    np.testing.assert_allclose(labels.grid.spacing, COHORT_SPACING)
    volume = (labels.array > 0).sum() * labels.grid.voxel_ml
    expected = (reference.array > 0).sum() * reference.grid.voxel_ml
    assert volume == pytest.approx(expected, rel=0.1)


def test_a_coarser_grid_covers_the_same_box():
    grid = Grid((9, 9, 10), np.diag([-1.0, 1.0, 1.0, 1.0]))
    coarse = coarser(grid)
    assert coarse.shape == (3, 3, 4)
    np.testing.assert_allclose(coarse.affine[:3, 3], [-1, 1, 1])
    np.testing.assert_allclose(coarse.affine[:3, :3], np.diag([-3, 3, 3]))


def test_runs_with_other_steps_lie_beside_those_of_the_budget(tmp_path):
    longer = Study(tmp_path, steps=1600)
    assert longer.results != Study(tmp_path).results
    assert longer.runs != Study(tmp_path).runs


def test_no_patient_is_trained_and_tested_on():
    split = read_split(SPLIT)
    assert {part: len(names) for part, names in split.items()} == {"train": 42, "test": 8}
    assert not set(split["train"]) & set(split["test"])
