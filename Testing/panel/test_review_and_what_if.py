"""Review, what-if, uncertainty and models, driven by clicks after a run, with the numbers that
``medmap`` gives.
"""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def reviewed(panel, result, patient, application):
    """The panel with a result, and a reference that lacks the outermost slices of the tumor."""
    import slicer.util

    from MedMAPSegmentLib.mrml.scene import labelsOf

    labels = labelsOf(result, panel.logic.task)
    reference = labels.copy()
    tumor = np.flatnonzero(labels.any((0, 1)))
    reference[:, :, tumor[-3] :] = 0
    node = application.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "expert")
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(reference.transpose(2, 1, 0)))
    node.CopyOrientation(patient["t2"])
    panel.ui.reviewSelector.setCurrentNode(node)
    return SimpleNamespace(labels=labels, reference=reference, node=node)


def texts(table, column):
    return [table.item(row, column).text() for row in range(table.rowCount)]


class TestReview:
    def test_it_needs_a_result_and_another_node(self, panel, result, reviewed):
        assert panel.ui.reviewButton.enabled
        panel.ui.reviewSelector.setCurrentNode(result)
        assert not panel.ui.reviewButton.enabled
        panel.ui.reviewSelector.setCurrentNode(None)
        assert not panel.ui.reviewButton.enabled
        assert panel.ui.matchesTable.rowCount == 0

    def test_the_numbers_are_those_of_medmap(self, panel, reviewed, finish, application):
        from medmap.metrics import dice, region_masks

        panel.ui.reviewButton.click()
        finish()
        shown = dict(
            zip(texts(panel.ui.reviewTable, 0), texts(panel.ui.reviewTable, 1), strict=True)
        )
        task = panel.logic.task
        ours, theirs = region_masks(reviewed.labels, task), region_masks(reviewed.reference, task)
        assert shown == {
            name: f"{dice(ours[name], theirs[name]):.3f}" for name in ("WT", "TC", "ET")
        }
        assert "Both empty" in panel.ui.reviewLabel.text
        assert (
            application.scene.GetFirstNodeByName(f"{panel.state.result.GetName()} - errors")
            is not None
        )

    def test_what_a_value_means_can_be_overridden(self, panel, reviewed, finish):
        assert texts(panel.ui.matchesTable, 0) == ["value 1", "value 2", "value 4"]
        box = panel.ui.matchesTable.cellWidget(2, 1)
        assert box.currentText == "ET"
        box.setCurrentIndex(box.count - 1)
        panel.ui.reviewButton.click()
        finish()
        assert "\nIgnored in the reference 'expert': value 4." in panel.ui.reviewLabel.text
        sensitivity = dict(
            zip(texts(panel.ui.reviewTable, 0), texts(panel.ui.reviewTable, 2), strict=True)
        )
        assert sensitivity["ET"] in ("1.000", "\u2013"), "nothing of ET is in the reference now"
        assert (
            dict(zip(texts(panel.ui.reviewTable, 0), texts(panel.ui.reviewTable, 1), strict=True))[
                "ET"
            ]
            == "0.000"
        )

    def test_worst_slice_moves_the_views_and_the_plot_is_shown(
        self, panel, reviewed, finish, application
    ):
        panel.ui.reviewButton.click()
        finish()
        logic = application.app.layoutManager().mrmlSliceLogics().GetItemAsObject(0)
        before = logic.GetSliceNode().GetSliceOffset()
        panel.ui.worstSliceButton.click()
        assert "1 of" in panel.ui.worstSliceLabel.text
        assert logic.GetSliceNode().GetSliceOffset() != before
        panel.ui.worstSliceButton.click()
        assert "2 of" in panel.ui.worstSliceLabel.text
        panel.ui.plotButton.click()
        assert application.charts[0].GetClassName() == "vtkMRMLPlotChartNode"

    def test_a_click_on_a_point_of_the_plot_goes_to_its_slice(
        self, panel, reviewed, finish, application
    ):
        import slicer

        from MedMAPSegmentLib.mrml import review_nodes

        panel.ui.reviewButton.click()
        finish()
        for _ in range(2):
            panel.ui.plotButton.click()
        plot = application.app.layoutManager().plotWidget(0)
        select = slicer.vtkMRMLPlotViewNode.InteractionModeSelectPoints
        assert plot.mrmlPlotViewNode().GetInteractionMode() == select
        assert len(plot._slots) == 1
        nodes = review_nodes.nodesOf(application.scene, panel.state.result)
        logic = application.app.layoutManager().mrmlSliceLogics().GetItemAsObject(0)
        offsets = set()
        for row in (0, nodes.slices.GetNumberOfRows() - 1):
            plot.select(nodes.series["WT"], row)
            offsets.add(logic.GetSliceNode().GetSliceOffset())
        assert len(offsets) == 2
        index = nodes.slices.GetTable().GetColumnByName("Slice").GetValue(row)
        assert f"slice {index}:" in panel.ui.worstSliceLabel.text

    def test_the_list_of_slices_follows_the_region_and_goes_where_it_is_clicked(
        self, panel, reviewed, finish, application
    ):
        panel.ui.reviewButton.click()
        finish()
        table = panel.ui.worstTable
        assert table.rowCount == 5
        wrong = [int(text) for text in texts(table, 2)]
        assert wrong == sorted(wrong, reverse=True)
        logic = application.app.layoutManager().mrmlSliceLogics().GetItemAsObject(0)
        panel.review.onWorstRow(0)
        first = logic.GetSliceNode().GetSliceOffset()
        panel.review.onWorstRow(4)
        assert logic.GetSliceNode().GetSliceOffset() != first
        assert "(5 of" in panel.ui.worstSliceLabel.text
        panel.ui.regionComboBox.setCurrentIndex(2)
        panel.review.onWorstRow(0)
        assert panel.ui.worstSliceLabel.text.startswith("ET, slice ")

    def test_ambiguous_values_are_refused_until_their_convention_is_chosen(
        self, panel, reviewed, finish, application
    ):
        import slicer.util

        node = application.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "expert")
        values = reviewed.reference.astype(np.uint8)
        values[values == 1] = 3
        slicer.util.updateVolumeFromArray(node, values)
        node.CopyOrientation(reviewed.node)
        panel.ui.reviewSelector.setCurrentNode(node)
        assert "several meanings" in panel.ui.reviewLabel.text
        # They can be assigned by hand, too.
        assert panel.ui.matchesTable.rowCount == 3
        names = panel.referenceParts.conventions
        for title in ("2012 to 2016", "2017 to 2021", "2023", "post-treatment", "PED", "Task01"):
            items = [panel.ui.conventionComboBox.itemText(n) for n in range(len(names))]
            assert any(title in item for item in items), title
        panel.ui.conventionComboBox.setCurrentIndex(names.index("brats2012"))
        assert panel.ui.matchesTable.rowCount == 3
        panel.ui.reviewButton.click()
        finish()
        assert panel.ui.reviewTable.rowCount == 3
        statement = "Label values as in BraTS 2012 to 2016 (1 NCR, 2 ED, 3 NET, 4 ET): chosen."
        assert statement in panel.ui.reviewLabel.text
        from MedMAPSegmentLib.mrml.case_report import caseReport

        card = panel.state.entry.card
        report = caseReport(application.scene, panel.state.result, panel.logic.task, card)
        assert statement in report.webPage()

    def test_numbered_segments_have_conventions_as_label_volumes_do(
        self, panel, reviewed, application
    ):
        """As a label file that was loaded as a segmentation."""
        import slicer

        node = application.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "expert")
        for value in (2, 3, 4):
            segment = slicer.vtkSegment()
            segment.SetName(f"Segment_{value}")
            node.GetSegmentation().AddSegment(segment, f"Segment_{value}")
        panel.ui.reviewSelector.setCurrentNode(node)
        assert "several meanings" in panel.ui.reviewLabel.text
        assert not panel.ui.conventionComboBox.isHidden()
        boxes = panel.ui.matchesTable
        assert [boxes.cellWidget(row, 1).currentText for row in range(3)] == ["ignored"] * 3
        names = panel.referenceParts.conventions
        panel.ui.conventionComboBox.setCurrentIndex(names.index("brats-ped"))
        meanings = [boxes.cellWidget(row, 1).currentText for row in range(3)]
        assert meanings == ["NCR", "NCR", "ED"]

    def test_the_result_is_drawn_filled_as_outline_or_as_difference(
        self, panel, reviewed, finish, application
    ):
        from MedMAPSegmentLib.mrml import review_nodes

        panel.ui.reviewButton.click()
        finish()
        display = panel.state.result.GetDisplayNode()
        errors = review_nodes.nodesOf(application.scene, panel.state.result).errors.GetDisplayNode()
        assert panel.ui.overlayComboBox.currentIndex == 2
        assert (display.GetVisibility(), errors.GetVisibility()) == (0, 1)
        panel.ui.overlayComboBox.setCurrentIndex(1)
        assert (display.GetVisibility(), errors.GetVisibility()) == (1, 0)
        assert not display.GetVisibility2DFill()
        panel.ui.overlayComboBox.setCurrentIndex(0)
        assert display.GetVisibility2DFill()

    def test_two_results_are_compared_with_each_other(self, panel, reviewed, finish, application):
        first = panel.state.result
        panel.inputs.slots["t2"].checkBox.click()
        panel.ui.applyButton.click()
        finish()
        panel.ui.reviewSelector.setCurrentNode(first)
        panel.ui.reviewButton.click()
        finish()
        errors = application.scene.GetFirstNodeByName(f"{panel.state.result.GetName()} - errors")
        names = [errors.GetSegmentation().GetNthSegment(n).GetName() for n in range(3)]
        assert names[2] == "WT: Other result only"

    def test_the_error_segmentation_follows_the_region(self, panel, reviewed, finish, application):
        panel.ui.reviewButton.click()
        finish()
        panel.ui.regionComboBox.currentIndex = 2
        errors = application.scene.GetFirstNodeByName(f"{panel.state.result.GetName()} - errors")
        assert errors.GetSegmentation().GetSegment("ours").GetName() == "ET: Result only"

    def test_a_reference_on_another_grid_under_a_transform_is_the_same(
        self, panel, reviewed, finish, application
    ):
        """The same labels at half the voxel size, moved with the transform that moves them: Dice
        stays.
        """
        import slicer.util
        import vtk

        panel.ui.reviewButton.click()
        finish()
        before = texts(panel.ui.reviewTable, 1)
        fine = reviewed.reference.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        matrix, shift = vtk.vtkMatrix4x4(), np.eye(4)
        reviewed.node.GetIJKToRASMatrix(matrix)
        affine = slicer.util.arrayFromVTKMatrix(matrix) @ np.diag([0.5, 0.5, 0.5, 1.0])
        affine[:3, 3] -= affine[:3, :3] @ [0.5, 0.5, 0.5]
        shift[:3, 3] = 5.0, -3.0, 2.0
        node = application.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "fine")
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.linalg.inv(shift) @ affine))
        slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(fine.transpose(2, 1, 0)))
        transform = application.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        slicer.util.updateTransformMatrixFromArray(transform, shift)
        node.SetAndObserveTransformNodeID(transform.GetID())
        panel.ui.reviewSelector.setCurrentNode(node)
        panel.ui.reviewButton.click()
        finish()
        assert texts(panel.ui.reviewTable, 1) == before

    def test_a_volume_without_labels_is_refused_in_words(self, panel, reviewed, patient):
        panel.ui.reviewSelector.setCurrentNode(patient["t1ce"])
        assert "are not labels" in panel.ui.reviewLabel.text

    def test_the_scores_are_saved_in_full_with_their_units(
        self, panel, reviewed, finish, application, tmp_path
    ):
        assert not panel.ui.saveReviewButton.enabled
        panel.ui.reviewButton.click()
        finish()
        panel.ui.saveReviewButton.click()
        assert not list(tmp_path.glob("*.csv")), "no file name was chosen"
        application.desk.answers["getSaveFileName"] = str(tmp_path / "scores.csv")
        panel.ui.saveReviewButton.click()
        assert panel.ui.statusLabel.text == f"Saved: {tmp_path / 'scores.csv'}"
        rows = list(csv.DictReader((tmp_path / "scores.csv").open(encoding="utf-8-sig")))
        assert [row["Region"] for row in rows] == ["WT", "TC", "ET"]
        assert [f"{float(row['Dice']):.3f}" for row in rows] == texts(panel.ui.reviewTable, 1)
        assert float(rows[0]["Reference volume (ml)"]) > 0

    def test_closing_the_scene_forgets_the_review(self, panel, reviewed, finish, application):
        panel.ui.reviewButton.click()
        finish()
        application.scene.Clear()
        assert panel.ui.reviewTable.rowCount == 0
        assert not panel.ui.worstSliceButton.enabled
        assert panel.ui.resultsTable.rowCount == 0


