"""What the panel's code does on Apply, Cancel, failure and scene close, with bare stand-ins for Qt.

The stand-ins know nothing about real widgets; they catch wrong states and slips in the code, no more. The panel itself
is tested inside Slicer.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
import types
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medmap.checks import Finding
from medmap.errors import Cancelled, InputDataError

pytest.importorskip("slicer")

import slicer
import slicer.util

FOLDER = Path(__file__).resolve().parents[2] / "MedMAPSegment"


class Widget(SimpleNamespace):
    """Any Qt widget: attributes, remembered connections."""

    def __init__(self):
        super().__init__(text="", toolTip="", enabled=True, visible=True, value=0, items={}, slots=[])

    def connect(self, signal, slot):
        self.slots.append(slot)

    def setItemText(self, index, text):
        self.items[index] = text

    def setMRMLScene(self, scene):
        self.scene = scene


class Timer:
    """QTimer that a test fires by hand."""

    def __init__(self):
        self.running, self.slot = False, None

    def setInterval(self, milliseconds):
        assert milliseconds == 0

    def connect(self, signal, slot):
        assert signal == "timeout()"
        self.slot = slot

    def start(self):
        self.running = True

    def stop(self):
        self.running = False


class Names:
    """A ``ui`` object that makes its widgets when they are asked for."""

    def __getattr__(self, name):
        setattr(self, name, Widget())
        return getattr(self, name)


class Base:
    """ScriptedLoadableModuleWidget, Logic, Module and Test in one."""

    def __init__(self, parent=None):
        self.parent = SimpleNamespace(isEntered=True)
        self.layout = SimpleNamespace(addWidget=lambda widget: None)

    def setup(self):
        pass

    def resourcePath(self, name):
        return str(FOLDER / "Resources" / name)

    def getParameterNode(self):
        return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")


def parameterNodeWrapper(cls):
    """Plain attributes with the class's defaults; a change is announced by ``Modified``."""

    def __init__(self, node):
        self.node = node
        for name in cls.__annotations__:
            setattr(self, name, cls.__dict__.get(name))

    cls.__init__ = __init__
    cls.connectGui = lambda self, ui: 1
    cls.disconnectGui = lambda self, tag: None
    cls.AddObserver = lambda self, event, method, priority=0.0: self.node.AddObserver(event, method, priority)
    cls.RemoveObserver = lambda self, tag: self.node.RemoveObserver(tag)
    return cls


@pytest.fixture
def shown(monkeypatch):
    """Texts of the error dialogs."""
    return []


@pytest.fixture
def module(scene, monkeypatch, shown):
    """The module file, imported beside stand-ins."""

    def standin(name, **contents):
        created = types.ModuleType(name)
        created.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, created)

    standin("qt", QTimer=Timer)
    standin("slicer.i18n", tr=lambda text: text, translate=lambda context, text: text)
    standin("slicer.parameterNodeWrapper", Choice=list, parameterNodeWrapper=parameterNodeWrapper)
    roles = ("", "Widget", "Logic", "Test")
    standin("slicer.ScriptedLoadableModule", **{f"ScriptedLoadableModule{role}": Base for role in roles})
    connected = SimpleNamespace(connect=lambda *args: None, disconnect=lambda *args: None, testingEnabled=lambda: False)
    monkeypatch.setattr(slicer, "app", connected, raising=False)
    monkeypatch.setattr(slicer.util, "loadUI", lambda path: Widget())
    monkeypatch.setattr(slicer.util, "childWidgetVariables", lambda widget: Names())
    monkeypatch.setattr(slicer.util, "WaitCursor", nullcontext)
    monkeypatch.setattr(slicer.util, "errorDisplay", lambda text, **options: shown.append(text))

    @contextmanager
    def tryWithErrorDisplay(message, **options):
        try:
            yield
        except Exception as error:
            shown.append(f"{message} {error}")
            raise

    monkeypatch.setattr(slicer.util, "tryWithErrorDisplay", tryWithErrorDisplay)
    spec = importlib.util.spec_from_file_location("MedMAPSegment", FOLDER / "MedMAPSegment.py")
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "MedMAPSegment", loaded)
    spec.loader.exec_module(loaded)
    monkeypatch.setattr(loaded.dependencies, "ensure", lambda installer: True)
    return loaded


@pytest.fixture
def computation(make_result):
    """What the worker does; a test changes its fields."""
    held = SimpleNamespace(error=None, go=threading.Event(), findings=())
    held.go.set()

    def segment(volumes, bundle, *, progress, cancel, **options):
        progress(0.25, "window 1 of 4")
        while not held.go.is_set():
            if cancel():
                raise Cancelled()
            time.sleep(0.005)
        if held.error is not None:
            raise held.error
        name = next(iter(volumes))
        provenance = {"modalities": {"used": dict.fromkeys(volumes, "")}, "run": {"device": "cpu"}}
        labels = (volumes[name].array > 0).astype(np.uint8)
        return make_result(labels, name, {"WT": 12.34, "TC": 5.0, "ET": 0.0}, held.findings, provenance)

    held.segment = segment
    return held


@pytest.fixture
def panel(module, computation, mrml):
    """The panel with a FLAIR chosen."""
    widget = module.MedMAPSegmentWidget()
    widget.setup()
    widget.logic._segment = computation.segment
    widget.logic._loadBundle = lambda: None
    values = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    widget._parameterNode.flair = mrml.volume(values, name="FLAIR scan")
    widget._parameterNode.node.Modified()
    yield widget
    computation.go.set()
    widget.cleanup()


