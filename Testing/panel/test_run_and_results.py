"""What a user sees on Apply, Cancel, failure, undo and scene close, driven by clicks."""

from __future__ import annotations

import time

import numpy as np
import pytest

from medmap.checks import Finding
from medmap.errors import Cancelled, InputDataError, UnavailableError


@pytest.fixture
def ready(panel, patient, choose):
    """The panel with a FLAIR chosen."""
    choose(flair=patient["flair"])
    return panel


def results(application):
    """Segmentation nodes of the scene."""
    return application.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")


class TestApply:
    def test_it_is_off_until_a_scan_is_chosen_and_says_why(self, panel, patient, choose):
        assert not panel.ui.applyButton.enabled
        assert "Select at least one volume" in panel.ui.applyButton.toolTip
        choose(flair=patient["flair"])
        assert panel.ui.applyButton.enabled

    def test_volumes_diameters_and_warnings_are_shown(
        self, ready, application, computation, finish
    ):
        computation.findings = (
            Finding("warning", "x", "Without T1ce, ET is a guess.", "Add T1ce."),
            Finding("info", "y", "unimportant"),
        )
        ready.ui.applyButton.click()
        finish()
        assert results(application) == 1
        table = ready.ui.resultsTable
        assert table.item(0, 0).text() == "Whole tumor (WT)"
        assert table.rowCount == 3
        assert float(table.item(0, 1).text()) > 1
        for expected in ("Based on: FLAIR", "Output geometry: FLAIR", "processor (CPU)"):
            assert expected in ready.ui.resultsLabel.text
        assert "ET is a guess" in ready.ui.resultsWarningLabel.text
        assert "unimportant" not in ready.ui.resultsWarningLabel.text
        assert "No usable graphics card" in ready.ui.runNoteLabel.text
        assert ready.ui.applyButton.text == "&Apply"
        assert not ready.ui.progressBar.isVisible()

    def test_it_becomes_cancel_and_cancel_leaves_the_scene_alone(
        self, ready, application, computation, finish
    ):
        computation.go.clear()
        ready.ui.applyButton.click()
        assert ready.ui.applyButton.text == "Cancel"
        application.wait(lambda: ready.ui.progressBar.value == 25, 5)
        assert ready.ui.statusLabel.text == "encoding T1"
        ready.ui.applyButton.click()
        assert (ready.ui.applyButton.text, ready.ui.applyButton.enabled) == ("Canceling...", False)
        finish(5)
        assert results(application) == 0
        assert "unchanged" in ready.ui.statusLabel.text
        assert (ready.ui.applyButton.text, ready.ui.applyButton.enabled) == ("&Apply", True)

    def test_the_choices_reach_the_computation(self, ready, patient, choose, computation, finish):
        choose(t2=patient["t2"])
        ready.ui.referenceComboBox.setCurrentIndex(3)
        ready.ui.deviceComboBox.setCurrentIndex(ready.ui.deviceComboBox.count - 1)
        ready.ui.applyButton.click()
        finish()
        assert computation.calls[0][1]["reference"] == "t2"
        assert computation.calls[0][1]["device"] == "cpu"
        assert ready.ui.runNoteLabel.text == "", "the processor was asked for"

    def test_another_runner_can_be_injected(self, ready, application, finish):
        from MedMAPSegmentLib.runner import InlineRunner

        ready.jobs.runner = InlineRunner()
        ready.jobs.runner.shutdown = lambda: True
        ready.ui.applyButton.click()
        finish()
        assert results(application) == 1


@pytest.mark.parametrize(
    ("fraction", "seconds", "words"),
    [
        (0.05, 60, ""),
        (0.5, 1, ""),
        (0.5, 10, "about 10 s left"),
        (0.999, 10, "about 1 s left"),
        (0.2, 60, "about 4 min left"),
    ],
)
def test_the_time_left_is_said_as_soon_as_it_can_be(panel, fraction, seconds, words):
    from MedMAPSegmentLib.sections.jobs import timeLeft

    assert timeLeft(fraction, seconds) == words


