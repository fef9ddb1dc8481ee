"""Scans in the parameter node: by modality name, and back from a saved scene."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medmap.task import BRATS  # noqa: E402
from MedMAPSegmentLib.mrml import choices  # noqa: E402


@pytest.fixture
def node(scene):
    return scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")


def test_a_choice_is_kept_until_another_is_made(scene, node, mrml):
    volume = mrml.volume(np.zeros((2, 2, 2)))
    assert choices.choose(node, choices.scanRole("t2"), volume)
    assert not choices.choose(node, choices.scanRole("t2"), volume)
    assert choices.scans(node, BRATS) == {"t1": None, "t1ce": None, "t2": volume, "flair": None}
    assert choices.choose(node, choices.scanRole("t2"), None)
    assert choices.scans(node, BRATS)["t2"] is None
    assert not choices.choose(node, choices.scanRole("t2"), None)


def test_a_removed_volume_is_no_longer_chosen(scene, node, mrml):
    volume = mrml.volume(np.zeros((2, 2, 2)))
    choices.choose(node, choices.scanRole("t2"), volume)
    scene.RemoveNode(volume)
    assert choices.nodeOf(node, choices.scanRole("t2")) is None


def test_modalities_are_left_out_by_name(node):
    assert choices.leftOut(node) == frozenset()
    choices.leaveOut(node, "t2")
    choices.leaveOut(node, "flair")
    choices.leaveOut(node, "t2")
    assert choices.leftOut(node) == {"t2", "flair"}
    choices.leaveOut(node, "t2", False)
    assert choices.leftOut(node) == {"flair"}


def test_a_saved_scene_brings_the_choices_back(scene, node, mrml, tmp_path):
    choices.choose(
        node, choices.scanRole("t1ce"), mrml.volume(np.ones((2, 2, 2)), name="gadolinium")
    )
    choices.leaveOut(node, "t1ce")
    scene.SetURL(str(tmp_path / "saved.mrml"))
    assert scene.Commit()
    again = slicer.vtkMRMLScene()
    again.SetURL(str(tmp_path / "saved.mrml"))
    again.Import()
    found = again.GetFirstNodeByClass("vtkMRMLScriptedModuleNode")
    assert choices.nodeOf(found, choices.scanRole("t1ce")).GetName() == "gadolinium"
    assert choices.leftOut(found) == {"t1ce"}


def test_a_node_that_goes_is_forgotten_in_every_slot_and_nowhere_else(scene, node, mrml):
    one, other = (
        mrml.volume(np.zeros((2, 2, 2), np.float32), name=name) for name in ("one", "other")
    )
    for role, chosen in (
        ("scan_t1", one),
        ("scan_cine", one),
        (choices.REFERENCE, one),
        ("scan_flair", other),
    ):
        choices.choose(node, role, chosen)
    choices.choose(node, choices.RESULT, one)
    assert choices.forget(node, one)
    assert [choices.nodeOf(node, role) for role in ("scan_t1", "scan_cine", choices.REFERENCE)] == [
        None
    ] * 3
    assert choices.nodeOf(node, "scan_flair") is other
    assert choices.nodeOf(node, choices.RESULT) is one, "no selector shows it"
    assert not choices.forget(node, one)