def run(panel, seconds=10.0):
    """Fire the timer until it is stopped, as Qt's event loop does."""
    deadline = time.monotonic() + seconds
    while panel._timer.running:
        panel._timer.slot()
        assert time.monotonic() < deadline


def segmentations(scene):
    return scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")


def test_apply_is_off_until_a_scan_is_chosen_and_says_why(panel):
    assert panel.ui.applyButton.enabled
    panel._parameterNode.flair = None
    panel._parameterNode.node.Modified()
    assert not panel.ui.applyButton.enabled
    assert "Choose at least one volume" in panel.ui.applyButton.toolTip


def test_the_choices_get_words(panel):
    assert panel.ui.referenceComboBox.items[4] == "FLAIR"
    assert panel.ui.deviceComboBox.items[0] == "Automatic"


def test_apply_computes_and_shows_volumes_and_warnings(panel, scene, computation):
    computation.findings = (
        Finding("warning", "x", "Without T1ce, ET is a guess.", "Add T1ce."),
        Finding("info", "y", "unimportant"),
    )
    panel.onApplyButton()
    run(panel)
    assert segmentations(scene) == 1
    text = panel.ui.resultsLabel.text
    for expected in ("Whole tumor (WT): 12.3 ml", "Based on: FLAIR", "On the grid of: FLAIR", "cpu", "ET is a guess"):
        assert expected in text
    assert "unimportant" not in text
    assert panel.ui.applyButton.text == "Apply"
    assert not panel.ui.progressBar.visible


def test_apply_again_keeps_the_first_result(panel, scene):
    for _ in range(2):
        panel.onApplyButton()
        run(panel)
    assert segmentations(scene) == 2


def test_apply_becomes_cancel_and_cancel_leaves_the_scene_alone(panel, scene, computation):
    computation.go.clear()
    panel.onApplyButton()
    assert panel.ui.applyButton.text == "Cancel"
    assert panel.isBusy()
    deadline = time.monotonic() + 5
    while panel.ui.progressBar.value != 25 and time.monotonic() < deadline:
        panel._timer.slot()
    assert (panel.ui.progressBar.value, panel.ui.statusLabel.text) == (25, "window 1 of 4")
    panel.onApplyButton()
    assert panel.ui.applyButton.text == "Cancelling..."
    assert not panel.ui.applyButton.enabled
    run(panel)
    assert segmentations(scene) == 0
    assert "unchanged" in panel.ui.statusLabel.text
    assert panel.ui.applyButton.text == "Apply"
    assert panel.ui.applyButton.enabled


@pytest.mark.parametrize("error", [InputDataError("The scan is empty.", "Choose another."), ValueError("bug")])
def test_a_failure_is_shown_and_the_panel_is_ready_again(panel, scene, computation, shown, error):
    computation.error = error
    panel.onApplyButton()
    run(panel)
    assert len(shown) == 1
    assert str(error) in shown[0]
    assert panel.ui.statusLabel.text == shown[0]
    assert segmentations(scene) == 0
    assert panel.ui.applyButton.enabled
    computation.error = None
    panel.onApplyButton()
    run(panel)
    assert segmentations(scene) == 1


def test_a_refused_input_is_shown_and_nothing_starts(panel, shown, mrml):
    panel._parameterNode.flair = mrml.volume(np.zeros((4, 4, 4), np.float32), name="flat")
    with pytest.raises(InputDataError):
        panel.onApplyButton()
    assert "'flat'" in shown[0]
    assert not panel.isBusy()


def test_declining_the_installation_starts_nothing(panel, module, monkeypatch):
    monkeypatch.setattr(module.dependencies, "ensure", lambda installer: False)
    panel.onApplyButton()
    assert not panel.isBusy()
    assert "PyTorch" in panel.ui.statusLabel.text


def test_closing_the_scene_abandons_the_computation(panel, scene, computation):
    computation.go.clear()
    panel.onApplyButton()
    job = panel._job
    scene.InvokeEvent(scene.StartCloseEvent)
    assert job.cancelRequested
    assert not panel.isBusy()
    assert not panel._timer.running
    scene.InvokeEvent(scene.EndCloseEvent)
    assert panel._parameterNode is not None
    assert panel.ui.resultsLabel.text == "No result yet."


def test_a_computation_goes_on_while_another_module_is_open(panel, scene, computation):
    computation.go.clear()
    panel.onApplyButton()
    panel.exit()
    computation.go.set()
    run(panel)
    assert segmentations(scene) == 1
    panel.enter()
    assert panel.ui.applyButton.text == "Apply"


def test_leaving_ends_the_worker(panel, computation):
    computation.go.clear()
    panel.onApplyButton()
    thread = panel._runner._thread
    panel.stopWork()
    assert not thread.is_alive()
    assert not panel.isBusy()


def test_the_self_test_of_the_module_passes_where_it_can(module, scene, monkeypatch):
    """Its first part needs no Qt; ``arrayFromSegmentBinaryLabelmap`` needs the application and is replaced."""
    from medmap.task import BRATS
    from MedMAPSegmentLib.scene import labelsOf

    values = {label.name: label.value for label in BRATS.labels}
    monkeypatch.setattr(
        slicer.util,
        "arrayFromSegmentBinaryLabelmap",
        lambda node, name, reference: (labelsOf(node, BRATS) == values[name]).transpose(2, 1, 0),
    )
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    add = module.addSyntheticCase

    def added(scene, names):
        nodes = add(scene, names)
        for node in nodes.values():
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
        return nodes

    monkeypatch.setattr(module, "addSyntheticCase", added)
    module.MedMAPSegmentTest().test_labelsBecomeSegments()
