"""What happens to a scene between two clicks: nodes that go, come, are renamed, or are another
patient's. Nothing here may raise, or show a figure of what is no longer there.
"""

from __future__ import annotations

import json

import numpy as np
import pytest


@pytest.fixture
def reference(panel, patient, result, application):
    """A label volume on a coarser, shifted grid that shows part of the tumor."""
    import slicer.util

    array = slicer.util.arrayFromVolume(patient["t2"])
    labels = np.select([array > 600, array > 450, array > 350], [2, 4, 1], 0).astype(np.uint8)
    node = application.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "expert")
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(labels[::2, 1:, :]))
    node.CopyOrientation(patient["t2"])
    node.SetSpacing(np.multiply(node.GetSpacing(), (1, 1, 2)))
    panel.ui.reviewSelector.setCurrentNode(node)
    return node


@pytest.fixture
def reviewed(panel, reference, finish):
    panel.ui.reviewButton.click()
    finish()
    assert panel.ui.reviewTable.rowCount == 3
    return panel


def shown(node):
    return node.GetDisplayNode().GetVisibility()


def errors_of(panel, result):
    from MedMAPSegmentLib.mrml import review_nodes

    return review_nodes.nodesOf(panel.state.scene, result).errors


class TestReview:
    def test_a_reference_that_goes_leaves_its_review(self, panel, reviewed, reference, application):
        application.scene.RemoveNode(reference)
        assert panel.ui.reviewTable.rowCount == 3
        assert panel.ui.outdatedReviewLabel.text == ""
        panel.ui.worstSliceButton.click()
        panel.ui.regionComboBox.setCurrentIndex(2)
        panel.ui.plotButton.click()
        assert not panel.ui.reviewButton.enabled

    def test_a_result_that_goes_takes_its_figures_along(self, panel, reviewed, result, application):
        application.scene.RemoveNode(result)
        assert panel.state.result is None
        for table in (panel.ui.resultsTable, panel.ui.reviewTable, panel.ui.worstTable):
            assert table.rowCount == 0
        for button in ("worstSliceButton", "plotButton", "editButton", "exportButton"):
            assert not getattr(panel.ui, button).enabled, button
        panel.ui.undoButton.click()

    def test_a_result_that_goes_while_it_is_compared_is_said(
        self, panel, reference, result, application, finish
    ):
        panel.ui.reviewButton.click()
        application.scene.RemoveNode(result)
        finish()
        assert "was removed" in application.desk.texts()[0]

    def test_a_scene_that_is_closed_while_it_is_compared_is_forgotten(
        self, panel, reference, application, finish
    ):
        panel.ui.reviewButton.click()
        application.scene.Clear()
        finish()
        assert panel.ui.reviewTable.rowCount == 0
        assert not application.desk.texts()

    def test_renamed_nodes_are_the_same(self, panel, reviewed, result, reference):
        result.SetName("renamed")
        reference.SetName("renamed, too")
        panel.state.changed()
        assert panel.ui.outdatedReviewLabel.text == ""
        panel.ui.reviewButton.click()

    def test_hidden_segments_are_measured(self, panel, reviewed, result):
        before = panel.ui.resultsTable.item(0, 1).text()
        result.GetDisplayNode().SetSegmentVisibility("ED", False)
        panel.state.changed()
        assert panel.ui.resultsTable.item(0, 1).text() == before

    def test_differences_of_a_former_result_are_hidden_when_a_new_one_comes(
        self, panel, reviewed, result, finish
    ):
        errors = errors_of(panel, result)
        assert shown(errors)
        panel.ui.reviewSelector.setCurrentNode(None)
        panel.ui.applyButton.click()
        finish()
        assert not shown(errors)
        assert not shown(result)
        assert shown(panel.state.result)

    def test_an_edited_copy_of_a_former_result_is_hidden_when_a_new_one_comes(
        self, panel, result, application, finish
    ):
        from MedMAPSegmentLib.mrml.editing import editedCopy

        copy = editedCopy(application.scene, result)
        panel.ui.outputSelector.setCurrentNode(result)
        panel.ui.applyButton.click()
        finish()
        assert not shown(copy)
        assert shown(panel.state.result)