class TestWalk:
    """From an empty panel to a reviewed result and all combinations, with a real (untrained)
    network.
    """

    @pytest.fixture
    def walked(self, panel, patient, finish, small_bundle):
        pytest.importorskip("torch")
        from medmap.bundle.loading import load_bundle
        from MedMAPSegmentLib.logic import _segment

        bundle = load_bundle(small_bundle())
        panel.logic._segment, panel.logic._loadBundle = _segment, lambda: bundle
        panel.ui.detectButton.click()
        panel.inputs.slots["t2"].checkBox.click()
        panel.ui.applyButton.click()
        finish(120)
        return bundle

    def test_the_labels_are_those_of_medmap(self, panel, patient, walked):
        from medmap.inference import segment
        from MedMAPSegmentLib.mrml.scene import labelsOf, volumeFromNode

        used = {name: volumeFromNode(node) for name, node in patient.items() if name != "t2"}
        expected = segment(used, walked, device="cpu")
        assert np.array_equal(labelsOf(panel.state.result, panel.logic.task), expected.labels)
        assert f"Model: {walked.id}" in panel.ui.resultsLabel.text

    def test_what_if_tries_all_fifteen_and_shows_uncertainty(
        self, panel, walked, finish, application
    ):
        panel.ui.subsetsButton.click()
        finish(120)
        assert panel.ui.subsetsTable.rowCount == 15
        first = [
            "T1 + T1ce + FLAIR",
            "without FLAIR",
            "without T1ce",
            "without T1",
            "with T2 added",
        ]
        assert texts(panel.ui.subsetsTable, 0)[:5] == first, (
            "the current one, then what is one step away"
        )
        assert len(set(texts(panel.ui.subsetsTable, 0))) == 15
        assert texts(panel.ui.subsetsTable, 1)[0] == "+0.0 (1.00)"
        panel.ui.uncertaintyButton.click()
        panel.ui.uncertainSliceButton.click()
        assert "of all uncertainty" in panel.ui.uncertainSliceLabel.text
        composite = application.scene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")

        def shown():
            return application.scene.GetNodeByID(composite.GetForegroundVolumeID()).GetName()

        assert "entropy" in shown()
        panel.ui.mapComboBox.setCurrentIndex(1)
        assert "disagreement" in shown()
        panel.ui.uncertaintyButton.click()
        assert composite.GetForegroundVolumeID() is None

    def test_another_result_takes_the_overlay_away_but_no_foreground_of_the_users(
        self, panel, walked, finish, application, patient
    ):
        composite = application.scene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
        panel.ui.subsetsButton.click()
        finish(120)
        panel.ui.uncertaintyButton.click()
        panel.ui.applyButton.click()
        finish(120)
        assert composite.GetForegroundVolumeID() is None
        assert not panel.ui.uncertaintyButton.checked
        panel.ui.undoButton.click()
        composite.SetForegroundVolumeID(patient["t1"].GetID())
        panel.ui.applyButton.click()
        finish(120)
        assert composite.GetForegroundVolumeID() == patient["t1"].GetID()

    def test_what_if_says_when_a_scan_of_the_result_is_gone(
        self, panel, walked, application, patient
    ):
        application.scene.RemoveNode(patient["t1"])
        panel.ui.subsetsButton.click()
        assert (
            "T1, which the result is based on, is no longer selected" in application.desk.texts()[0]
        )


