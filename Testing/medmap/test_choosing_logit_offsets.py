"""Logit offsets are chosen as the script says, and tumor-free cases hold them back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "MedMAPTraining/experiments"))

from choose_logit_offsets import (
    NOTHING,
    SETTINGS,
    Record,
    best_setting,
    choose,
    decided,
    false_positives,
    groups_of,
    left_out,
    score_table,
    scores,
    silenced,
)

from medmap.postprocess.decoding import decode_by_region, nested_regions
from medmap.task import BRATS


def record(case: str, logits: np.ndarray, labels: np.ndarray, voxel_ml: float = 0.01) -> Record:
    totals = np.bincount(labels, minlength=4)[1:]
    return Record(case, logits.astype(np.float32), labels.astype(np.uint8), totals, voxel_ml)


def timid_case(case: str, noise: int = 0) -> Record:
    """400 voxels of enhancing core, of which the network is too sure that they are none."""
    rng = np.random.default_rng(noise)
    logits = np.array([0.5, 1.0, -1.5])[:, None] + 0.1 * rng.standard_normal((3, 400))
    return record(case, logits, np.full(400, 3))


def silent_case(case: str, level: float) -> Record:
    """A brain without a tumor; ``level`` is the logit of edema in 4 ml of it."""
    logits = np.full((3, 400), -6.0)
    logits[1] = level
    return record(case, logits, np.zeros(400, int))


def test_regions_are_decided_as_the_package_decides_them():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 500)) * 2
    case = record("a", logits, np.zeros(500, int))
    odds = torch.from_numpy(np.concatenate([np.ones((1, 500)), np.exp(logits)]))
    classes = decode_by_region(odds, nested_regions(BRATS)).numpy()
    regions = decided(case, NOTHING)
    np.testing.assert_array_equal(regions["WT"], classes > 0)
    np.testing.assert_array_equal(regions["TC"], np.isin(classes, (1, 3)))
    np.testing.assert_array_equal(regions["ET"], classes == 3)


def test_offsets_bring_back_a_class_that_the_network_hardly_dares():
    case = timid_case("a")
    assert scores(case, NOTHING)[2] == 0
    assert scores(case, (0.0, 0.5, 3.0))[2] > 0.9


def test_of_equally_good_settings_the_smallest_is_taken():
    means = np.full(len(SETTINGS), 0.5)
    means[SETTINGS.index((0.8, 0.0, 0.0))] = 0.7
    means[SETTINGS.index((1.2, 3.0, 4.0))] = 0.7005
    assert SETTINGS[best_setting(means)] == (0.8, 0.0, 0.0)
    assert SETTINGS[best_setting(np.full(len(SETTINGS), 0.5))] == NOTHING


def test_a_tumor_free_brain_lowers_the_offset_of_the_whole_tumor():
    records = [silent_case("free", -1.0)]
    assert false_positives(records, NOTHING) == 0
    assert false_positives(records, (1.2, 0.0, 0.0)) == 1
    whole, _, _ = silenced(records, (1.2, 0.5, 1.0))
    assert 0 < whole < 1.2
    assert false_positives(records, (whole, 0.5, 1.0)) == 0
    # One that is reported without any offset holds nothing back.
    assert silenced([silent_case("free", 1.0)], (1.2, 0.5, 1.0))[0] == 1.2


def test_each_case_is_scored_under_what_the_others_choose():
    # The third case is certain of what it is; the offsets of the others spoil it.
    certain = np.array([4.0, 3.0, 2.0])[:, None] + np.zeros((3, 400))
    other = record("c", certain, np.full(400, 1))
    records = {"flair": [timid_case("a", 1), timid_case("b", 2), other]}
    tables = {"flair": score_table(records["flair"])}
    chosen = SETTINGS[best_setting(tables["flair"][:2].mean((0, 2)))]
    expected = scores(other, chosen)
    others = []
    for number in (0, 1):
        remaining = np.delete(tables["flair"], number, axis=0).mean((0, 2))
        others.append(tables["flair"][number, best_setting(remaining)])
    row = left_out(tables, records)["flair"]
    np.testing.assert_allclose(row, np.mean([*others, expected], 0))


def test_subsets_with_and_without_the_modality_get_their_own(capsys):
    sure = np.array([-3.0, -2.0, 3.0])[:, None] + np.zeros((3, 400))
    records = {
        "t1ce": [record("a", sure, np.full(400, 3)), record("b", sure, np.full(400, 3))],
        "flair": [timid_case("a", 1), timid_case("b", 2)],
    }
    offsets = choose(records, ["t1ce"]).by_subset
    assert offsets["t1ce"] == {"NCR": 0.0, "ED": 0.0, "ET": 0.0}
    assert offsets["flair"]["ET"] > offsets["flair"]["ED"]
    assert "left out" in capsys.readouterr().out


def test_a_group_that_gains_only_where_it_was_fitted_gets_none():
    # One case would like enhancement, the other two would lose their core to it.
    certain = np.array([1.0, 0.0, -0.5])[:, None] + np.zeros((3, 400))
    records = {
        "flair": [
            timid_case("a", 1),
            record("b", certain, np.full(400, 1)),
            record("c", certain, np.full(400, 1)),
        ]
    }
    assert choose(records, ["t1ce"]).by_subset["flair"] == {"NCR": 0.0, "ED": 0.0, "ET": 0.0}


def test_subsets_are_grouped_by_the_modalities_that_they_have():
    keys = [BRATS.subset_key(subset) for subset in BRATS.subsets()]
    groups = groups_of(keys, ["t1ce", "t2+flair"])
    assert sorted(map(len, groups)) == [1, 2, 6, 6]
    assert ["t1"] in groups
    assert {"t1ce", "t1+t1ce"} in [set(group) for group in groups]
    assert groups_of(keys, []) == [keys]


@pytest.mark.parametrize("count", [1, 19])
def test_less_enhancement_than_the_least_counts_as_none(count):
    logits = np.full((3, 400), -6.0)
    logits[2, :count] = 6.0
    case = record("a", logits, np.zeros(400, int), voxel_ml=0.01)
    assert decided(case, NOTHING)["ET"].sum() == 0
