"""Slots, Detect, sample patient, subset card, checks and alignment, driven by clicks."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

LIBRARY = Path(__file__).resolve().parents[2] / "MedMAPSegment/MedMAPSegmentLib"


def states(panel):
    return {name: widgets.state.text for name, widgets in panel.inputs.slots.items()}


def flat(application, name="flat"):
    import slicer.util

    node = application.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    slicer.util.updateVolumeFromArray(node, np.zeros((4, 4, 4), np.float32))
    return node


class TestSlots:
    def test_no_volume_is_chosen_by_itself(self, panel, patient):
        assert all(w.selector.currentNode() is None for w in panel.inputs.slots.values())

    def test_every_slot_says_its_state(self, panel, patient, choose):
        choose(flair=patient["flair"], t2=patient["t2"])
        panel.inputs.slots["t2"].checkBox.click()
        assert states(panel) == {
            "t1": "missing",
            "t1ce": "missing",
            "t2": "excluded",
            "flair": "used",
        }

    def test_a_left_out_scan_is_not_used(self, panel, patient, choose, finish, computation):
        choose(flair=patient["flair"], t2=patient["t2"])
        panel.inputs.slots["t2"].checkBox.click()
        panel.ui.applyButton.click()
        finish()
        assert computation.calls[0][0] == ("flair",)

    def test_the_same_volume_twice_is_refused_in_words(self, panel, patient, choose):
        choose(flair=patient["flair"], t2=patient["flair"])
        assert not panel.ui.applyButton.enabled
        assert "one modality only" in panel.ui.applyButton.toolTip

    def test_an_empty_volume_counts_as_missing_and_says_so(
        self, panel, patient, choose, application
    ):
        choose(flair=patient["flair"], t1=flat(application))
        assert states(panel)["t1"] == "missing \u26a0"
        assert "'flat' is 0 everywhere" in panel.ui.performanceNoteLabel.text

    def test_a_removed_volume_leaves_its_slot_empty(self, panel, patient, choose, application):
        """A node selector would take the next volume of the list instead, which is another kind of
        scan.
        """
        choose(t1=patient["t1"])
        application.scene.RemoveNode(patient["t1"])
        assert states(panel)["t1"] == "missing"
        assert panel.inputs.slots["t1"].selector.currentNode() is None
        assert not panel.ui.applyButton.enabled

    def test_a_removed_volume_that_is_not_chosen_changes_nothing(
        self, panel, patient, choose, application
    ):
        choose(flair=patient["flair"])
        application.scene.RemoveNode(patient["t1"])
        assert states(panel)["flair"] == "used"
        assert panel.inputs.slots["flair"].selector.currentNode() is patient["flair"]

    def test_a_volume_that_goes_while_another_module_is_open_leaves_its_slot_empty(
        self, panel, patient, choose, application
    ):
        choose(t1=patient["t1"])
        panel.exit()
        application.scene.RemoveNode(patient["t1"])
        panel.enter()
        assert states(panel)["t1"] == "missing"
        assert panel.inputs.slots["t1"].selector.currentNode() is None

    def test_the_slots_come_from_the_task_of_the_model(
        self, panel, patient, small_bundle, application
    ):
        from dataclasses import replace

        from medmap.task import BRATS, Modality

        heart = (
            Modality("cine", "Cine"),
            Modality("t2", "T2"),
            Modality("lge", "LGE", ("de",), "Without LGE no scar."),
        )
        task = replace(BRATS, name="Heart", modalities=heart)
        panel.inputs.slots["t2"].selector.setCurrentNode(patient["t2"])
        application.desk.answers["getExistingDirectory"] = str(small_bundle(task, "heart"))
        panel.ui.importFolderButton.click()
        assert list(panel.inputs.slots) == ["cine", "t2", "lge"]
        assert states(panel) == {"cine": "missing", "t2": "used", "lge": "missing"}
        assert [panel.ui.referenceComboBox.itemText(n) for n in range(4)][1:] == [
            "Cine",
            "T2",
            "LGE",
        ]
        assert "Without LGE no scar." in panel.ui.performanceNoteLabel.text
        assert panel.ui.applyButton.enabled, panel.ui.applyButton.toolTip
        assert not panel.ui.sampleButton.enabled, "the sample is a brain"


class TestDetect:
    def test_the_slots_are_filled_and_the_reason_is_said(self, panel, patient):
        panel.ui.detectButton.click()
        assert {name: w.selector.currentNode() for name, w in panel.inputs.slots.items()} == patient
        assert "% sure" in panel.ui.detectLabel.text

    def test_two_volumes_that_fit_are_asked_about(self, panel, patient, application):
        flat(application, "synthetic flair 2")
        panel.ui.detectButton.click()
        assert panel.inputs.slots["flair"].selector.currentNode() is None
        assert "Please choose" in panel.ui.detectLabel.text


class TestSample:
    def test_one_click_fills_slots_and_reference(self, panel, application):
        pytest.importorskip("torch")
        panel.ui.sampleButton.click()
        assert set(states(panel).values()) == {"used"}
        assert panel.review.reference.GetClassName() == "vtkMRMLLabelMapVolumeNode"
        assert panel.ui.applyButton.enabled
        shown = application.scene.GetFirstNodeByClass(
            "vtkMRMLSliceCompositeNode"
        ).GetBackgroundVolumeID()
        assert application.scene.GetNodeByID(shown).GetName() == "MedMAP phantom T1ce"

    def test_it_is_in_the_sample_data_module(self, panel, application, monkeypatch):
        pytest.importorskip("torch")
        offered = application.samples[0]
        assert (offered["category"], offered["name"]) == ("MedMAP", "MedMAP phantom")
        assert len(offered["load"](None)) == 5

    def test_without_pytorch_nothing_is_made(self, panel, application, monkeypatch):
        monkeypatch.setattr(application.module.dependencies, "ensure", lambda installer: False)
        panel.ui.sampleButton.click()
        assert application.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
        assert "PyTorch" in panel.ui.statusLabel.text


class TestExpectedPerformance:
    def test_the_figures_are_those_of_the_shipped_model(self, panel, patient, choose):
        choose(flair=patient["flair"], t1ce=patient["t1ce"])
        assert panel.ui.performanceLabel.text == "Expected with T1ce + FLAIR:"
        card = panel.state.entry.card
        measured = card["dice"]["subsets"]["t1ce+flair"]["WT"]
        assert panel.ui.performanceTable.item(0, 1).text() == f"{measured['mean']:.2f}"
        assert f"Measured on {measured['n']} " in panel.ui.performanceNoteLabel.text

    def test_commands_and_seeds_are_behind_the_link(self, panel, patient, choose, application):
        choose(flair=patient["flair"], t1ce=patient["t1ce"])
        recorded = panel.state.entry.card["dice"]["data"]
        for word in ("seed", "label map", "--"):
            assert word not in panel.ui.performanceNoteLabel.text
        panel.performance.onDetails()
        assert recorded in application.desk.texts()[0]

    def test_what_is_missing_is_warned_of(self, panel, patient, choose):
        choose(flair=patient["flair"])
        assert "Without T1ce" in panel.ui.performanceNoteLabel.text

    def test_an_unmeasured_set_is_not_validated(
        self, panel, patient, choose, small_bundle, application
    ):
        application.desk.answers["getExistingDirectory"] = str(small_bundle())
        panel.ui.importFolderButton.click()
        choose(flair=patient["flair"])
        assert "not validated" in panel.ui.performanceNoteLabel.text
        assert panel.ui.performanceTable.rowCount == 0


class TestNetworks:
    """A model of several networks, each made for one set of scans: the card says before Apply which
    one will run.
    """

    @pytest.fixture
    def several(self, panel, patient, application, tmp_path):
        torch = pytest.importorskip("torch")
        from medmap.bundle.format import InferenceSpec, NetworkSpec
        from medmap.bundle.loading import save_bundle
        from medmap.networks import build_network
        from medmap.preprocess import PreprocessSpec
        from medmap.task import BRATS

        torch.manual_seed(0)
        networks = []
        for names in (["t1ce"], ["t1ce", "flair"]):
            inputs = [BRATS.index(name) for name in names]
            options = {"modalities": 4, "classes": 4, "inputs": inputs, "widths": [4, 6]}
            networks.append((NetworkSpec("UNet", options), build_network("UNet", options)))
        (spec, network), *others = networks
        application.desk.answers["getExistingDirectory"] = str(
            save_bundle(
                tmp_path / "several",
                name="several",
                version="1",
                task=BRATS,
                network=network,
                network_spec=spec,
                further_networks=others,
                preprocess=PreprocessSpec(spacing=4.0),
                inference=InferenceSpec(),
                card={},
            )
        )
        panel.ui.importFolderButton.click()
        assert panel.models.entry.id == "several-1"

    def test_the_set_that_will_be_used_is_said_when_it_is_another(
        self, panel, several, patient, choose
    ):
        choose(t1ce=patient["t1ce"], t2=patient["t2"])
        note = panel.ui.performanceNoteLabel
        assert "no network for exactly this modality subset: only T1ce will be used" in note.text
        choose(flair=patient["flair"])
        assert (
            "no network for exactly this modality subset: only T1ce, FLAIR will be used"
            in note.text
        )
        choose(t2=None)
        assert "no network" not in note.text

    def test_scans_that_no_network_is_made_for_are_said(self, panel, several, patient, choose):
        choose(flair=patient["flair"])
        assert (
            "The model does not support this modality subset." in panel.ui.performanceNoteLabel.text
        )
        assert "The model does not support this modality subset." in panel.ui.applyButton.toolTip
        assert not panel.ui.applyButton.enabled
        choose(flair=None)
        assert "no network" not in panel.ui.performanceNoteLabel.text

    def test_a_network_for_any_set_needs_no_word(self, panel, patient, choose):
        choose(flair=patient["flair"], t2=patient["t2"])
        assert "no network" not in panel.ui.performanceNoteLabel.text


class TestChecks:
    def test_they_speak_when_asked_and_forget_when_the_choice_changes(self, panel, patient, choose):
        choose(flair=patient["flair"], t1ce=patient["t1ce"])
        assert "Not checked" in panel.ui.checksLabel.text
        panel.ui.checkButton.click()
        assert panel.ui.checksLabel.text == "No problems found."
        choose(t1ce=None)
        assert "Not checked" in panel.ui.checksLabel.text

    def test_apply_says_that_a_scan_will_be_resampled(self, panel, patient, choose, finish):
        matrix = np.eye(4)
        matrix[0, 3] = 7.0
        import slicer.util

        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        slicer.util.updateTransformMatrixFromArray(transform, matrix)
        patient["flair"].SetAndObserveTransformNodeID(transform.GetID())
        choose(flair=patient["flair"], t1ce=patient["t1ce"])
        panel.ui.applyButton.click()
        assert "up to 7.0 mm apart): it will be resampled" in panel.ui.checksLabel.text
        finish()

    def test_an_installed_skull_stripping_module_is_offered(
        self, panel, patient, choose, application, monkeypatch
    ):
        import slicer.util

        from MedMAPSegmentLib import preparation

        monkeypatch.setattr(preparation, "can_extract_brains", lambda: False)
        array = slicer.util.arrayFromVolume(patient["flair"])
        skull = np.random.default_rng(0).uniform(50, 500, array.shape).astype(np.float32)
        slicer.util.updateVolumeFromArray(patient["flair"], np.where(array > 0, array, skull))
        choose(flair=patient["flair"])
        panel.ui.checkButton.click()
        assert "Extensions Manager" in panel.ui.checksLabel.text
        assert not panel.ui.stripButton.enabled
        application.app.modulesNames += ("SwissSkullStripper",)
        panel.ui.checkButton.click()
        assert panel.ui.stripButton.toolTip == "Open Swiss Skull Stripper."
        panel.ui.stripButton.click()
        assert application.app.selected == ["SwissSkullStripper"]


CONTROLS = (
    "QPushButton",
    "QComboBox",
    "QCheckBox",
    "QTableWidget",
    "QPlainTextEdit",
    "QProgressBar",
    "qMRMLNodeComboBox",
    "ctkCollapsibleButton",
)
"""Classes of widgets that a person uses or reads."""
WITHOUT_FOCUS = ("QProgressBar", "qMRMLNodeComboBox", "ctkCollapsibleButton")
"""Nothing to type there, or up to Slicer's own widgets."""
SAME_ROW = 8
"""Pixels by which the tops of widgets of one row may differ."""


