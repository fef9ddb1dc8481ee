"""Figures of labels that somebody has changed since: they are measured anew, or said to be old."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def reference(panel, result, application):
    """A copy of the result as somebody else would make it."""
    node = application.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "expert")
    node.GetSegmentation().DeepCopy(result.GetSegmentation())
    for number in range(node.GetSegmentation().GetNumberOfSegments()):
        node.GetSegmentation().GetNthSegment(number).RemoveTag("MedMAP.Label")
    panel.ui.reviewSelector.setCurrentNode(node)
    return node


@pytest.fixture
def reviewed(panel, reference, finish):
    panel.ui.reviewButton.click()
    finish()
    return panel


def erase(node, name):
    """What the eraser of the Segment Editor does: the image of a segment changes in its place."""
    from vtk.util.numpy_support import vtk_to_numpy

    segment = node.GetSegmentation().GetSegment(name)
    image = segment.GetRepresentation("Binary labelmap")
    values = vtk_to_numpy(image.GetPointData().GetScalars())
    values[values == segment.GetLabelValue()] = 0
    image.Modified()


def warning(panel):
    return panel.ui.outdatedReviewLabel.text


def volumes(panel):
    table = panel.ui.resultsTable
    return [float(table.item(row, 1).text()) for row in range(table.rowCount)]


def test_volumes_follow_edits_of_the_result(panel, result):
    before = volumes(panel)
    erase(result, "ED")
    panel.exit()
    panel.enter()
    assert volumes(panel)[0] < before[0]
    assert volumes(panel)[1:] == before[1:]


@pytest.mark.parametrize("edited", ["result", "reference"])
def test_a_review_of_labels_that_were_edited_since_says_so(panel, result, reviewed, finish, edited):
    assert warning(panel) == ""
    erase({"result": result, "reference": panel.state.reviewReference}[edited], "ET")
    panel.state.changed()
    assert "Press Compare again" in warning(panel)
    panel.ui.reviewButton.click()
    finish()
    assert warning(panel) == ""


def test_scores_of_another_reference_or_of_other_choices_are_said_to_be_so(
    panel, result, reviewed, application, finish
):
    first = panel.state.reviewReference
    other = application.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "resident")
    other.GetSegmentation().DeepCopy(first.GetSegmentation())
    panel.ui.reviewSelector.setCurrentNode(other)
    assert "These scores are of 'expert'" in warning(panel)
    panel.ui.reviewSelector.setCurrentNode(first)
    assert warning(panel) == ""
    panel.ui.planeComboBox.setCurrentIndex(1)
    assert "choices above" in warning(panel)
    panel.ui.reviewButton.click()
    finish()
    assert warning(panel) == ""
    panel.ui.matchesTable.cellWidget(0, 1).setCurrentIndex(2)
    assert "choices above" in warning(panel)


def test_a_follow_up_with_another_segmentation_than_the_chosen_one_is_said(
    panel, result, reviewed, finish
):
    panel.ui.earlierSelector.setCurrentNode(panel.state.reviewReference)
    panel.ui.followUpButton.click()
    panel.ui.applyButton.click()
    finish()
    panel.ui.followUpButton.click()
    assert "Press Compare time points" not in panel.ui.followUpLabel.text
    panel.ui.earlierSelector.setCurrentNode(result)
    assert "Press Compare time points" in panel.ui.followUpLabel.text


def test_a_review_is_not_old_because_the_scene_was_saved_and_loaded(
    panel, result, reviewed, application, tmp_path
):
    scene = application.scene
    scene.SetURL(str(tmp_path / "scene.mrml"))
    for node in (result, panel.state.reviewReference):
        storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
        storage.SetFileName(str(tmp_path / f"{node.GetID()}.seg.nrrd"))
        node.SetAndObserveStorageNodeID(storage.GetID())
        assert storage.WriteData(node)
    from MedMAPSegmentLib.mrml import fingerprints

    loaded = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    loading = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    loading.SetFileName(str(tmp_path / f"{result.GetID()}.seg.nrrd"))
    assert loading.ReadData(loaded)
    assert fingerprints.fingerprint(loaded) == fingerprints.fingerprint(result)


def test_a_result_that_is_filled_anew_makes_its_review_and_its_follow_up_old(
    panel, result, reviewed, patient, choose, finish
):
    panel.ui.earlierSelector.setCurrentNode(panel.state.reviewReference)
    panel.ui.followUpButton.click()
    assert "changed since" not in panel.ui.followUpLabel.text
    panel.ui.reviewSelector.setCurrentNode(None)
    panel.ui.outputSelector.setCurrentNode(result)
    choose(t2=None)
    panel.ui.applyButton.click()
    finish()
    assert panel.state.result is result
    assert "Press Compare again" in warning(panel)
    assert "changed since" in panel.ui.followUpLabel.text
    panel.ui.undoButton.click()
    assert warning(panel) == ""
    assert "changed since" not in panel.ui.followUpLabel.text


def test_an_edited_copy_is_never_exported_instead_of_a_newer_result(
    panel, result, patient, choose, finish, application
):
    from MedMAPSegmentLib.mrml.editing import editedCopy

    copy = editedCopy(application.scene, result)
    assert panel.handOver._final is copy
    panel.ui.outputSelector.setCurrentNode(result)
    choose(t2=None)
    panel.ui.applyButton.click()
    finish()
    assert panel.handOver._final is result
    assert application.scene.IsNodePresent(copy)
    panel.ui.undoButton.click()
    assert panel.handOver._final is copy


def test_a_comparison_of_modalities_of_a_former_result_is_not_shown(
    panel, result, patient, choose, finish, application
):
    from MedMAPSegmentLib.mrml import uncertainty
    from MedMAPSegmentLib.mrml.nodes import Column, derive, fillTable

    table = derive(application.scene, "vtkMRMLTableNode", "what if", result, "what if")
    columns = [Column("Kind", ["Current"]), Column("Scans", ["T2 + FLAIR"])]
    for region in ("WT", "TC", "ET"):
        columns += [Column(f"{region} change", [0.0]), Column(f"{region} Dice", [1.0])]
    fillTable(table, columns)
    table.SetAttribute(uncertainty.MADE_FROM, result.GetAttribute("MedMAP.Provenance"))
    panel.state.changed()
    assert panel.ui.subsetsTable.rowCount == 1
    panel.ui.outputSelector.setCurrentNode(result)
    choose(t2=None)
    panel.ui.applyButton.click()
    finish()
    assert panel.ui.subsetsTable.rowCount == 0


def test_surfaces_change_no_labels(panel, result):
    from MedMAPSegmentLib.mrml.fingerprints import changeKey

    before = changeKey(result)
    panel.ui.show3DButton.click()
    panel.ui.show3DButton.click()
    assert changeKey(result) == before


def test_labels_at_another_place_are_other_labels(panel, result):
    from MedMAPSegmentLib.mrml.fingerprints import fingerprint

    before = fingerprint(result)
    image = result.GetSegmentation().GetSegment("ED").GetRepresentation("Binary labelmap")
    image.SetOrigin(np.array(image.GetOrigin()) + 5.0)
    assert fingerprint(result) != before
