"""prepare, compute, apply: what is refused and how, and that nothing short of success changes the
scene.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time

import numpy as np
import pytest

from medmap.checks import Finding
from medmap.errors import BundleError, Cancelled, InputDataError, UsageError
from medmap.task import BRATS
from medmap.volume import Volume

slicer = pytest.importorskip("slicer")

from MedMAPSegmentLib.logic import Request, SegmentationLogic, resultOf  # noqa: E402
from MedMAPSegmentLib.mrml import scene as module  # noqa: E402
from MedMAPSegmentLib.runner import JobState, ThreadRunner  # noqa: E402
from MedMAPSegmentLib.selftest import addSyntheticCase  # noqa: E402

SHAPE = (6, 5, 4)


@pytest.fixture
def scans(mrml):
    """Function that makes a volume node per modality, each with its own voxel values."""

    def make(*names, **constant):
        rng = np.random.default_rng(0)
        nodes = {
            name: mrml.volume(rng.normal(size=SHAPE).astype(np.float32), name=f"scan {name}")
            for name in names
        }
        nodes.update(
            {
                name: mrml.volume(np.full(SHAPE, value), name=f"flat {name}")
                for name, value in constant.items()
            }
        )
        return nodes

    return make


@pytest.fixture
def fake(make_result):
    """A stand-in for medmap.inference.segment that notes its calls; voxels above zero become label
    2.
    """
    calls = []

    def segment(volumes, bundle, *, reference, device, progress, cancel):
        calls.append(
            {"volumes": volumes, "bundle": bundle, "reference": reference, "device": device}
        )
        if progress is not None:
            progress(0.5, "half")
        if cancel is not None and cancel():
            raise Cancelled()
        name = reference or next(iter(volumes))
        return make_result((2 * (volumes[name].array > 0)).astype(np.uint8), name)

    segment.calls = calls
    return segment


@pytest.fixture
def logic(scene, fake):
    return SegmentationLogic(scene, fake, lambda: "bundle")


@pytest.mark.parametrize("subset", BRATS.subsets(), ids=BRATS.subset_key)
def test_all_fifteen_subsets_are_accepted_and_arrive_by_name(logic, fake, scans, subset):
    nodes = scans(*subset)
    node = logic.process({**dict.fromkeys(BRATS.modality_names), **nodes})
    call = fake.calls[0]
    assert tuple(call["volumes"]) == subset
    assert (call["bundle"], call["reference"], call["device"]) == ("bundle", None, "auto")
    for name in subset:
        assert call["volumes"][name].name == nodes[name].GetID()
        assert np.array_equal(call["volumes"][name].array, module.volumeFromNode(nodes[name]).array)
    expected = 2 * (call["volumes"][subset[0]].array > 0)
    assert np.array_equal(module.labelsOf(node, BRATS), expected)


def test_the_order_of_the_slots_does_not_matter(logic, fake, scans):
    nodes = scans("t1", "flair")
    logic.process(dict(reversed(nodes.items())))
    assert list(fake.calls[0]["volumes"]) == ["t1", "flair"]


def test_the_wanted_reference_carries_the_result(logic, scans):
    nodes = scans("t1", "flair")
    node = logic.process(nodes, reference="flair")
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is nodes["flair"]


def test_the_bundle_is_loaded_once(scene, fake, scans):
    loads = []
    logic = SegmentationLogic(scene, fake, lambda: loads.append(1) or "bundle")
    nodes = scans("t1")
    logic.process(nodes)
    logic.process(nodes)
    assert loads == [1]


def test_no_choice_is_refused(logic):
    with pytest.raises(InputDataError, match="Select at least one volume"):
        logic.process(dict.fromkeys(BRATS.modality_names))


def test_all_problems_are_named_at_once(logic, scans, scene):
    node = scans("t1")["t1"]
    output = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "by hand")
    output.GetSegmentation().AddEmptySegment("mine")
    inputs = {"t1": node, "t2": node}
    problems = logic.problems(inputs, "flair", output)
    assert len(problems) == 3
    assert "'scan t1' is selected for T1 and T2" in problems[0]
    assert "FLAIR" in problems[1]
    assert "'by hand'" in problems[2]
    with pytest.raises(InputDataError) as caught:
        logic.prepare(inputs, "flair", outputNode=output)
    assert all(problem in caught.value.cause for problem in problems)


def test_a_volume_in_three_slots_is_named_once(logic, scans):
    node = scans("t1")["t1"]
    assert len(logic.problems({"t1": node, "t1ce": node, "flair": node})) == 1


@pytest.mark.parametrize(
    ("options", "word"), [({"reference": "pd"}, "pd"), ({"device": "tpu"}, "tpu")]
)
def test_unknown_words_are_refused(logic, scans, options, word):
    with pytest.raises(UsageError, match=word):
        logic.prepare(scans("t1"), **options)


def test_an_unknown_slot_is_refused(logic, scans):
    with pytest.raises(UsageError, match="pd"):
        logic.prepare({"pd": scans("t1")["t1"]})


def test_a_constant_volume_counts_as_missing_and_is_reported(logic, fake, scans):
    nodes = scans("t1", flair=5.0)
    node = logic.process(nodes)
    assert list(fake.calls[0]["volumes"]) == ["t1"]
    findings = module.provenanceOf(node)["findings"]
    assert findings[0]["level"] == "warning"
    assert findings[0]["message"] == "FLAIR: 'flat flair' is 5 everywhere and counts as missing."


def test_remarks_come_before_the_findings_of_the_computation(logic, scans, make_result):
    request = logic.prepare(scans("t1", flair=0.0))
    later = Finding("info", "x", "later")
    logic._segment = lambda *args, **options: make_result(
        np.zeros(SHAPE, np.uint8), "t1", findings=(later,)
    )
    assert logic.compute(request).findings == (*request.remarks, later)


def test_only_constant_volumes_are_refused(logic, scans):
    with pytest.raises(InputDataError, match="None of the selected volumes has any contrast"):
        logic.prepare(scans(t1=0.0, t2=3.0))
    with pytest.raises(InputDataError, match="None of the selected volumes has any contrast"):
        logic.prepare(scans(t1=0.0))


def test_a_constant_reference_is_refused(logic, scans):
    with pytest.raises(InputDataError, match="FLAIR"):
        logic.prepare(scans("t1", flair=0.0), reference="flair")


def test_a_request_holds_copies_and_no_nodes(logic, scans):
    request = logic.prepare(scans("t1", "t2"), outputNode=None)

    def plain(value):
        if isinstance(value, dict):
            return all(plain(k) and plain(v) for k, v in value.items())
        if isinstance(value, tuple):
            return all(map(plain, value))
        return value is None or isinstance(value, (str, Volume, Finding))

    assert all(plain(getattr(request, f.name)) for f in dataclasses.fields(Request))


def test_preparing_changes_nothing(logic, scans, contents):
    nodes = scans("t1", "flair")
    before = contents()
    logic.prepare(nodes)
    assert contents() == before


@pytest.mark.parametrize("error", [BundleError("Damaged.", "Export again."), ValueError("bug")])
def test_a_failing_computation_leaves_the_scene_as_it_was(scene, scans, contents, error):
    def fail(*args, **options):
        raise error

    nodes = scans("t1")
    before = contents()
    with pytest.raises(Exception, match=r"Damaged|bug"):
        SegmentationLogic(scene, fail, lambda: None).process(nodes)
    assert contents() == before


def test_a_missing_bundle_leaves_the_scene_as_it_was(scene, fake, scans, contents):
    def fail():
        raise BundleError("No bundle.", "Install one.")

    nodes = scans("t1")
    before = contents()
    with pytest.raises(BundleError, match="No bundle"):
        SegmentationLogic(scene, fake, fail).process(nodes)
    assert contents() == before
    assert fake.calls == []


def test_cancelling_leaves_the_scene_as_it_was(scene, scans, contents, make_result):
    entered = threading.Event()

    def slow(volumes, bundle, *, cancel, progress, **options):
        for n in range(500):
            if cancel():
                raise Cancelled()
            progress(n / 500, f"window {n}")
            entered.set()
            time.sleep(0.01)

    nodes = scans("t1")
    logic = SegmentationLogic(scene, slow, lambda: None)
    before = contents()
    runner = ThreadRunner()
    job = logic.start(logic.prepare(nodes), runner)
    assert entered.wait(5)
    job.cancel()
    assert job.poll(5) is JobState.CANCELLED
    with pytest.raises(Cancelled):
        resultOf(job)
    assert runner.shutdown()
    assert contents() == before


def test_the_thread_gives_the_same_as_waiting(logic, scans):
    nodes = scans("t1ce", "flair")
    request = logic.prepare(nodes)
    runner = ThreadRunner()
    job = logic.start(request, runner)
    assert job.poll(10) is JobState.DONE
    threaded = logic.apply(request, resultOf(job))
    assert np.array_equal(
        module.labelsOf(threaded, BRATS), module.labelsOf(logic.process(nodes), BRATS)
    )
    assert [text for _, text in job.takeMessages()] == ["loading the model", "half"]
    assert runner.shutdown()


def calls_into_vtk(work):
    """Calls into vtk and MRML objects while the work runs on a worker thread."""
    seen = []

    def watch(frame, event, argument):
        owner = getattr(argument, "__self__", None)
        if event == "c_call" and (type(owner).__module__ or "").startswith(
            ("vtkmodules", "slicer_core")
        ):
            seen.append(argument.__name__)

    def watched(progress, cancelled):
        sys.setprofile(watch)
        try:
            return work(progress, cancelled)
        finally:
            sys.setprofile(None)

    runner = ThreadRunner()
    assert runner.start(watched).poll(10) is JobState.DONE
    assert runner.shutdown()
    return seen


def test_the_worker_thread_touches_no_vtk(logic, scans):
    node = scans("t1")["t1"]
    assert calls_into_vtk(logic.work(logic.prepare({"t1": node}))) == []
    assert calls_into_vtk(lambda progress, cancelled: node.GetName()) == [
        "GetName"
    ]  # the watch does see


def test_a_removed_reference_is_reported_and_nothing_added(scene, logic, scans, contents):
    nodes = scans("t1")
    request = logic.prepare(nodes)
    result = logic.compute(request)
    scene.RemoveNode(nodes["t1"])
    before = contents()
    with pytest.raises(InputDataError, match="'scan t1' was removed"):
        logic.apply(request, result)
    assert contents() == before


def test_a_removed_output_is_replaced_by_a_new_one(scene, logic, scans):
    nodes = scans("t1")
    output = logic.process(nodes)
    request = logic.prepare(nodes, outputNode=output)
    result = logic.compute(request)
    scene.RemoveNode(output)
    assert logic.apply(request, result).GetScene() is scene


def test_a_transform_that_changes_meanwhile_moves_the_result_with_the_volume(logic, scans, mrml):
    nodes = scans("t1")
    request = logic.prepare(nodes)
    result = logic.compute(request)
    moved = mrml.transform(np.array([[1, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    nodes["t1"].SetAndObserveTransformNodeID(moved.GetID())
    assert logic.apply(request, result).GetTransformNodeID() == moved.GetID()


def test_the_synthetic_case_is_four_different_scans_on_one_grid(scene):
    volumes = [module.volumeFromNode(node) for node in addSyntheticCase(scene).values()]
    assert len(volumes) == 4
    assert all(volume.grid.distance(volumes[0].grid) == 0 for volume in volumes)
    assert len({volume.array.tobytes() for volume in volumes}) == 4


def test_undo_removes_a_new_result_and_restores_a_filled_one(logic, scans, scene):
    first = logic.process(scans("t1"))
    again = logic.process(scans("t2"), outputNode=first)
    assert again is first
    assert logic.undo() is first
    assert module.provenanceOf(first) is not None
    assert logic.undo() is None
    assert not scene.IsNodePresent(first)
    assert not logic.canUndo
    assert logic.undo() is None


def test_another_model_brings_another_task_and_is_loaded_anew(logic):
    loaded = []
    task = dataclasses.replace(BRATS, name="other")
    logic.setModel(lambda: loaded.append("x") or "bundle", task)
    assert (logic.task.name, loaded) == ("other", [])
    assert [logic.bundle(), logic.bundle(), loaded] == ["bundle", "bundle", ["x"]]
