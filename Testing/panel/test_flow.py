"""One flow: what is next is open, what is done is summed up, and Apply never leaves the sight."""

from __future__ import annotations

import pytest
import vtk


def folded(panel) -> set[str]:
    """Names of the boxes that are folded."""
    names = ("inputs", "results", "review", "subsets", "followUp", "settings")
    return {name for name in names if getattr(panel.ui, f"{name}CollapsibleButton").collapsed}


def test_a_new_panel_shows_the_inputs(panel):
    assert folded(panel) == {"results", "review", "subsets", "followUp", "settings"}


def test_a_result_folds_the_inputs_with_a_summary(panel, result):
    assert "inputs" in folded(panel)
    assert "results" not in folded(panel)
    summary = panel.ui.inputsSummaryLabel.text
    assert "T2 + FLAIR" in summary
    assert "expected WT 0." in summary
    assert "no problems" in summary or "warning" in summary


def test_an_open_box_needs_no_summary(panel, result):
    panel.ui.inputsCollapsibleButton.collapsed = False
    assert panel.ui.inputsSummaryLabel.text == ""
    panel.ui.resultsCollapsibleButton.collapsed = True
    assert panel.ui.resultsSummaryLabel.text.startswith("WT ")


def test_what_the_user_folds_is_kept_in_the_scene(panel, result):
    panel.ui.settingsCollapsibleButton.click()
    assert "settings" not in folded(panel)
    panel.exit()
    panel.enter()
    assert "settings" not in folded(panel)
    assert "settings" not in panel.state.parameterNode().GetParameter("folded")


def test_every_box_can_be_open_at_once(panel):
    for name in folded(panel):
        getattr(panel.ui, f"{name}CollapsibleButton").collapsed = False
    assert folded(panel) == set()
    panel.state.changed()
    assert folded(panel) == set()


def test_a_chosen_reference_is_reviewed_without_another_click(
    panel, patient, choose, finish, application
):
    """From a loaded patient with two modalities and a reference: Detect, Apply."""
    import numpy as np
    import slicer.util

    reference = application.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "expert")
    array = slicer.util.arrayFromVolume(patient["flair"])
    values = np.select([array > 600, array > 450, array > 350], [2, 4, 1], 0).astype(np.uint8)
    slicer.util.updateVolumeFromArray(reference, values)
    reference.CopyOrientation(patient["flair"])
    panel.ui.detectButton.click()
    assert panel.state.reviewReference is reference
    panel.ui.applyButton.click()
    finish()
    assert panel.ui.reviewTable.rowCount == 3
    assert "review" not in folded(panel)
    assert panel.state.result.GetDisplayNode().GetVisibility()


@pytest.mark.parametrize("height", [620, 900])
def test_apply_is_in_sight_without_scrolling(panel, result, application, height):
    """A window of 768 pixels leaves about 620 to the module panel."""
    from PySide6 import QtCore, QtWidgets

    for name in folded(panel):
        getattr(panel.ui, f"{name}CollapsibleButton").collapsed = False
    QtWidgets.QWidget.resize(panel.parent, 400, height)
    for _ in range(4):
        application.app.processEvents()
    assert QtWidgets.QWidget.height(panel.parent) <= height
    for button in (panel.ui.applyButton, panel.ui.noticeLabel):
        corner = QtWidgets.QWidget.mapTo(button, panel.parent, QtCore.QPoint(0, 0))
        assert 0 <= corner.y() <= height - QtWidgets.QWidget.height(button)


class TestPatient:
    def test_a_marked_surgery_stands_at_the_inputs_and_at_the_result(
        self, panel, patient, choose, finish
    ):
        choose(flair=patient["flair"])
        panel.ui.surgeryCheckBox.click()
        assert "after surgery" in panel.ui.populationLabel.text
        panel.ui.applyButton.click()
        finish()
        assert "after surgery" in panel.ui.resultsWarningLabel.text
        panel.ui.surgeryCheckBox.click()
        assert panel.ui.populationLabel.text == ""
        assert "after surgery" in panel.ui.resultsWarningLabel.text

    def test_what_is_marked_after_apply_stands_at_the_result_and_its_edited_copy(
        self, panel, result, patient, choose
    ):
        from MedMAPSegmentLib.mrml.editing import editedCopy
        from MedMAPSegmentLib.mrml.export import warningsOf

        copy = editedCopy(panel.state.scene, result)
        panel.ui.otherTumorCheckBox.click()
        assert "another kind" in panel.ui.resultsWarningLabel.text
        assert any("another kind" in warning for warning in warningsOf(copy))
        # A file that is written later says it, too.
        segment = result.GetSegmentation().GetNthSegment(0)
        text = vtk.reference("")
        assert segment.GetTag("MedMAP.Provenance", text)
        assert "another kind" in str(text)
        panel.ui.otherTumorCheckBox.click()
        assert "another kind" in panel.ui.resultsWarningLabel.text

    def test_a_mark_for_other_volumes_is_none_for_the_result(self, panel, result, patient, choose):
        choose(flair=None, t2=None, t1=patient["t1"])
        panel.ui.surgeryCheckBox.click()
        assert "after surgery" in panel.ui.populationLabel.text
        assert panel.ui.resultsWarningLabel.text == ""

    def test_a_child_is_noticed_from_dicom(self, panel, patient, choose):
        patient["flair"].SetAttribute("DICOM.PatientAge", "009Y")
        choose(flair=patient["flair"])
        assert "9 years old according to DICOM" in panel.ui.populationLabel.text
