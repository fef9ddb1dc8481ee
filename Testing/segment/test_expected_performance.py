"""Expected performance shows figures of exactly the chosen subset, or that there are none."""

from __future__ import annotations

import copy

import pytest

from medmap.errors import UsageError
from medmap.task import BRATS
from MedMAPSegmentLib.expected_performance import expectedPerformance, measurementText


def entry(mean, sd=0.05, n=20):
    return {"mean": mean, "sd": sd, "n": n}


@pytest.fixture
def card():
    """A card as ``medmap.evaluation.summarize`` makes it, of three subsets."""
    subsets = {
        "flair": {"WT": entry(0.85), "TC": entry(0.5, 0.2), "ET": entry(0.2, 0.25)},
        "t1ce+flair": {"WT": entry(0.8912, 0.0456), "TC": entry(0.84), "ET": entry(0.8)},
        "t1+t1ce+t2+flair": {"WT": entry(0.92), "TC": entry(0.87), "ET": entry(0.81)},
    }
    return {"dice": {"data": "6 real cases", "cases": 20, "subsets": subsets}}


def test_figures_are_those_of_exactly_this_subset(card):
    shown = expectedPerformance(BRATS, card, ["flair", "t1ce"])
    assert shown.validated
    assert shown.subset == "t1ce+flair"
    assert shown.title == "T1ce + FLAIR"
    assert [(s.region, s.mean, s.sd, s.cases) for s in shown.scores] == [
        ("WT", 0.8912, 0.0456, 20),
        ("TC", 0.84, 0.05, 20),
        ("ET", 0.8, 0.05, 20),
    ]
    assert shown.scores[0].range == "0.85\u20130.94"
    assert shown.cases == 20
    assert shown.onPatients


def test_a_range_stays_within_what_dice_can_be(card):
    shown = expectedPerformance(BRATS, card, ["flair"])
    assert shown.scores[2].range == "0.00\u20130.45"


def test_real_cases_come_before_synthetic_ones(card):
    synthetic = copy.deepcopy(card["dice"])
    synthetic["subsets"]["t1ce+flair"]["WT"] = entry(0.99)
    synthetic["subsets"]["t1"] = {"WT": entry(0.3), "TC": entry(0.2), "ET": entry(0.1)}
    card["dice_synthetic"] = synthetic
    shown = expectedPerformance(BRATS, card, ["t1ce", "flair"])
    assert shown.scores[0].mean == 0.8912
    assert shown.onPatients
    onlySynthetic = expectedPerformance(BRATS, card, ["t1"])
    assert onlySynthetic.scores[0].mean == 0.3
    assert not onlySynthetic.onPatients


@pytest.mark.parametrize(
    "data", ["24 held-out synthetic tumour patients", "20 generated cases", "phantoms"]
)
def test_synthetic_cases_of_earlier_bundles_are_not_called_patients(card, data):
    card["dice"]["data"] = data
    assert not expectedPerformance(BRATS, card, ["flair"]).onPatients


def test_whom_the_model_was_made_for_and_the_details_come_from_the_card(card):
    card["population"] = "Adults with a glioma before surgery."
    card["training"] = "1500 steps, seed 30"
    shown = expectedPerformance(BRATS, card, ["flair"])
    assert shown.population == "Adults with a glioma before surgery."
    assert "seed 30" in shown.details
    assert "6 real cases" in shown.details


def test_a_subset_that_is_not_in_the_table_is_not_validated(card):
    shown = expectedPerformance(BRATS, card, ["t1", "t2"])
    assert not shown.validated
    assert shown.scores == ()
    assert not shown.onPatients


def test_the_warning_names_what_the_absent_modality_costs(card):
    shown = expectedPerformance(BRATS, card, ["flair"])
    assert "T1ce" in shown.warning
    assert expectedPerformance(BRATS, card, BRATS.modality_names).warning == ""


@pytest.mark.parametrize(
    "damage",
    [
        None,
        "text",
        {"WT": entry(float("nan")), "TC": entry(0.5), "ET": entry(0.5)},
        {"WT": entry(1.5), "TC": entry(0.5), "ET": entry(0.5)},
        {"WT": entry(True), "TC": entry(0.5), "ET": entry(0.5)},
        {"WT": entry("0.9"), "TC": entry(0.5), "ET": entry(0.5)},
        {"WT": {"mean": 0.9}, "TC": entry(0.5), "ET": entry(0.5)},
        {"TC": entry(0.5), "ET": entry(0.5)},
    ],
)
def test_a_damaged_entry_is_no_number(card, damage):
    damaged = copy.deepcopy(card)
    damaged["dice"]["subsets"]["flair"] = damage
    assert not expectedPerformance(BRATS, damaged, ["flair"]).validated


@pytest.mark.parametrize("table", [None, [], "x", {"subsets": 3}, {"subsets": []}])
def test_a_card_without_a_usable_table_is_not_validated(table):
    assert not expectedPerformance(BRATS, {"dice": table}, ["flair"]).validated


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "Measured on 1 patients"),
        (0, "how many is not recorded"),
        (-3, "how many is not recorded"),
        (True, "how many is not recorded"),
    ],
)
def test_the_number_of_cases_is_said_or_said_to_be_unknown(card, count, text):
    for region in card["dice"]["subsets"]["flair"].values():
        region["n"] = count
    performance = expectedPerformance(BRATS, card, ["flair"])
    assert text in measurementText(performance)


def test_an_unknown_modality_is_an_error(card):
    with pytest.raises(UsageError):
        expectedPerformance(BRATS, card, ["dwi"])