class TestFailure:
    @pytest.mark.parametrize(
        "error", [InputDataError("The scan is empty.", "Choose another."), ValueError("bug")]
    )
    def test_it_is_shown_and_the_panel_is_ready_again(
        self, ready, application, computation, finish, error
    ):
        computation.error = error
        ready.ui.applyButton.click()
        finish()
        assert len(application.desk.texts()) == 1
        assert str(error) in application.desk.texts()[0]
        assert results(application) == 0
        ready.ui.applyButton.click()
        finish()
        assert results(application) == 1

    def test_too_little_memory_on_the_card_offers_the_processor(
        self, ready, application, computation, finish
    ):
        computation.error = UnavailableError(
            "The device's memory does not suffice.", "Choose the CPU."
        )
        application.desk.answers["message"] = application.qt.QMessageBox.Yes
        ready.ui.applyButton.click()
        finish()
        assert "Compute on the CPU instead?" in application.desk.texts()[0]
        assert [options["device"] for _, options in computation.calls] == ["auto", "cpu"]
        assert results(application) == 1

    def test_who_declines_the_processor_gets_no_second_message(
        self, ready, application, computation, finish
    ):
        computation.error = UnavailableError(
            "The device's memory does not suffice.", "Choose the CPU."
        )
        application.desk.answers["message"] = application.qt.QMessageBox.No
        ready.ui.applyButton.click()
        finish()
        assert len(application.desk.texts()) == 1
        assert results(application) == 0
        assert "memory" in ready.ui.statusLabel.text

    def test_declining_the_installation_starts_nothing(self, ready, application, monkeypatch):
        monkeypatch.setattr(application.module.dependencies, "ensure", lambda installer: False)
        ready.ui.applyButton.click()
        assert not ready.isBusy()
        assert "PyTorch" in ready.ui.statusLabel.text

    def test_a_missing_pytorch_is_named_and_devices_are_not_looked_for(
        self, ready, application, monkeypatch
    ):
        monkeypatch.setattr(application.module.dependencies, "missing", lambda: ["torch>=2.10"])
        ready.ui.findDevicesButton.click()
        assert "Not installed yet: torch>=2.10" in ready.ui.statusLabel.text

    def test_a_damaged_model_cannot_be_used_and_says_why(self, ready, application, small_bundle):
        application.desk.answers["getExistingDirectory"] = str(small_bundle())
        ready.ui.importFolderButton.click()
        folder = ready.state.entry.path
        (folder / "README.md").write_text("altered")
        ready.models._refresh("small-1.0.0")
        assert not ready.ui.applyButton.enabled
        assert "is not the file that was published" in ready.ui.applyButton.toolTip