class TestModels:
    def test_the_default_is_listed_with_its_card_and_cannot_be_deleted(self, panel):
        assert panel.ui.modelComboBox.itemText(0) == f"{panel.models.entry.id} (default)"
        card = panel.ui.modelText.plainText
        for words in ("Research use only", "Limits.", "Population."):
            assert words in card
        for mark in ("**", "# ", "|"):
            assert mark not in card
        assert not panel.ui.deleteButton.enabled

    def test_a_zip_is_imported_used_and_deleted(self, panel, small_bundle, application, tmp_path):
        import shutil

        archive = shutil.make_archive(str(tmp_path / "small"), "zip", small_bundle())
        application.desk.answers["getOpenFileName"] = archive
        panel.ui.importFileButton.click()
        assert "Imported and verified: small-1.0.0" in panel.ui.statusLabel.text
        assert panel.models.entry.id == "small-1.0.0"
        assert panel.state.parameters.model == "small-1.0.0"
        assert panel.ui.deleteButton.enabled
        panel.ui.deleteButton.click()
        assert "Delete the model small-1.0.0?" in application.desk.texts()
        assert panel.ui.modelComboBox.count == 1
        assert panel.state.parameters.model == ""

    def test_what_is_no_model_is_refused_in_words(self, panel, application, tmp_path):
        (tmp_path / "holiday.zip").write_bytes(b"no archive")
        application.desk.answers["getOpenFileName"] = str(tmp_path / "holiday.zip")
        panel.ui.importFileButton.click()
        assert "neither a folder nor a .zip file" in application.desk.texts()[0]
        assert panel.ui.modelComboBox.count == 1

    def test_the_folder_is_shown(self, panel, application):
        panel.ui.showFolderButton.click()
        assert application.desk.calls[-1][0] == "openUrl"
        assert application.desk.calls[-1][1].endswith("models")

    def test_a_scene_with_an_unknown_model_falls_back_in_words(self, panel):
        panel.state.parameters.model = "gone-2.0.0"
        assert "'gone-2.0.0' is not installed" in panel.ui.statusLabel.text
        assert panel.state.parameters.model == ""
