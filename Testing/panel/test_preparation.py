"""Raw scans in the panel: what Apply will do first, what it did, and how to have it otherwise."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from Testing.panel import heads

from medmap.volume import Volume

pytest.importorskip("torch")

SHIFT_MM = np.array([4.0, -6.0, 5.0])


@pytest.fixture
def raw(panel, application):
    """Heads with their skulls in the scene, FLAIR displaced, and the brain as a label volume."""
    pytest.importorskip("SimpleITK")
    shift = np.eye(4)
    shift[:3, 3] = SHIFT_MM
    scene = application.scene
    flair = heads.head("flair")
    volumes = {
        "t1ce": heads.add_volume(scene, "Ax T1 post", heads.head("t1ce")),
        "flair": heads.add_volume(scene, "Ax FLAIR", replace(flair, affine=shift @ flair.affine)),
    }
    brain = Volume(heads.brain().astype(np.uint8), heads.affine())
    mask = heads.add_volume(scene, "brain", brain, "vtkMRMLLabelMapVolumeNode")
    return SimpleNamespace(**volumes, volumes=volumes, mask=mask)


@pytest.fixture
def chosen(panel, raw, choose):
    """The panel with the raw scans in their slots and the mask chosen."""
    choose(**raw.volumes)
    panel.ui.brainMaskSelector.setCurrentNode(raw.mask)
    return raw


def box(panel, kind, modality):
    """The check box of a step."""
    from MedMAPSegmentLib.preparation import Step

    return panel.preparation.checkBoxes[Step(kind, modality)]


def offered(panel) -> set[tuple[str, str]]:
    """The steps whose check boxes are seen."""
    steps = panel.preparation.checkBoxes.items()
    return {(step.kind, step.modality) for step, widget in steps if not widget.isHidden()}


class TestBeforeApply:
    def test_the_line_above_apply_says_which_steps_it_will_take(self, panel, raw, choose):
        choose(**raw.volumes)
        text = panel.ui.preparationLabel.text
        assert text == "Before segmenting: brain extraction of 2 scans, alignment of FLAIR."
        assert offered(panel) == {("extract", "t1ce"), ("extract", "flair"), ("align", "flair")}
        assert not panel.ui.brainMaskSelector.isHidden()

    def test_prepared_scans_need_no_line(self, panel, patient, choose):
        choose(**patient)
        assert panel.ui.preparationLabel.text == ""
        assert panel.ui.preparationFrame.isHidden()
        assert panel.ui.brainMaskSelector.isHidden()

    def test_a_cleared_box_skips_its_step(self, panel, raw, choose):
        choose(**raw.volumes)
        box(panel, "align", "flair").click()
        text = panel.ui.preparationLabel.text
        assert text == "Before segmenting: brain extraction of 2 scans."
        box(panel, "extract", "t1ce").click()
        box(panel, "extract", "flair").click()
        assert "used as they are" in panel.ui.preparationLabel.text
        assert panel.state.plan.is_empty
        box(panel, "align", "flair").click()
        assert panel.ui.preparationLabel.text == "Before segmenting: alignment of FLAIR."

    def test_a_raw_head_is_no_warning_where_its_skull_will_be_removed(self, panel, raw, choose):
        choose(**raw.volumes)
        panel.ui.checkButton.click()
        assert "skull" not in panel.ui.checksLabel.text
        box(panel, "extract", "t1ce").click()
        panel.ui.checkButton.click()
        assert "skull-stripped" in panel.ui.checksLabel.text

    def test_without_a_method_of_extraction_it_says_what_to_do(
        self, panel, raw, choose, monkeypatch
    ):
        from MedMAPSegmentLib import preparation

        monkeypatch.setattr(preparation, "can_extract_brains", lambda: False)
        choose(**raw.volumes)
        for text in (panel.ui.preparationLabel.text, panel.ui.applyButton.toolTip):
            assert "Nothing that extracts the brain from T1ce, FLAIR is installed" in text
            assert "choose a brain mask" in text
        assert not panel.ui.applyButton.enabled
        panel.ui.brainMaskSelector.setCurrentNode(raw.mask)
        assert panel.ui.applyButton.enabled
        panel.ui.brainMaskSelector.setCurrentNode(None)
        box(panel, "extract", "t1ce").click()
        box(panel, "extract", "flair").click()
        assert panel.ui.applyButton.enabled


@pytest.fixture
def prepared(panel, chosen, finish, application):
    """The raw scans after Apply, and what they were before."""
    import slicer.util

    before = {}
    for name, node in chosen.volumes.items():
        before[name] = (slicer.util.arrayFromVolume(node).copy(), node.GetMTime())
    panel.ui.applyButton.click()
    finish(120)
    assert not application.desk.texts()
    chosen.before = before
    return chosen


def folders(scene) -> list[str]:
    """Names of the items of the subject hierarchy that hold prepared scans."""
    import slicer
    import vtk

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    names = []
    for number in range(items.GetNumberOfIds()):
        names.append(hierarchy.GetItemName(items.GetId(number)))
    return [name for name in names if name.endswith("prepared scans")]


def test_apply_prepares_copies_and_leaves_the_scans_alone(
    prepared, panel, application, computation
):
    import slicer.util

    from MedMAPSegmentLib.mrml.modality_detection import volumesOf
    from MedMAPSegmentLib.mrml.prepared_scans import preparedScans
    from MedMAPSegmentLib.mrml.reference import referenceCandidates

    scene = application.scene
    for name, node in prepared.volumes.items():
        array, modified = prepared.before[name]
        assert np.array_equal(slicer.util.arrayFromVolume(node), array)
        assert node.GetMTime() == modified
        assert node.GetTransformNodeID() is None
    ((names, options),) = computation.calls
    assert names == ("t1ce", "flair")
    assert options["reference"] == "t1ce"
    nodes = preparedScans(scene, panel.state.result, prepared.volumes, panel.state.task)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parents = set()
    for name, node in nodes.items():
        assert node.GetName() == f"{prepared.volumes[name].GetName()} - prepared"
        parents.add(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)))
    (folder,) = parents
    assert folders(scene) == [hierarchy.GetItemName(folder)]
    t1ce = slicer.util.arrayFromVolume(nodes["t1ce"]).transpose(2, 1, 0)
    assert np.array_equal(t1ce != 0, heads.brain())
    assert nodes["t1ce"].GetTransformNodeID() is None
    toWorld = slicer.util.arrayFromTransformMatrix(nodes["flair"].GetParentTransformNode())
    assert np.abs(toWorld[:3, 3] + SHIFT_MM).max() < 1.5
    # A prepared T1 would compete with the T1 that it was made from.
    assert not {*volumesOf(scene)} & {*nodes.values()}
    assert referenceCandidates(scene) == [prepared.mask]


def test_the_result_says_what_was_done_and_undo_takes_it_back(prepared, panel, application, finish):
    import slicer.util

    text = panel.ui.resultsLabel.text
    assert "The brain in T1ce has" in text
    assert "FLAIR was moved by" in text
    steps = panel.state.provenance["preparation"]["steps"]
    kinds = [step["step"] for step in steps]
    assert kinds == ["brain extraction", "brain extraction", "alignment"]
    mask = slicer.util.getNode("Ax T1 post - brain")
    assert not mask.GetDisplayNode().GetVisibility()
    # An extracted mask can be edited and chosen for the next run.
    panel.ui.brainMaskSelector.setCurrentNode(mask)
    panel.ui.applyButton.click()
    finish(120)
    again = panel.state.provenance["preparation"]["steps"]
    assert again[0]["figures"] == steps[0]["figures"]
    assert again[0]["method"] == "given mask"
    panel.ui.undoButton.click()
    panel.ui.undoButton.click()
    names = list(slicer.util.getNodes("*", useLists=True))
    assert not [name for name in names if "prepared" in name or "alignment" in name]
    assert not [name for name in names if name.endswith("- brain")]
    assert folders(application.scene) == []


class TestASecondApply:
    """Aligning scans takes longer than segmenting them: once is enough."""

    @pytest.fixture
    def preparations(self, prepared, monkeypatch):
        """The plans that are carried out after the first Apply."""
        from medmap.preparation import workflow

        really = workflow.prepare_scans
        plans = []

        def counted(volumes, task, plan, **options):
            plans.append(plan)
            return really(volumes, task, plan, **options)

        monkeypatch.setattr(workflow, "prepare_scans", counted)
        return plans

    @staticmethod
    def preparedNodes(panel, prepared) -> dict:
        from MedMAPSegmentLib.mrml.prepared_scans import preparedScans

        state = panel.state
        return preparedScans(state.scene, state.result, prepared.volumes, state.task)

    def test_uses_the_prepared_scans_again_and_says_so(
        self, preparations, prepared, panel, finish, computation, application
    ):
        text = "Prepared by the last run: brain extraction of 2 scans, alignment of FLAIR. "
        assert panel.ui.preparationLabel.text == text + "The prepared scans are used again."
        first = self.preparedNodes(panel, prepared)
        steps = panel.state.provenance["preparation"]["steps"]
        assert "used again" not in panel.ui.resultsLabel.text
        panel.ui.applyButton.click()
        finish(120)
        assert preparations == []
        assert len(computation.calls) == 2
        assert "had prepared were used again" in panel.ui.resultsLabel.text
        assert panel.state.provenance["preparation"]["reused"]
        assert panel.state.provenance["preparation"]["steps"] == steps
        assert self.preparedNodes(panel, prepared) == first
        assert len(folders(application.scene)) == 1

    def test_undo_leaves_them_to_the_result_before(self, preparations, prepared, panel, finish):
        first = self.preparedNodes(panel, prepared)
        panel.ui.applyButton.click()
        finish(120)
        panel.ui.undoButton.click()
        assert self.preparedNodes(panel, prepared) == first
        assert first["flair"].GetParentTransformNode() is not None
        panel.ui.undoButton.click()
        assert not panel.state.scene.IsNodePresent(first["flair"])
        # What was taken back is added again, without being computed again.
        panel.ui.applyButton.click()
        finish(120)
        assert preparations == []
        assert self.preparedNodes(panel, prepared)["flair"] is not prepared.volumes["flair"]

    @pytest.mark.parametrize("change", ["voxels", "place", "step", "mask"])
    def test_prepares_anew_after_a_change(
        self, change, preparations, prepared, panel, finish, application
    ):
        import slicer.util

        flair = prepared.volumes["flair"]
        if change == "voxels":
            # Unannounced, as scripts do it.
            slicer.util.arrayFromVolume(flair)[20:24] += 1
        elif change == "place":
            flair.SetOrigin(*(np.array(flair.GetOrigin()) + 1.0))
        elif change == "step":
            box(panel, "align", "flair").click()
        else:
            slicer.util.arrayFromVolume(prepared.mask)[:20] = 0
        panel.ui.applyButton.click()
        finish(120)
        assert len(preparations) == 1
        assert not panel.state.provenance["preparation"]["reused"]

    def test_a_prepared_scan_that_somebody_changed_is_replaced(
        self, preparations, prepared, panel, finish
    ):
        import slicer.util

        first = self.preparedNodes(panel, prepared)
        slicer.util.arrayFromVolume(first["flair"])[:] = 0
        panel.ui.applyButton.click()
        finish(120)
        second = self.preparedNodes(panel, prepared)
        assert second["flair"] is not first["flair"]
        assert slicer.util.arrayFromVolume(second["flair"]).any()
        assert second["t1ce"] is first["t1ce"]

    def test_starts_afresh_in_another_scene(self, preparations, prepared, panel, application):
        assert panel.logic.preparations._preparation is not None
        application.scene.Clear()
        assert panel.logic.preparations._preparation is None
        assert panel.ui.preparationLabel.text == ""


def test_a_canceled_preparation_changes_nothing(panel, chosen, finish, application):
    count = application.scene.GetNumberOfNodes()
    panel.ui.applyButton.click()
    panel.ui.applyButton.click()
    finish(120)
    assert panel.state.result is None
    assert application.scene.GetNumberOfNodes() == count


def test_apply_does_what_medmap_segment_does_and_subsets_are_compared_on_its_scans(
    panel, chosen, finish, application, small_bundle
):
    import medmap
    from medmap.bundle.loading import load_bundle
    from MedMAPSegmentLib.logic import _segment
    from MedMAPSegmentLib.mrml import uncertainty
    from MedMAPSegmentLib.mrml.nodes import columnOf
    from MedMAPSegmentLib.mrml.scene import labelsOf, volumeFromNode

    bundle = load_bundle(small_bundle())
    panel.logic._segment, panel.logic._loadBundle = _segment, lambda: bundle
    panel.ui.applyButton.click()
    finish(120)
    scans = {name: volumeFromNode(node) for name, node in chosen.volumes.items()}
    masks = {"t1ce": volumeFromNode(chosen.mask)}
    ours = labelsOf(panel.state.result, panel.state.task)
    theirs = medmap.segment(scans, bundle, prepare="auto", brain_masks=masks, device="cpu")
    assert (ours == theirs.labels).mean() > 0.999
    assert panel.state.provenance["preparation"]["reference"] == theirs.reference
    panel.ui.subsetsButton.click()
    finish(120)
    assert not application.desk.texts()
    nodes = uncertainty.nodesOf(application.scene, panel.state.result)
    kinds = columnOf(nodes.table, "Kind")
    volumes = columnOf(nodes.table, "WT volume")
    shown = columnOf(panel.results._table(), "Volume")[0]
    assert volumes[kinds.index("Current")] == pytest.approx(shown)