class TestResult:
    def test_apply_again_keeps_and_hides_the_first_result(self, ready, application, finish):
        nodes = []
        for _ in range(2):
            ready.ui.applyButton.click()
            finish()
            nodes.append(ready.state.result)
        assert results(application) == 2
        assert [node.GetDisplayNode().GetVisibility() for node in nodes] == [0, 1]

    def test_undo_brings_the_first_result_back(self, ready, application, finish):
        ready.ui.applyButton.click()
        finish()
        first = ready.state.result
        ready.ui.applyButton.click()
        finish()
        ready.ui.undoButton.click()
        assert ready.state.result is first
        assert first.GetDisplayNode().GetVisibility()
        assert results(application) == 1
        assert application.scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 1, (
            "the table of the other is gone"
        )
        ready.ui.undoButton.click()
        assert ready.state.result is None
        assert not ready.ui.undoButton.enabled
        assert ready.ui.resultsTable.rowCount == 0

    def test_undo_of_a_filled_output_restores_its_segments(self, ready, patient, choose, finish):
        from MedMAPSegmentLib.mrml.scene import labelsOf

        ready.ui.applyButton.click()
        finish()
        node = ready.state.result
        before = labelsOf(node, ready.logic.task)
        ready.ui.outputSelector.setCurrentNode(node)
        choose(flair=None, t2=patient["t2"])
        ready.ui.applyButton.click()
        finish()
        assert ready.state.result is node
        assert not np.array_equal(labelsOf(node, ready.logic.task), before)
        ready.ui.undoButton.click()
        assert np.array_equal(labelsOf(node, ready.logic.task), before)
        assert "Based on: FLAIR" in ready.ui.resultsLabel.text

    def test_an_output_that_was_removed_is_not_replaced_by_another_result(
        self, ready, application, finish
    ):
        """A node selector would take the neighbor, whose segments the next Apply would then
        overwrite.
        """
        for _ in range(2):
            ready.ui.applyButton.click()
            finish()
        node = application.scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
        ready.ui.outputSelector.setCurrentNode(node)
        assert ready.state.parameters.outputSegmentation is node
        application.scene.RemoveNode(node)
        assert ready.state.parameters.outputSegmentation is None
        assert ready.ui.outputSelector.currentNode() is None

    def test_surfaces_can_be_shown_and_hidden(self, panel, result):
        panel.ui.show3DButton.click()
        assert result.GetSegmentation().ContainsRepresentation("Closed surface")
        panel.ui.show3DButton.click()
        assert not result.GetSegmentation().ContainsRepresentation("Closed surface")

    def test_the_table_is_saved_and_what_cannot_be_written_is_said(
        self, panel, result, application, tmp_path
    ):
        application.desk.answers["getSaveFileName"] = str(tmp_path / "volumes.csv")
        panel.ui.saveResultsButton.click()
        head, first = (tmp_path / "volumes.csv").read_text("utf-8-sig").splitlines()[:2]
        assert head == "Region,Name,Volume (ml),Axial diameter (mm),Diameter (mm)"
        assert first.startswith("WT,Whole tumor,")
        application.desk.answers["getSaveFileName"] = str(tmp_path / "gone" / "volumes.csv")
        panel.ui.saveResultsButton.click()
        assert "The table could not be saved." in application.desk.texts()[0]
        assert "does not exist" in application.desk.texts()[0]

    def test_the_views_go_to_the_tumor(self, ready, application, finish):
        logic = application.app.layoutManager().mrmlSliceLogics().GetItemAsObject(0)
        before = logic.GetSliceNode().GetSliceOffset()
        ready.ui.applyButton.click()
        finish()
        assert logic.GetSliceNode().GetSliceOffset() != before

    def test_a_saved_scene_brings_everything_back(self, panel, result, application, tmp_path):
        """Written and read by real MRML, storage nodes included, and shown by the panel that opens
        it.
        """
        from MedMAPSegmentLib.mrml.scene import labelsOf

        shown = panel.ui.resultsLabel.text
        labels = labelsOf(result, panel.logic.task)
        scene = application.scene
        scene.SetRootDirectory(str(tmp_path))
        for class_name, suffix in (
            ("vtkMRMLSegmentationNode", "seg.nrrd"),
            ("vtkMRMLScalarVolumeNode", "nrrd"),
        ):
            for n in range(scene.GetNumberOfNodesByClass(class_name)):
                node = scene.GetNthNodeByClass(n, class_name)
                assert node.AddDefaultStorageNode(str(tmp_path / f"{node.GetID()}.{suffix}"))
                assert node.GetStorageNode().WriteData(node)
        table = scene.GetFirstNodeByClass("vtkMRMLTableNode")
        table.AddDefaultStorageNode(str(tmp_path / "table.tsv"))
        assert table.GetStorageNode().WriteData(table)
        scene.SetURL(str(tmp_path / "saved.mrml"))
        assert scene.Commit()
        scene.Clear()
        assert panel.state.result is None
        scene.SetURL(str(tmp_path / "saved.mrml"))
        assert scene.Import()
        again = panel.state.result
        assert again is not None
        assert np.array_equal(labelsOf(again, panel.logic.task), labels)
        assert panel.ui.resultsLabel.text == shown
        assert panel.ui.resultsTable.rowCount == 3
        segment = again.GetSegmentation().GetSegment("ET")
        import vtk

        entry = vtk.reference("")
        assert segment.GetTag("TerminologyEntry", entry)
        assert "C113842" in str(entry)
        assert panel.inputs.slots["flair"].selector.currentNode().GetName() == "synthetic flair"


