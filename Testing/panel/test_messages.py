"""What a user reads when something goes wrong that other extensions left unsaid: one test a known
complaint.
"""

from __future__ import annotations

import subprocess
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from medmap.errors import BundleError, MissingInputError, UnavailableError
from MedMAPSegmentLib import dependencies
from MedMAPSegmentLib.dependencies import Requirement
from MedMAPSegmentLib.dependencies import ensure as really_ensure
from MedMAPSegmentLib.models import catalog as models

TORCH = Requirement("torch", ">=2.10")


@pytest.fixture
def ready(panel, patient, choose):
    """The panel with a FLAIR chosen."""
    choose(flair=patient["flair"])
    return panel


def said(application):
    """The one message that was shown."""
    (text,) = application.desk.texts()
    return text


class TestInstalling:
    """PyTorch is missing; what the installer does is up to the test."""

    @pytest.fixture
    def installer(self, ready, monkeypatch):
        made = SimpleNamespace(
            isTesting=lambda: False,
            confirm=lambda text: made.asked.append(text) or True,
            installTorch=lambda requirement: False,
            install=lambda requirements, index="": None,
            hasPyTorchExtension=lambda: False,
            remove=lambda names: None,
            asked=[],
        )
        monkeypatch.setattr(dependencies, "ensure", really_ensure)
        monkeypatch.setattr(dependencies, "missing", lambda *path: [TORCH])
        monkeypatch.setattr(Requirement, "isMet", lambda self: False)
        ready.jobs.installer = made
        return made

    def test_the_question_says_what_where_and_how_large(self, ready, installer, application):
        installer.confirm = lambda text: installer.asked.append(text)
        ready.ui.applyButton.click()
        (question,) = installer.asked
        for words in ("torch>=2.10", "GB on disk", "Slicer's own Python", "not sent anywhere"):
            assert words in question
        assert "Nothing was installed" in ready.ui.statusLabel.text
        assert not application.desk.texts()

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (subprocess.CalledProcessError(1, ["python", "-m", "pip"]), "pip ended with status 1"),
            (OSError("Name or service not known"), "Name or service not known"),
        ],
    )
    def test_without_internet_it_says_what_failed_and_what_to_do(
        self, ready, installer, application, error, words
    ):
        def fail(requirements, index=""):
            raise error

        installer.install = fail
        ready.ui.applyButton.click()
        assert "Installing torch>=2.10 failed" in said(application)
        assert words in said(application)
        assert "Check the internet connection" in said(application)
        assert "non-zero exit status" not in said(application)
        assert not ready.isBusy()

    def test_an_installation_that_changed_nothing_asks_for_a_restart(
        self, ready, installer, application
    ):
        ready.ui.applyButton.click()
        assert "Not usable after installation: torch>=2.10. Restart Slicer" in said(application)

    def test_an_old_pytorch_that_is_loaded_already_asks_for_a_restart(
        self, ready, installer, application, monkeypatch
    ):
        monkeypatch.setattr(dependencies, "missing", lambda *path: [])
        monkeypatch.setattr(Requirement, "isLoadedTooOld", lambda self: True)
        ready.ui.applyButton.click()
        assert "An older PyTorch is still loaded. Restart Slicer" in said(application)

    def test_nothing_is_installed_while_slicer_tests_itself(self, ready, installer, application):
        installer.isTesting = lambda: True
        ready.ui.applyButton.click()
        assert "Nothing is installed while Slicer tests itself" in said(application)
        assert not installer.asked

    def test_the_sample_patient_needs_pytorch_too_and_says_so(self, ready, installer, application):
        ready.ui.sampleButton.click()
        assert "Not usable after installation" in said(application)


class TestDevices:
    def test_a_card_that_this_pytorch_cannot_use_is_named_with_the_reason(
        self, ready, application, computation, finish
    ):
        computation.error = UnavailableError(
            "The device 'cuda:0' is not available here (CUDA error: no kernel image is available).",
            "Choose the CPU.",
        )
        application.desk.answers["message"] = application.qt.QMessageBox.Yes
        ready.ui.applyButton.click()
        finish()
        assert "no kernel image is available" in said(application)
        assert "Compute on the CPU instead?" in said(application)
        assert [options["device"] for _, options in computation.calls] == ["auto", "cpu"]

    def test_a_device_of_a_loaded_scene_is_shown_and_not_silently_replaced(self, ready):
        ready.state.parameters.device = "cuda:3"
        assert ready.ui.deviceComboBox.currentText == "cuda:3 (selected before)"
        ready.ui.deviceComboBox.setCurrentIndex(0)
        assert ready.state.parameters.device == "auto"


