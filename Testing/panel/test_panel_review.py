"""Review and what-if, driven by clicks after a run, with the numbers that ``medmap`` gives for the same pair."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def reviewed(panel, patient, finish, application):
    """The panel with a result, and a reference that is the result without its outermost slices."""
    import slicer.util

    from MedMAPSegmentLib.scene import labelsOf

    panel.ui.flairSelector.setCurrentNode(patient["flair"])
    panel.ui.t2Selector.setCurrentNode(patient["t2"])
    panel.ui.applyButton.click()
    finish()
    labels = labelsOf(panel.results.segmentation, panel.logic.task)
    reference = labels.copy()
    tumor = np.flatnonzero(labels.any((0, 1)))
    reference[:, :, tumor[-3] :] = 0
    node = application.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "expert")
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(reference.transpose(2, 1, 0)))
    node.CopyOrientation(patient["t2"])
    return SimpleNamespace(labels=labels, reference=reference, node=node, grid=None)


def test_compare_needs_a_result_and_a_reference(panel, patient, reviewed):
    assert not panel.ui.reviewButton.enabled
    panel.ui.reviewSelector.setCurrentNode(panel.results.segmentation)
    assert not panel.ui.reviewButton.enabled
    panel.ui.reviewSelector.setCurrentNode(reviewed.node)
    assert panel.ui.reviewButton.enabled


def test_the_numbers_are_those_of_medmap(panel, reviewed, finish, application):
    from medmap.metrics import dice, region_masks

    panel.ui.reviewSelector.setCurrentNode(reviewed.node)
    panel.ui.reviewButton.click()
    finish()
    table = panel.ui.reviewTable
    shown = {table.item(row, 0).text(): float(table.item(row, 1).text()) for row in range(table.rowCount)}
    task = panel.logic.task
    ours, theirs = region_masks(reviewed.labels, task), region_masks(reviewed.reference, task)
    for name, value in shown.items():
        # One number has one decimal when it is 1 or more, three below.
        assert value == pytest.approx(dice(ours[name], theirs[name]), abs=6e-4)
    assert set(shown) == {"WT", "TC", "ET"}
    assert "Both empty" in panel.ui.reviewLabel.text
    assert application.scene.GetFirstNodeByName(f"{panel.results.segmentation.GetName()} - errors") is not None


def test_worst_slice_moves_the_views_to_what_is_wrong(panel, reviewed, finish, application):
    panel.ui.reviewSelector.setCurrentNode(reviewed.node)
    panel.ui.reviewButton.click()
    finish()
    logic = application.app.layoutManager().mrmlSliceLogics().GetItemAsObject(0)
    before = logic.GetSliceNode().GetSliceOffset()
    panel.ui.worstSliceButton.click()
    assert "1 of" in panel.ui.statusLabel.text
    assert logic.GetSliceNode().GetSliceOffset() != before
    panel.ui.worstSliceButton.click()
    assert "2 of" in panel.ui.statusLabel.text
    panel.ui.plotButton.click()
    assert application.charts[0].GetClassName() == "vtkMRMLPlotChartNode"


def test_the_error_segmentation_follows_the_region(panel, reviewed, finish):
    panel.ui.reviewSelector.setCurrentNode(reviewed.node)
    panel.ui.reviewButton.click()
    finish()
    panel.ui.regionComboBox.currentIndex = 2
    segment = panel.review._nodes.errors.GetSegmentation().GetSegment("ours")
    assert segment.GetName() == "ET: Ours only"


def test_closing_the_scene_forgets_the_review(panel, reviewed, finish, application):
    panel.ui.reviewSelector.setCurrentNode(reviewed.node)
    panel.ui.reviewButton.click()
    finish()
    application.scene.Clear()
    assert not panel.ui.reviewTable.isVisible()
    assert not panel.ui.worstSliceButton.enabled
    assert panel.ui.resultsTable.rowCount == 0


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory):
    """An untrained, seeded network: places and scans give different answers, and it takes a moment only."""
    torch = pytest.importorskip("torch")
    from medmap.bundle import InferenceSpec, NetworkSpec, load_bundle, save_bundle
    from medmap.networks import build_network
    from medmap.preprocess import PreprocessSpec
    from medmap.task import BRATS

    torch.manual_seed(3)
    options = {"modalities": 4, "classes": 4, "widths": [8, 8, 8]}
    network = build_network("SubsetUNet", options)
    path = save_bundle(
        tmp_path_factory.mktemp("bundles") / "small",
        name="small",
        version="1.0.0",
        task=BRATS,
        network=network,
        network_spec=NetworkSpec("SubsetUNet", options),
        preprocess=PreprocessSpec(spacing=4.0),
        inference=InferenceSpec(),
        card={"description": "An untrained network for tests.", "data": "none"},
    )
    return load_bundle(path)


def test_a_walk_through_the_whole_panel(panel, patient, finish, application, small_bundle, tmp_path):
    """From an empty panel to a reviewed result with a real network; same labels as ``medmap.inference.segment``."""
    from medmap.inference import segment
    from MedMAPSegmentLib.logic import _segment
    from MedMAPSegmentLib.scene import labelsOf, volumeFromNode

    panel.logic._segment, panel.logic._loadBundle = _segment, lambda: small_bundle
    panel.ui.detectButton.click()
    panel.ui.t2UseCheckBox.click()
    panel.ui.checkButton.click()
    panel.ui.applyButton.click()
    started, turns = time.monotonic(), finish()
    print(f"{turns / (time.monotonic() - started):.0f} turns of the event loop per second")
    used = {name: volumeFromNode(node) for name, node in patient.items() if name != "t2"}
    expected = segment(used, small_bundle, device="cpu")
    assert np.array_equal(labelsOf(panel.results.segmentation, panel.logic.task), expected.labels)

    panel.ui.whatIfCollapsibleButton.click()
    panel.ui.whatIfButton.click()
    finish()
    assert panel.ui.whatIfTable.rowCount == 15
    panel.ui.uncertaintyButton.click()
    panel.ui.uncertainSliceButton.click()
    assert "of all uncertainty" in panel.ui.statusLabel.text
    composite = application.scene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    assert "entropy" in application.scene.GetNodeByID(composite.GetForegroundVolumeID()).GetName()

    panel.ui.show3DButton.click()
    picture = application.picture(panel, tmp_path / "panel.png")
    assert picture.height() > 600
