"""What a user sees on Apply, Cancel, failure and scene close, driven by clicks."""

from __future__ import annotations

import numpy as np
import pytest

from medmap.checks import Finding
from medmap.errors import InputDataError


@pytest.fixture
def ready(panel, patient):
    """The panel with a FLAIR chosen."""
    panel.ui.flairSelector.setCurrentNode(patient["flair"])
    return panel


def results(application):
    """Segmentation nodes of the scene."""
    return application.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")


def test_apply_is_off_until_a_scan_is_chosen_and_says_why(panel, patient):
    assert not panel.ui.applyButton.enabled
    assert "Choose at least one volume" in panel.ui.applyButton.toolTip
    panel.ui.flairSelector.setCurrentNode(patient["flair"])
    assert panel.ui.applyButton.enabled


def test_the_choices_get_words(panel):
    assert panel.ui.referenceComboBox.itemText(4) == "FLAIR"
    assert panel.ui.deviceComboBox.itemText(0) == "Automatic"


def test_no_volume_is_chosen_by_itself(panel, patient):
    assert all(selector.currentNode() is None for _, selector, _ in panel.inputs.slots().values())


def test_every_slot_says_its_state(ready, patient):
    ready.ui.t2Selector.setCurrentNode(patient["t2"])
    ready.ui.t2UseCheckBox.click()
    assert [label.text for _, _, label in ready.inputs.slots().values()] == ["missing", "missing", "left out", "used"]


def test_a_left_out_scan_is_not_used(ready, patient, finish, computation):
    ready.ui.t2Selector.setCurrentNode(patient["t2"])
    ready.ui.t2UseCheckBox.click()
    ready.ui.applyButton.click()
    finish()
    assert computation.calls[0][0] == ("flair",)


def test_the_same_volume_twice_is_refused_in_words(ready, patient):
    ready.ui.t2Selector.setCurrentNode(patient["flair"])
    assert not ready.ui.applyButton.enabled
    assert "one slot only" in ready.ui.applyButton.toolTip


def test_an_empty_volume_counts_as_missing_and_says_so(ready, application):
    import slicer.util

    node = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "flat")
    slicer.util.updateVolumeFromArray(node, np.zeros((4, 4, 4), np.float32))
    ready.ui.t1Selector.setCurrentNode(node)
    assert "missing" in ready.ui.t1StateLabel.text
    assert "'flat' is 0 everywhere" in ready.ui.cardLabel.text


def test_detect_fills_the_slots_and_says_why(panel, patient):
    panel.ui.detectButton.click()
    chosen = {name: selector.currentNode() for name, (_, selector, _) in panel.inputs.slots().items()}
    assert chosen == patient
    assert "% sure" in panel.ui.detectLabel.text


def test_detect_asks_where_two_volumes_fit(panel, patient, application):
    import slicer.util

    again = slicer.util.addVolumeFromArray(np.arange(64, dtype=np.float32).reshape(4, 4, 4), name="synthetic flair 2")
    assert again is not None
    panel.ui.detectButton.click()
    assert panel.ui.flairSelector.currentNode() is None
    assert "Please choose" in panel.ui.detectLabel.text


def test_the_card_warns_of_what_is_missing_and_says_nothing_of_a_model_it_has_not_read(ready):
    assert "Without T1ce" in ready.ui.cardLabel.text
    assert "once the model has been loaded" in ready.ui.cardLabel.text
    assert "validated" not in ready.ui.cardLabel.text
    assert "Dice" not in ready.ui.cardLabel.text


def test_the_checks_speak_when_asked(ready, patient):
    ready.ui.t1ceSelector.setCurrentNode(patient["t1ce"])
    assert "Not checked" in ready.ui.checksLabel.text
    ready.ui.checkButton.click()
    assert "Not checked" not in ready.ui.checksLabel.text
    ready.ui.t1ceSelector.setCurrentNode(None)
    assert "Not checked" in ready.ui.checksLabel.text