class TestInputs:
    def test_scans_of_different_places_are_refused_with_the_distance(
        self, panel, patient, choose, application, finish, small_bundle
    ):
        pytest.importorskip("torch")
        import slicer.util

        from medmap.bundle.loading import load_bundle
        from MedMAPSegmentLib.logic import _segment

        bundle = load_bundle(small_bundle())
        panel.logic._segment, panel.logic._loadBundle = _segment, lambda: bundle
        transform = application.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        matrix = np.eye(4)
        matrix[0, 3] = 400.0
        slicer.util.updateTransformMatrixFromArray(transform, matrix)
        patient["flair"].SetAndObserveTransformNodeID(transform.GetID())
        choose(flair=patient["flair"], t1ce=patient["t1ce"])
        panel.ui.applyButton.click()
        finish()
        assert "T1ce and FLAIR" in panel.ui.checksLabel.text
        assert "do not show the same place" in said(application)

    def test_a_warped_volume_is_named_in_the_tool_tip(self, ready, patient, application):
        node = application.scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "warp")
        patient["flair"].SetAndObserveTransformNodeID(node.GetID())
        ready.state.changed()
        assert not ready.ui.applyButton.enabled
        assert "non-linear transform 'warp'" in ready.ui.applyButton.toolTip

    def test_names_that_look_like_markup_are_shown_as_they_are(self, ready, patient):
        patient["flair"].SetName("<b>FLAIR</b>")
        ready.ui.detectButton.click()
        assert "'<b>FLAIR</b>'" in ready.ui.detectLabel.text
        plain = 0  # Qt::PlainText
        for name in (
            "detectLabel",
            "statusLabel",
            "resultsLabel",
            "performanceNoteLabel",
            "reviewLabel",
        ):
            assert getattr(ready.ui, name).textFormat == plain, name


class TestModels:
    def test_a_model_that_turns_out_damaged_while_loading_is_said(self, ready, application, finish):
        def damaged():
            raise BundleError(
                "model.safetensors is not the file that was published.", "Import the model again."
            )

        ready.logic.setModel(damaged, ready.logic.task)
        ready.ui.applyButton.click()
        finish()
        assert (
            said(application)
            == "model.safetensors is not the file that was published. Import the model again."
        )

    def test_pickled_weights_are_refused_unopened(self, panel, application, tmp_path):
        """A ``.pt`` file is a .zip archive, too."""
        with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
            archive.writestr("weights/data.pkl", b"\x80\x02.")
        application.desk.answers["getOpenFileName"] = str(tmp_path / "weights.pt")
        panel.ui.importFileButton.click()
        assert "weights.pt is not a MedMAP model" in said(application)
        assert panel.ui.modelComboBox.count == 1

    def test_without_a_default_model_the_panel_opens_and_says_so(self, application, monkeypatch):
        from MedMAPSegmentLib.selftest import addSyntheticCase

        def missing():
            raise MissingInputError("The default model was not found.", "Name a bundle.")

        monkeypatch.setattr(models, "default_bundle_path", missing)
        panel = application.open(panel_file())
        panel.inputs.slots["flair"].selector.setCurrentNode(
            addSyntheticCase(application.scene, ("flair",))["flair"]
        )
        assert not panel.ui.applyButton.enabled
        assert "The default model was not found" in panel.ui.applyButton.toolTip
        assert "The default model was not found" in panel.ui.performanceNoteLabel.text
        assert panel.ui.importFolderButton.enabled


def panel_file():
    from pathlib import Path

    return Path(__file__).resolve().parents[2] / "MedMAPSegment/MedMAPSegment.py"


class TestUnexpected:
    def test_the_details_can_be_copied(self, ready, application, computation, finish):
        computation.error = ValueError("a bug")
        ready.ui.applyButton.click()
        finish()
        assert "ValueError: a bug" in said(application)
        (details,) = application.desk.texts("details")
        assert details.startswith("Traceback")

    def test_what_was_foreseen_needs_no_details(self, ready, application, computation, finish):
        computation.error = UnavailableError(
            "The memory does not suffice.", "Close other programs."
        )
        application.desk.answers["message"] = application.qt.QMessageBox.No
        ready.ui.applyButton.click()
        finish()
        assert not application.desk.texts("details")

    def test_garbage_of_the_panel_does_not_end_on_the_worker(self, ready, finish):
        """Python collects cycles on whichever thread allocates; a widget must be destroyed on the
        main thread.
        """
        import gc
        import threading

        ended = []

        class Widget:
            def __del__(self):
                ended.append(threading.current_thread().name)

        def work(progress, cancelled):
            gc.collect()

        gc.collect()
        widget = Widget()
        widget.self = widget
        del widget
        ready.jobs.start(work, lambda result: None)
        finish()
        assert not ended
        gc.collect()
        assert ended == [threading.main_thread().name]