@pytest.fixture
def opened(panel, result, application, patient):
    """The panel with a result, every box open, and a reference whose parts are listed."""
    import slicer.util

    reference = application.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "expert")
    values = np.where(slicer.util.arrayFromVolume(patient["t2"]) > 450, 2, 0).astype(np.uint8)
    slicer.util.updateVolumeFromArray(reference, values)
    panel.ui.reviewSelector.setCurrentNode(reference)
    panel.ui.conventionComboBox.setCurrentIndex(1)
    for name in ("inputs", "results", "review", "subsets", "followUp", "settings"):
        getattr(panel.ui, f"{name}CollapsibleButton").collapsed = False
    for _ in range(4):
        application.app.processEvents()
    return panel


def controls_of(panel) -> list:
    """Every control of the panel, those made in Python among them."""
    from PySide6 import QtWidgets

    widgets = panel.parent.findChildren(QtWidgets.QWidget)
    controls = [w for w in widgets if hasattr(w, "className") and w.className() in CONTROLS]
    names = {widget.name for widget in controls}
    made = {"flairCheckBox", "flairSelector", "extract_flairCheckBox", "align_t2CheckBox"}
    assert made <= names
    assert any(name.startswith("meaning") for name in names)
    return controls


class TestKeyboard:
    def test_tab_goes_down_the_panel_and_never_back(self, opened):
        from PySide6 import QtCore, QtWidgets

        start = widget = opened.ui.detectButton
        tops = []
        while True:
            takesTab = QtWidgets.QWidget.focusPolicy(widget) & QtCore.Qt.FocusPolicy.TabFocus
            # Apply and what belongs to it stay below the boxes, wherever these are scrolled to.
            isInBox = opened.ui.sectionsContents.isAncestorOf(widget)
            isSeen = isInBox and QtWidgets.QWidget.isVisible(widget)
            if takesTab and isSeen and hasattr(widget, "className"):
                corner = QtWidgets.QWidget.mapTo(widget, opened.parent, QtCore.QPoint(0, 0))
                tops.append((corner.y(), widget.name))
            widget = QtWidgets.QWidget.nextInFocusChain(widget)
            if widget is start:
                break
        # A box is as high as its contents.
        tops = [entry for entry in tops if not entry[1].endswith("CollapsibleButton")]
        assert len(tops) > 30
        back = []
        for (top, name), (nextTop, nextName) in pairwise(tops):
            if nextTop < top - SAME_ROW:
                back.append(f"{name} ({top}) -> {nextName} ({nextTop})")
        assert not back, back

    def test_tab_comes_to_every_control_from_top_to_bottom(self, panel):
        """What is made in Python, the slots, comes where it is seen and not at the end."""
        start = widget = panel.ui.detectButton
        names = []
        for _ in range(1000):
            names.append(widget.name if hasattr(widget, "name") else widget.objectName())
            widget = widget.nextInFocusChain()
            if widget is start:
                break
        assert widget is start
        order = [
            "detectButton",
            "sampleButton",
            "t1CheckBox",
            "t1ceCheckBox",
            "t2CheckBox",
            "flairCheckBox",
            "surgeryCheckBox",
            "checkButton",
            "overlayComboBox",
            "show3DButton",
            "exportButton",
            "planeComboBox",
            "reviewButton",
            "worstTable",
            "subsetsButton",
            "followUpButton",
            "deviceComboBox",
            "modelComboBox",
            "deleteButton",
            "applyButton",
        ]
        assert [name for name in names if name in order] == order

    def test_every_control_can_have_the_focus(self, opened):
        from PySide6.QtCore import Qt

        for widget in controls_of(opened):
            if widget.className() not in WITHOUT_FOCUS:
                assert widget.focusPolicy & Qt.FocusPolicy.TabFocus.value, widget.name

    def test_every_control_has_a_tool_tip(self, opened):
        bare = [widget.name for widget in controls_of(opened) if not widget.toolTip]
        assert not bare

    def test_every_control_has_a_name_for_screen_readers(self, opened):
        """What has a text is read by it; anything else needs a name."""
        unnamed = []
        for widget in controls_of(opened):
            hasText = widget.className() in ("QPushButton", "QCheckBox", "ctkCollapsibleButton")
            if not widget.accessibleName and not (hasText and widget.text):
                unnamed.append(widget.name)
        assert not unnamed

    def test_links_are_reached_by_keyboard_and_say_what_they_open(self, opened):
        from PySide6 import QtCore, QtWidgets

        byKeyboard = QtCore.Qt.TextInteractionFlag.LinksAccessibleByKeyboard
        links = []
        for label in opened.parent.findChildren(QtWidgets.QLabel):
            if "<a " in QtWidgets.QLabel.text(label):
                links.append(label)
                assert QtWidgets.QLabel.textInteractionFlags(label) & byKeyboard
                assert QtWidgets.QWidget.toolTip(label)
        assert links

    def test_every_dialog_is_slicers_or_the_systems(self):
        """Both name their own controls; a dialog of ours would need tips and names of its own."""
        names = set()
        for path in sorted(LIBRARY.rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            names.update(re.findall(r"\bqt\.(Q\w*(?:Dialog|MessageBox|Wizard))\b", text))
        assert names == {"QFileDialog"}

    def test_check_boxes_of_one_name_are_told_apart_by_screen_readers(self, opened):
        """T1 is a check box among the inputs and two among the steps of the preparation."""
        names = []
        for widget in controls_of(opened):
            if widget.className() == "QCheckBox":
                names.append(widget.accessibleName or widget.text)
        assert len(set(names)) == len(names)