def test_apply_shows_volumes_diameters_and_warnings(ready, application, computation, finish):
    computation.findings = (
        Finding("warning", "x", "Without T1ce, ET is a guess.", "Add T1ce."),
        Finding("info", "y", "unimportant"),
    )
    ready.ui.applyButton.click()
    finish()
    assert results(application) == 1
    table = ready.ui.resultsTable
    assert [table.item(row, 0).text() for row in range(table.rowCount)] == ["WT", "TC", "ET"]
    assert float(table.item(0, 2).text()) > 1
    for expected in ("Based on: FLAIR", "On the grid of: FLAIR", "cpu", "ET is a guess", "processor was used"):
        assert expected in ready.ui.resultsLabel.text
    assert "unimportant" not in ready.ui.resultsLabel.text
    assert ready.ui.applyButton.text == "Apply"
    assert not ready.ui.progressBar.isVisible()


def test_apply_again_keeps_the_first_result(ready, application, finish):
    for _ in range(2):
        ready.ui.applyButton.click()
        finish()
    assert results(application) == 2


def test_apply_becomes_cancel_and_cancel_leaves_the_scene_alone(ready, application, computation, finish):
    computation.go.clear()
    ready.ui.applyButton.click()
    assert ready.ui.applyButton.text == "Cancel"
    application.wait(lambda: ready.ui.progressBar.value == 25, 5)
    assert ready.ui.statusLabel.text == "window 1 of 4"
    ready.ui.applyButton.click()
    assert (ready.ui.applyButton.text, ready.ui.applyButton.enabled) == ("Cancelling...", False)
    finish(5)
    assert results(application) == 0
    assert "unchanged" in ready.ui.statusLabel.text
    assert (ready.ui.applyButton.text, ready.ui.applyButton.enabled) == ("Apply", True)


@pytest.mark.parametrize("error", [InputDataError("The scan is empty.", "Choose another."), ValueError("bug")])
def test_a_failure_is_shown_and_the_panel_is_ready_again(ready, application, computation, finish, error):
    computation.error = error
    ready.ui.applyButton.click()
    finish()
    assert len(application.desk.texts()) == 1
    assert str(error) in application.desk.texts()[0]
    assert results(application) == 0
    computation.error = None
    ready.ui.applyButton.click()
    finish()
    assert results(application) == 1


def test_declining_the_installation_starts_nothing(ready, application, monkeypatch):
    monkeypatch.setattr(application.module.dependencies, "ensure", lambda installer: False)
    ready.ui.applyButton.click()
    assert not ready.isBusy()
    assert "PyTorch" in ready.ui.statusLabel.text


def test_closing_the_scene_abandons_the_computation(ready, application, computation):
    computation.go.clear()
    ready.ui.applyButton.click()
    job = ready._job
    application.scene.Clear()
    assert job.cancelRequested
    assert not ready.isBusy()
    assert not ready._timer.active
    assert ready.chosen() is not None
    assert ready.ui.resultsLabel.text == "No result yet."
    assert not ready.ui.applyButton.enabled


def test_a_computation_goes_on_while_another_module_is_open(ready, application, computation, finish):
    computation.go.clear()
    ready.ui.applyButton.click()
    ready.exit()
    computation.go.set()
    finish()
    assert results(application) == 1
    ready.enter()
    assert ready.ui.applyButton.text == "Apply"


def test_leaving_ends_the_worker(ready, computation):
    computation.go.clear()
    ready.ui.applyButton.click()
    thread = ready._runner._thread
    ready.stopWork()
    assert not thread.is_alive()
    assert not ready.isBusy()


def test_the_event_loop_turns_at_least_20_times_a_second_and_cancel_is_quick(ready, application, computation, finish):
    """The panel's share only: a worker that computes in numpy. The real event loop is measured inside Slicer."""
    import time

    from medmap.errors import Cancelled

    def busy(volumes, bundle, *, progress, cancel, **options):
        values = np.random.default_rng(0).normal(size=(300, 300))
        while not cancel():
            values = np.tanh(values @ values / 300)
        raise Cancelled()

    ready.logic._segment = busy
    ready.ui.applyButton.click()
    turns, started = 0, time.monotonic()
    while time.monotonic() - started < 1.0:
        application.app.processEvents()
        turns += 1
    assert turns >= 20
    ready.ui.applyButton.click()
    started = time.monotonic()
    finish(5)
    assert time.monotonic() - started < 1.0


def test_the_first_self_test_of_the_module_passes(panel, application):
    application.module.MedMAPSegmentTest().test_labelsBecomeSegments()