class TestHandOver:
    def test_without_the_scan_labels_are_exported_and_the_report_says_why_it_has_no_picture(
        self, panel, result, patient, application, tmp_path
    ):
        for node in patient.values():
            application.scene.RemoveNode(node)
        panel.ui.exportComboBox.setCurrentIndex(2)
        application.desk.answers["getSaveFileName"] = str(tmp_path / "labels.nii.gz")
        panel.ui.exportButton.click()
        assert (tmp_path / "labels.nii.gz").exists()
        application.desk.answers["getSaveFileName"] = str(tmp_path / "report.html")
        panel.ui.reportButton.click()
        assert "no longer in the scene" in (tmp_path / "report.html").read_text(encoding="utf-8")
        assert not application.desk.texts()

    def test_segments_that_a_person_added_are_not_dropped_in_silence(
        self, panel, result, application, tmp_path
    ):
        import slicer

        from MedMAPSegmentLib.mrml.editing import editedCopy

        copy = editedCopy(application.scene, result)
        segment = slicer.vtkSegment()
        segment.SetName("Fistula")
        copy.GetSegmentation().AddSegment(segment)
        panel.ui.exportComboBox.setCurrentIndex(2)
        application.desk.answers["getSaveFileName"] = str(tmp_path / "labels.nii.gz")
        panel.ui.exportButton.click()
        assert "none of the labels: Fistula" in panel.ui.statusLabel.text
        assert json.loads((tmp_path / "labels.json").read_text())["edited_by_hand"] is True
        application.desk.answers["getSaveFileName"] = str(tmp_path / "report.html")
        panel.ui.reportButton.click()
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "none of the labels: Fistula" in page
        assert "Edited by hand" in page

    def test_labels_that_are_not_there_are_zero_and_not_undefined(
        self, panel, patient, choose, finish, computation, application, tmp_path
    ):
        """No enhancing tumor, as without T1ce."""
        inner = panel.logic._segment

        def without_enhancing(volumes, bundle, **options):
            outcome = inner(volumes, bundle, **options)
            outcome.labels[outcome.labels == 4] = 0
            return outcome

        panel.logic._segment = without_enhancing
        choose(flair=patient["flair"])
        panel.ui.applyButton.click()
        finish()
        row = [panel.ui.resultsTable.item(2, column).text() for column in range(4)]
        assert row == ["Enhancing tumor (ET)", "0.0", "0.0", "0.0"]
        application.desk.answers["getSaveFileName"] = str(tmp_path / "report.pdf")
        panel.ui.reportButton.click()
        application.desk.answers["getSaveFileName"] = str(tmp_path / "labels.nii.gz")
        panel.ui.exportComboBox.setCurrentIndex(2)
        panel.ui.exportButton.click()
        assert json.loads((tmp_path / "labels.json").read_text())["labels"]["4"]
        assert not application.desk.texts()


class TestFollowUp:
    @pytest.fixture
    def two(self, panel, result, finish):
        """An earlier result, and one of today."""
        panel.ui.applyButton.click()
        finish()
        panel.ui.earlierSelector.setCurrentNode(result)
        return result

    def test_another_patient_and_a_later_date_are_warned_of(self, panel, two):
        two.SetAttribute("DICOM.PatientID", "A")
        two.SetAttribute("DICOM.StudyDate", "20250201")
        panel.state.result.SetAttribute("DICOM.PatientID", "B")
        panel.state.result.SetAttribute("DICOM.StudyDate", "20240131")
        panel.ui.followUpButton.click()
        text = panel.ui.followUpLabel.text
        assert "different patients" in text
        assert "is of 2025-02-01, the result of 2024-01-31" in text

    def test_one_patient_in_order_needs_no_warning(self, panel, two):
        for node, date in ((two, "20240131"), (panel.state.result, "20250201")):
            node.SetAttribute("DICOM.PatientID", "A")
            node.SetAttribute("DICOM.StudyDate", date)
        panel.ui.followUpButton.click()
        assert "\u26a0" not in panel.ui.followUpLabel.text

    def test_an_earlier_segmentation_without_geometry_is_refused_in_words(
        self, panel, result, application
    ):
        empty = application.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
        panel.ui.earlierSelector.setCurrentNode(empty)
        panel.ui.followUpButton.click()
        assert "has no reference geometry" in application.desk.texts()[0]
        assert panel.ui.followUpTable.rowCount == 0

    def test_the_result_that_goes_takes_the_follow_up_along(self, panel, two, application):
        panel.ui.followUpButton.click()
        application.scene.RemoveNode(panel.state.result)
        assert panel.ui.followUpTable.rowCount == 0
        assert not panel.ui.followUpButton.enabled
