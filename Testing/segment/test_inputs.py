"""Slots: used, missing or left out; and every obstacle is named at once."""

from __future__ import annotations

import numpy as np
import pytest

from medmap.errors import UsageError
from medmap.task import BRATS, Modality, Task

pytest.importorskip("slicer")

from MedMAPSegmentLib.inputs import SlotState, emptiness, readSlots

RAMP = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
THREE = Task(
    "heart", (Modality("c0", "bSSFP"), Modality("de", "LGE"), Modality("t2", "T2")), (), ()
)


@pytest.fixture
def node(mrml):
    """Function that makes a volume node with contrast."""
    return lambda name="scan", array=RAMP: mrml.volume(array, name=name)


def states(inputs):
    return {slot.modality: slot.state.value for slot in inputs.slots}


def test_slots_are_used_missing_or_left_out(node):
    t1ce, flair, t2 = node("a"), node("b"), node("c")
    inputs = readSlots(BRATS, {"t1ce": t1ce, "flair": flair, "t2": t2, "t1": None}, leftOut=["t2"])
    assert states(inputs) == {"t1": "missing", "t1ce": "used", "t2": "excluded", "flair": "used"}
    assert inputs.used == {"t1ce": t1ce, "flair": flair}
    assert inputs.slot("t2").node is t2
    assert inputs.problems == inputs.warnings == ()


def test_every_one_of_the_fifteen_combinations_is_accepted(node):
    nodes = {name: node(name) for name in BRATS.modality_names}
    for subset in BRATS.subsets():
        inputs = readSlots(BRATS, {name: nodes[name] for name in subset})
        assert tuple(inputs.used) == subset
        assert not inputs.problems


def test_slots_come_from_the_task(node):
    inputs = readSlots(THREE, {"de": node()})
    assert [(slot.modality, slot.title, slot.state) for slot in inputs.slots] == [
        ("c0", "bSSFP", SlotState.MISSING),
        ("de", "LGE", SlotState.USED),
        ("t2", "T2", SlotState.MISSING),
    ]


def test_a_modality_that_the_task_does_not_have_is_refused(node):
    with pytest.raises(UsageError, match="'t1ce' is not a modality of the task heart"):
        readSlots(THREE, {"t1ce": node()})
    with pytest.raises(UsageError, match="'pd'"):
        readSlots(BRATS, {}, leftOut=["pd"])


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((3, 4, 5), np.int16), "'empty' is 0 everywhere"),
        (np.full((3, 4, 5), 7.5, np.float32), "'empty' is 7.5 everywhere"),
        (np.full((3, 4, 5), 1e7, np.float32) + RAMP * 1e-3, "everywhere"),
        (np.where(RAMP > 3, 2, np.nan).astype(np.float32), "'empty' is 2 everywhere"),
        (np.full((3, 4, 5), np.nan, np.float32), "no valid number"),
    ],
)
def test_a_constant_volume_counts_as_missing_with_a_warning(node, array, said):
    inputs = readSlots(BRATS, {"t1": node("empty", array), "flair": node()})
    slot = inputs.slot("t1")
    assert slot.state is SlotState.MISSING
    assert said in slot.warning
    assert "counts as missing" in slot.text
    assert inputs.warnings == (f"T1: {slot.warning}",)
    assert list(inputs.used) == ["flair"]
    assert not inputs.problems


def test_a_volume_with_contrast_is_not_empty(node):
    for array in (RAMP, RAMP - 30, (RAMP > 58).astype(np.uint8), RAMP * 1e-30):
        assert emptiness(node(array=array)) == ""


def test_changed_voxels_are_noticed(node):
    import slicer.util

    volume = node("later", np.zeros((3, 4, 5), np.float32))
    assert emptiness(volume)
    slicer.util.updateVolumeFromArray(volume, RAMP)
    assert not emptiness(volume)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda node: {}, "Select at least one volume."),
        (lambda node: {"t1": None}, "Select at least one volume."),
        (
            lambda node: {"t1": node("z", np.zeros((3, 4, 5)))},
            "None of the selected volumes has any contrast",
        ),
    ],
)
def test_without_a_usable_scan_apply_is_off(node, make, said):
    (problem,) = readSlots(BRATS, make(node)).problems
    assert said in problem


def test_leaving_everything_out_is_said_in_its_own_words(node):
    inputs = readSlots(BRATS, {"t1": node(), "t2": node()}, leftOut=["t1", "t2"])
    assert inputs.problems == ("Every selected volume is excluded; include at least one.",)


def test_the_same_node_twice_is_refused(node):
    same = node("scan")
    inputs = readSlots(BRATS, {"t1": same, "t1ce": same, "flair": node("other")})
    assert inputs.problems == (
        "'scan' is selected for T1 and T1ce; each volume can be used for one modality only.",
    )


def test_the_same_node_is_fine_where_one_of_the_slots_is_left_out(node):
    same = node("scan")
    assert not readSlots(BRATS, {"t1": same, "t1ce": same}, leftOut=["t1"]).problems


def test_every_obstacle_is_named_at_once(scene, node, mrml):
    same, bent = node("same"), node("bent")
    bent.SetAndObserveTransformNodeID(mrml.warp().GetID())
    nothing = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    chosen = {"t1": same, "t1ce": same, "t2": bent, "flair": nothing}
    problems = readSlots(BRATS, chosen).problems
    assert len(problems) == 3
    for said in (
        "'same' is selected for T1 and T1ce",
        "'bent' is under the non-linear transform",
        "'nothing' has no voxels",
    ):
        assert any(said in problem for problem in problems), said


def test_a_slice_and_a_color_image_are_refused(scene, node):
    slice_ = node("slice", RAMP[:, :, :1])
    color = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "color")
    import slicer.util

    slicer.util.updateVolumeFromArray(color, np.arange(60 * 3, dtype=np.uint8).reshape(3, 4, 5, 3))
    problems = readSlots(BRATS, {"t1": slice_, "t2": color}).problems
    assert "'slice' is a single slice" in problems[0]
    assert "'color' has 3 values per voxel" in problems[1]


@pytest.mark.parametrize(("left", "state"), [([], "missing"), (["t2"], "excluded")])
def test_a_reference_that_is_not_used_is_refused(node, left, state):
    inputs = readSlots(BRATS, {"flair": node()}, leftOut=left, reference="t2")
    assert inputs.problems == (f"The output geometry is set to T2, which is {state}.",)
    assert not readSlots(BRATS, {"flair": node()}, reference="flair").problems


def test_nothing_in_the_scene_changes(node, contents):
    nodes = {"t1": node(), "t2": node("zero", np.zeros((3, 4, 5)))}
    before = contents()
    readSlots(BRATS, nodes)
    assert contents() == before
