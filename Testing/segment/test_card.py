"""The card shows measured figures of exactly the chosen subset, or that there are none."""

from __future__ import annotations

import copy

import pytest

from medmap.errors import UsageError
from medmap.task import BRATS, Modality, Region, Task
from MedMAPSegmentLib.expected_performance import NOT_VALIDATED, subsetCard


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
    return {
        "dice": {"data": "generated phantoms, seeds 9000-9019", "cases": 20, "subsets": subsets}
    }


def test_figures_are_those_of_exactly_this_subset(card):
    shown = subsetCard(BRATS, card, ["flair", "t1ce"])
    assert shown.validated
    assert shown.subset == "t1ce+flair"
    assert shown.title == "T1ce + FLAIR (2 of 4 modalities)"
    assert [(s.region, s.mean, s.sd, s.cases) for s in shown.scores] == [
        ("WT", 0.8912, 0.0456, 20),
        ("TC", 0.84, 0.05, 20),
        ("ET", 0.8, 0.05, 20),
    ]
    assert "Dice Whole tumor (WT): 0.89 ± 0.05 (all modalities: 0.92)" in shown.text
    assert "20 cases (generated phantoms, seeds 9000-9019)" in shown.text
    assert NOT_VALIDATED not in shown.text


def test_all_scans_are_not_compared_with_themselves(card):
    shown = subsetCard(BRATS, card, BRATS.modality_names)
    assert shown.validated
    assert shown.complete == ()
    assert "all modalities" not in shown.text
    assert shown.warnings == ()


def test_a_subset_that_is_not_in_the_table_is_not_validated(card):
    shown = subsetCard(BRATS, card, ["t1", "t2"])
    assert not shown.validated
    assert shown.scores == shown.complete == ()
    assert NOT_VALIDATED in shown.text
    assert not any(
        character.isdigit() for line in shown.text.splitlines()[1:2] for character in line
    )


@pytest.mark.parametrize(
    "broken", [{}, {"dice": None}, {"dice": []}, {"dice": {"subsets": "none"}}, {"dice": {}}]
)
def test_a_bundle_without_a_table_is_not_validated(broken):
    assert NOT_VALIDATED in subsetCard(BRATS, broken, ["flair"]).text


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.pop("ET"),
        lambda e: e.update(ET=None),
        lambda e: e["ET"].pop("mean"),
        lambda e: e["ET"].pop("sd"),
        lambda e: e["ET"].update(mean="0.9"),
        lambda e: e["ET"].update(mean=float("nan")),
        lambda e: e["ET"].update(mean=1.2),
        lambda e: e["ET"].update(mean=-0.1),
        lambda e: e["ET"].update(sd=float("inf")),
        lambda e: e["ET"].update(mean=True),
    ],
)
def test_a_damaged_entry_is_not_validated_rather_than_shown(card, change):
    damaged = copy.deepcopy(card)
    change(damaged["dice"]["subsets"]["t1ce+flair"])
    assert not subsetCard(BRATS, damaged, ["t1ce", "flair"]).validated
    assert subsetCard(BRATS, damaged, ["flair"]).validated


@pytest.mark.parametrize(
    ("n", "said"), [(None, "number of cases unknown"), (1, "1 case ("), (True, "unknown")]
)
def test_the_number_of_cases_is_that_of_the_subset_or_unknown(card, n, said):
    for scores in card["dice"]["subsets"]["flair"].values():
        scores["n"] = n
    assert said in subsetCard(BRATS, card, ["flair"]).data


def test_figures_without_a_source_say_so(card):
    del card["dice"]["data"]
    assert "what they are is not recorded" in subsetCard(BRATS, card, ["flair"]).text


@pytest.mark.parametrize("subset", BRATS.subsets(), ids="+".join)
def test_warnings_are_those_of_the_absent_modalities(card, subset):
    warnings = " ".join(subsetCard(BRATS, card, subset).warnings)
    assert ("enhancing tumor is not visible" in warnings) == ("t1ce" not in subset)
    assert ("Without FLAIR" in warnings) == ("flair" not in subset)


def test_no_scan_is_no_combination(card):
    shown = subsetCard(BRATS, card, [])
    assert shown.text == "No volume is selected."
    assert not shown.validated
    assert shown.subset == ""


def test_other_tasks_have_their_own_regions_and_warnings():
    modalities = (
        Modality("c0", "bSSFP"),
        Modality("de", "LGE", (), "Without LGE, scar is not visible."),
    )
    task = Task("heart", modalities, (), (Region("scar", "Scar", ()),))
    card = {"dice": {"data": "x", "cases": 3, "subsets": {"c0": {"scar": entry(0.4, 0.1, 3)}}}}
    shown = subsetCard(task, card, ["c0"])
    assert "Dice Scar (scar): 0.40 ± 0.10" in shown.text
    assert shown.warnings == ("Without LGE, scar is not visible.",)
    with pytest.raises(UsageError):
        subsetCard(task, card, ["flair"])


def test_the_table_of_the_evaluation_is_understood():
    from medmap.evaluation import ScoreRow, summarize

    rows = [
        ScoreRow(
            f"c{n}", "+".join(s), region, dice + 0.1 * n, dice, 3.0, 3.0, 1.0, 1.0, 5.0, 5.0, 373.13
        )
        for n in range(2)
        for s in BRATS.subsets()
        for region, dice in (("WT", 0.8), ("TC", 0.5), ("ET", 0.6))
    ]
    table = summarize(rows, BRATS, "two cases").to_dict()
    shown = subsetCard(BRATS, {"dice": table}, ["t2"])
    assert shown.scores[0].text == "0.85 ± 0.07"
    assert shown.data == "2 cases (two cases)"
