"""Whatever a user sets by hand is in the scene: it comes back after saving, closing and loading."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture
def chosen(panel, patient, application):
    """The patient with everything set otherwise than by default."""
    import slicer.util

    from MedMAPSegmentLib.preparation import ALIGN, Step

    scene = application.scene
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    matrix = np.eye(4)
    matrix[0, 3] = 16.0
    slicer.util.updateTransformMatrixFromArray(transform, matrix)
    patient["flair"].SetAndObserveTransformNodeID(transform.GetID())
    array = slicer.util.arrayFromVolume(patient["t1ce"])
    labels = {}
    for name, values in (("expert", [4, 3, 2]), ("brain", [1, 1, 1])):
        node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", name)
        drawn = np.select([array > 600, array > 450, array > 350], values, 0).astype(np.uint8)
        slicer.util.updateVolumeFromArray(node, drawn)
        node.CopyOrientation(patient["t1ce"])
        labels[name] = node
    earlier = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "earlier")
    output = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "output")
    ui = panel.ui
    for name, node in patient.items():
        panel.inputs.slots[name].selector.setCurrentNode(node)
    panel.inputs.slots["t2"].checkBox.click()
    panel.preparation.checkBoxes[Step(ALIGN, "flair")].click()
    ui.brainMaskSelector.setCurrentNode(labels["brain"])
    ui.surgeryCheckBox.click()
    ui.otherTumorCheckBox.click()
    ui.reviewSelector.setCurrentNode(labels["expert"])
    ui.conventionComboBox.setCurrentIndex(panel.referenceParts.conventions.index("brats2012"))
    ui.matchesTable.cellWidget(1, 1).setCurrentIndex(1)
    ui.regionComboBox.setCurrentIndex(2)
    ui.planeComboBox.setCurrentIndex(1)
    ui.overlayComboBox.setCurrentIndex(1)
    ui.mapComboBox.setCurrentIndex(1)
    ui.exportComboBox.setCurrentIndex(2)
    ui.referenceComboBox.setCurrentIndex(2)
    ui.deviceComboBox.setCurrentIndex(ui.deviceComboBox.count - 1)
    ui.earlierSelector.setCurrentNode(earlier)
    ui.outputSelector.setCurrentNode(output)
    ui.settingsCollapsibleButton.click()
    ui.reviewCollapsibleButton.click()
    return patient


def name_of(node) -> str:
    """Name of a node; empty for none."""
    return "" if node is None else node.GetName()


COMBO_BOXES = ("convention", "region", "plane", "overlay", "map", "export", "reference", "device")


def shown(panel) -> dict[str, object]:
    """Everything that a user can set, as the panel shows it, besides the model."""
    from MedMAPSegmentLib.sections.flow import BOXES

    ui = panel.ui
    state: dict[str, object] = {}
    for name, widgets in panel.inputs.slots.items():
        state[f"scan {name}"] = name_of(widgets.selector.currentNode())
        state[f"used {name}"] = widgets.checkBox.checked
    for step, widget in panel.preparation.checkBoxes.items():
        state[f"{step.kind} {step.modality}"] = widget.isHidden() or widget.checked
    for name in ("review", "earlier", "output", "brainMask"):
        state[name] = name_of(getattr(ui, f"{name}Selector").currentNode())
    for name in (
        "convention",
        "region",
        "plane",
        "overlay",
        "map",
        "export",
        "reference",
        "device",
    ):
        state[name] = getattr(ui, f"{name}ComboBox").currentText
    for name in ("surgery", "otherTumor"):
        state[name] = getattr(ui, f"{name}CheckBox").checked
    for name in BOXES:
        state[f"folded {name}"] = getattr(ui, f"{name}CollapsibleButton").collapsed
    for row in range(ui.matchesTable.rowCount):
        state[f"meaning {row}"] = ui.matchesTable.cellWidget(row, 1).currentText
    return state


def test_every_control_that_holds_a_choice_is_looked_at(panel):
    """A control that is added later must be added here, too, and be kept in the scene."""
    looked_at = {f"{name}Selector" for name in ("review", "earlier", "output", "brainMask")}
    looked_at |= {f"{name}ComboBox" for name in COMBO_BOXES}
    looked_at |= {"surgeryCheckBox", "otherTumorCheckBox"}
    # The model is kept as a parameter of the scene, too (test_other_models.py).
    looked_at.add("modelComboBox")
    kinds = ("QComboBox", "QCheckBox", "qMRMLNodeComboBox", "QSpinBox", "QLineEdit")
    controls = {n for n, widget in vars(panel.ui).items() if widget.className() in kinds}
    assert controls == looked_at


def test_all_of_it_comes_back_from_a_saved_scene(panel, chosen, application, tmp_path):
    scene = application.scene
    before = shown(panel)
    defaults = {
        "used t2": True,
        "align flair": True,
        "surgery": False,
        "otherTumor": False,
        "folded settings": True,
        "folded review": True,
    }
    unchanged = [name for name, value in defaults.items() if before[name] == value]
    assert not unchanged, unchanged
    scene.SetRootDirectory(str(tmp_path))
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(number, "vtkMRMLScalarVolumeNode")
        assert node.AddDefaultStorageNode(str(tmp_path / f"{node.GetID()}.nrrd"))
        assert node.GetStorageNode().WriteData(node)
    scene.SetURL(str(tmp_path / "saved.mrml"))
    assert scene.Commit()
    scene.Clear()
    assert shown(panel)["scan t1"] == ""
    assert panel.state.plan is None
    scene.SetURL(str(tmp_path / "saved.mrml"))
    assert scene.Import()
    after = shown(panel)
    lost = {name: (value, after.get(name)) for name, value in before.items()}
    lost = {name: values for name, values in lost.items() if values[0] != values[1]}
    assert not lost, lost
