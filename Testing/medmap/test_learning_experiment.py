"""The experiment that trains every network and objective: its recipes, and what its table marks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "MedMAPTraining/experiments"))

from learning import ALL, methods, table

from medmap.devices import SMALLEST_DEEPEST_GRID
from medmap.networks import NETWORKS, build_network
from medmap.task import BRATS
from medmap.training.setup import check_recipe

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
    lines = {line.split(" | ")[0].strip("| "): line for line in table(tmp_path).splitlines()}
    assert "64.5 ± 7.8" in lines["UHeMIS"]
    assert "below the floor" in lines["UHeMIS"]
    assert "below the floor" not in lines["UHVED"]