class TestLooks:
    def test_long_texts_do_not_widen_the_panel(self, panel):
        """Slicer's module panel is never narrower than its contents' least width."""
        before = panel.parent.minimumSizeHint.width()
        assert before < 430
        for label in (
            panel.ui.performanceNoteLabel,
            panel.ui.statusLabel,
            panel.ui.resultsLabel,
            panel.ui.checksLabel,
        ):
            label.text = (
                "Without contrast, enhancing tumor is not visible, and what is shown is a guess. "
                * 8
            )
        panel.parent.layout().activate()
        assert panel.parent.minimumSizeHint.width() <= before

    def test_a_result_that_cannot_be_read_is_said_and_the_panel_works(self, ready, application):
        from MedMAPSegmentLib.mrml import choices

        empty = application.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "odd")
        choices.choose(ready.state.parameterNode(), choices.RESULT, empty)
        assert "has no reference geometry" in ready.ui.resultsLabel.text
        assert ready.ui.applyButton.enabled


class TestLifeCycle:
    def test_closing_the_scene_abandons_the_computation(self, ready, application, computation):
        computation.go.clear()
        ready.ui.applyButton.click()
        job = ready.jobs._job
        application.scene.Clear()
        assert job.cancelRequested
        assert not ready.isBusy()
        assert not ready.jobs._timer.active
        assert ready.state.parameters is not None
        assert ready.ui.resultsLabel.text == "No result yet."
        assert not ready.ui.applyButton.enabled

    def test_a_removed_input_is_said_when_the_result_comes(
        self, ready, patient, application, computation, finish
    ):
        computation.go.clear()
        ready.ui.applyButton.click()
        application.scene.RemoveNode(patient["flair"])
        computation.go.set()
        finish()
        assert "was removed during the computation" in application.desk.texts()[0]
        assert results(application) == 0

    def test_a_computation_goes_on_while_another_module_is_open(
        self, ready, application, computation, finish
    ):
        computation.go.clear()
        ready.ui.applyButton.click()
        ready.exit()
        computation.go.set()
        finish()
        assert results(application) == 1
        ready.enter()
        assert ready.ui.applyButton.text == "&Apply"
        assert ready.ui.resultsTable.rowCount == 3

    def test_what_was_chosen_survives_another_module(self, ready):
        """The wrapper fills the combo box anew each time; a connection left from the last time
        would take that for a choice of the first entry.
        """
        ready.ui.planeComboBox.setCurrentIndex(2)
        for _ in range(2):
            ready.exit()
            ready.enter()
        assert ready.state.parameters.plane == "sagittal"
        assert ready.ui.planeComboBox.currentIndex == 2
        ready.exit()
        ready.ui.planeComboBox.setCurrentIndex(1)
        assert ready.logic.getParameterNode().plane == "sagittal", (
            "nothing is connected while the panel is not shown"
        )

    def test_closing_down_shows_nothing_any_more(self, ready, application, monkeypatch):
        shown = []
        for observer in ready.state._observers:
            monkeypatch.setattr(observer, "update", lambda: shown.append(1))
        application.app.connect(
            "aboutToQuit()", ready.stopWork
        )  # the one that the teardown takes away
        ready.cleanup()
        assert not shown

    def test_leaving_ends_the_worker(self, ready, computation):
        computation.go.clear()
        ready.ui.applyButton.click()
        thread = ready.jobs.runner._thread
        ready.stopWork()
        assert not thread.is_alive()
        assert not ready.isBusy()

    def test_cancel_is_quick_while_the_worker_computes(self, ready, application, finish):
        def busy(volumes, bundle, *, progress, cancel, **options):
            values = np.random.default_rng(0).normal(size=(200, 200))
            while not cancel():
                values = np.tanh(values @ values / 200)
            raise Cancelled()

        ready.logic._segment = busy
        ready.ui.applyButton.click()
        for _ in range(10):
            application.app.processEvents()
        ready.ui.applyButton.click()
        started = time.monotonic()
        finish(30)
        assert time.monotonic() - started < 10

    def test_the_choices_of_a_session_are_in_the_scene(self, ready):
        node = ready.state.parameterNode()
        assert node.GetNodeReference("scan_flair").GetName() == "synthetic flair"
        assert node.GetParameter("device") == "auto"


def test_the_first_self_test_of_the_module_passes(panel, application):
    application.module.MedMAPSegmentTest().test_labelsBecomeSegments()
