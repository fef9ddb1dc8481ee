"""The experiment on hearts: its recipes, and the figures of its table."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "MedMAPTraining/experiments"))

from hearts import ALL, METHODS, RATES, REGIONS, TASK, table
from shared import mean_dice

from medmap.evaluation.scoring import ScoreRow
from medmap.training.setup import check_recipe


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_trained(name):
    check_recipe(METHODS[name], TASK, None)


def test_methods_differ_in_the_objective_alone():
    base = METHODS["baseline"]
    for recipe in METHODS.values():
        assert recipe.network_options == base.network_options
        assert (recipe.steps, recipe.batch, recipe.patch) == (base.steps, base.batch, base.patch)
        assert recipe.missingness == "fixed"
    assert set(RATES) == set(TASK.modality_names)


def test_the_table_has_means_over_subsets_regions_and_seeds(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for seed, alone in ((0, 0.5), (1, 0.7)):
        dice = {}
        for subset in TASK.table_order():
            values = dict.fromkeys(REGIONS, alone)
            if TASK.subset_key(subset) == ALL:
                values = dict.fromkeys(REGIONS, 0.9)
            dice[TASK.subset_key(subset)] = values
        result = {"method": "PMR", "seed": seed, "cpu_seconds": 60.0, "dice": dice}
        (results / f"PMR-{seed}.json").write_text(json.dumps(result))
    head, _, row = table(tmp_path).splitlines()
    assert head.startswith("| method | LVB | RVB | MYO | mean | bSSFP | LGE | T2 |")
    # (6 x 50 + 90) / 7 = 55.7 and (6 x 70 + 90) / 7 = 72.9
    assert row.count("64.3 ± 12.1") == len(REGIONS) + 1
    assert row.count("60.0 ± 14.1") == len(TASK.modality_names)
    assert "| 90.0 ± 0.0 | 2 | 60 |" in row


def score(case: str, subset: str, region: str, dice: float) -> ScoreRow:
    """A row whose other figures are 0."""
    values = {field.name: 0.0 for field in fields(ScoreRow)}
    return ScoreRow(**{**values, "case": case, "subset": subset, "region": region, "dice": dice})


def test_dice_are_means_over_hearts():
    rows = []
    for subset in TASK.table_order():
        for case, dice in (("a", 0.4), ("b", 0.8)):
            for region in REGIONS:
                rows.append(score(case, TASK.subset_key(subset), region, dice))
    means = mean_dice(rows)
    assert set(means) == {TASK.subset_key(subset) for subset in TASK.table_order()}
    assert means[ALL]["MYO"] == pytest.approx(0.6)
