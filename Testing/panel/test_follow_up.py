"""Two examinations: volumes and diameters side by side, and how much of the change to believe."""

from __future__ import annotations

import pytest


@pytest.fixture
def earlier(panel, patient, choose, finish):
    """A first result, from FLAIR alone, and a second one from FLAIR and T2."""
    choose(flair=patient["flair"])
    panel.ui.applyButton.click()
    finish()
    first = panel.state.result
    choose(t2=patient["t2"])
    panel.ui.applyButton.click()
    finish()
    return first


def column(table, number):
    return [table.item(row, number).text() for row in range(table.rowCount)]


def test_it_needs_a_result_and_another_segmentation(panel, earlier):
    assert not panel.ui.followUpButton.enabled
    panel.ui.earlierSelector.setCurrentNode(panel.state.result)
    assert not panel.ui.followUpButton.enabled
    panel.ui.earlierSelector.setCurrentNode(earlier)
    assert panel.ui.followUpButton.enabled


def test_the_change_is_the_difference_of_both(panel, earlier):
    earlier.GetSegmentation().RemoveSegment("ET")
    panel.ui.earlierSelector.setCurrentNode(earlier)
    panel.ui.followUpButton.click()
    table = panel.ui.followUpTable
    then, now, change = (column(table, number) for number in (1, 2, 3))
    for before, after, difference in zip(then, now, change, strict=True):
        assert float(difference) == pytest.approx(float(after) - float(before), abs=0.11)
    assert float(change[2]) > 0
    assert panel.ui.followUpSummaryLabel.text.startswith("WT ")


def test_other_modalities_are_warned_of(panel, earlier):
    panel.ui.earlierSelector.setCurrentNode(earlier)
    panel.ui.followUpButton.click()
    text = panel.ui.followUpLabel.text
    assert "from T2 + FLAIR, the earlier one from FLAIR" in text
    assert "Compare the modality subsets" in text


def test_a_change_within_that_of_the_subset_alone_is_no_change(panel, earlier, application):
    """The comparison of modality subsets says how much FLAIR alone would differ from both."""
    from MedMAPSegmentLib.mrml.nodes import Column, derive, fillTable

    result = panel.state.result
    table = derive(application.scene, "vtkMRMLTableNode", "what if", result, "what if")
    columns = [Column("Scans", ["T2 + FLAIR", "FLAIR"]), Column("Kind", ["Current", "One less"])]
    for region in ("WT", "TC", "ET"):
        columns += [Column(f"{region} change", [0.0, 500.0]), Column(f"{region} Dice", [1.0, 0.8])]
    fillTable(table, columns)
    panel.ui.earlierSelector.setCurrentNode(earlier)
    panel.ui.followUpButton.click()
    assert panel.ui.followUpLabel.text.count("The tumor may not have changed.") == 3


def test_the_same_modalities_need_no_warning(panel, earlier, finish):
    panel.inputs.slots["t2"].checkBox.click()
    panel.ui.applyButton.click()
    finish()
    panel.ui.earlierSelector.setCurrentNode(earlier)
    panel.ui.followUpButton.click()
    assert "\u26a0" not in panel.ui.followUpLabel.text


def test_the_table_is_copied_and_an_earlier_segmentation_that_goes_is_missed(
    panel, earlier, application
):
    from PySide6 import QtWidgets

    panel.ui.earlierSelector.setCurrentNode(earlier)
    panel.ui.followUpButton.click()
    panel.ui.copyFollowUpButton.click()
    assert "Relative change (%)" in QtWidgets.QApplication.clipboard().text()
    application.scene.RemoveNode(earlier)
    assert panel.state.earlierResult is None
    assert not panel.ui.followUpButton.enabled


@pytest.mark.parametrize(("change", "text"), [(-0.04, "+0.0"), (-0.06, "-0.1"), (0.0, "+0.0")])
def test_a_change_that_rounds_to_nothing_has_no_minus(panel, change, text):
    from MedMAPSegmentLib.sections.tables import changeText

    assert changeText(change) == text
