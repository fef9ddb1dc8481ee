"""MRML nodes become medmap volumes, and labels become segmentation nodes, at the same place in the
world.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from medmap.errors import InputDataError
from medmap.task import BRATS

slicer = pytest.importorskip("slicer")
vtk = pytest.importorskip("vtk")

from MedMAPSegmentLib.mrml import scene as module  # noqa: E402
from MedMAPSegmentLib.mrml.terminology import terminologyEntry  # noqa: E402


class Record(dict):
    """A provenance record with the one method that the module calls."""

    def to_dict(self):
        return dict(self)


def rotation(degrees, axis=2):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [n for n in range(3) if n != axis]
    result = np.eye(4)
    result[a, a], result[a, b], result[b, a], result[b, b] = c, -s, s, c
    return result


def placed(matrix, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)):
    result = np.array(matrix, float) @ np.diag([*spacing, 1.0])
    result[:3, 3] = origin
    return result


AFFINES = {
    "identity": np.eye(4),
    "BraTS": placed(np.diag([-1.0, -1.0, 1.0, 1.0]), origin=(120, 119, -8)),
    "oblique and anisotropic": placed(
        rotation(17) @ rotation(-9, 0), (0.9, 0.9, 3.0), (-80, 12.5, 40)
    ),
    "left-handed": placed(np.diag([-1.0, 1.0, 1.0, 1.0]), (1, 1, 2), (5, 6, 7)),
    "permuted axes": placed(np.eye(4)[:, [2, 0, 1, 3]], (1, 2, 3), (1, 2, 3)),
}


@pytest.fixture
def ramp():
    """Array [I, J, K] of which every voxel has its own value."""
    return np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)


@pytest.fixture
def labels():
    result = np.zeros((9, 8, 7), np.uint8)
    result[1:4, 1:4, 1:3] = 1
    result[4:7, 1:4, 1:3] = 2
    result[4:7, 4:7, 3:5] = 4
    return result


@pytest.fixture(params=AFFINES.values(), ids=AFFINES.keys())
def affine(request):
    return request.param


def world(node, ijk):
    """Where Slicer draws a voxel of a volume node, by Slicer's own transform code. Works with bent
    transforms, too.
    """
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    ras, result = matrix.MultiplyPoint([*map(float, ijk), 1.0])[:3], [0.0] * 3
    node.TransformPointToWorld(ras, result)
    return np.array(result)


class TestVolumeFromNode:
    def test_voxels_and_places_agree_with_slicer(self, mrml, ramp, affine):
        volume = module.volumeFromNode(mrml.volume(ramp, affine))
        assert np.array_equal(volume.array, ramp)
        np.testing.assert_allclose(volume.affine, affine, atol=1e-9)

    @pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.uint16, np.float64, np.int32])
    def test_every_scalar_type_becomes_float32(self, mrml, ramp, dtype):
        volume = module.volumeFromNode(mrml.volume(ramp.astype(dtype)))
        assert volume.array.dtype == np.float32
        assert volume.array.flags.c_contiguous
        assert np.array_equal(volume.array, ramp)

    def test_a_chain_of_parent_transforms_is_honored(self, mrml, ramp, affine):
        outer = mrml.transform(placed(rotation(30), origin=(10, -20, 5)))
        inner = mrml.transform(placed(rotation(-70, 1), (1.1, 1, 1), (3, 0, 8)), parent=outer)
        node = mrml.volume(ramp, affine)
        node.SetAndObserveTransformNodeID(inner.GetID())
        volume = module.volumeFromNode(node)
        for ijk in ((0, 0, 0), (4, 5, 6), (4, 0, 3)):
            np.testing.assert_allclose((volume.affine @ [*ijk, 1])[:3], world(node, ijk), atol=1e-6)

    def test_the_same_as_after_hardening_the_transform(self, mrml, ramp, affine):
        node = mrml.volume(ramp, affine)
        node.SetAndObserveTransformNodeID(
            mrml.transform(placed(rotation(30), origin=(10, -20, 5))).GetID()
        )
        before = module.volumeFromNode(node)
        node.HardenTransform()
        after = module.volumeFromNode(node)
        np.testing.assert_allclose(before.affine, after.affine, atol=1e-6)
        assert np.array_equal(before.array, after.array)

    def test_a_non_linear_transform_is_refused_in_words(self, mrml, ramp):
        node = mrml.volume(ramp, name="T1")
        node.SetAndObserveTransformNodeID(mrml.warp().GetID())
        with pytest.raises(
            InputDataError, match="'T1' is under the non-linear transform 'bent'"
        ) as caught:
            module.volumeFromNode(node)
        assert "Harden" in caught.value.remedy

    def test_a_linear_transform_below_a_non_linear_one_is_refused(self, mrml, ramp):
        node = mrml.volume(ramp)
        node.SetAndObserveTransformNodeID(mrml.transform(np.eye(4), parent=mrml.warp()).GetID())
        with pytest.raises(InputDataError, match="non-linear"):
            module.volumeFromNode(node)

    def test_a_volume_without_voxels_is_refused(self, scene):
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
        with pytest.raises(InputDataError, match="'nothing' has no voxels"):
            module.volumeFromNode(node)

    def test_a_color_image_is_refused(self, scene):
        image = vtk.vtkImageData()
        image.SetDimensions(4, 4, 4)
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
        node = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
        node.SetAndObserveImageData(image)
        with pytest.raises(InputDataError, match="'photo' has 3 values per voxel"):
            module.volumeFromNode(node)

    def test_few_nan_are_replaced_with_a_note_and_many_refused(self, mrml):
        array = np.zeros((20, 20, 20), np.float32)
        array[5:15, 5:15, 5:15] = 7
        array[8, 8, 8] = np.nan
        volume = module.volumeFromNode(mrml.volume(array, name="T2"))
        assert np.isfinite(volume.array).all()
        assert "T2" in volume.notes[0].message
        array[10] = np.nan
        with pytest.raises(InputDataError, match="NaN"):
            module.volumeFromNode(mrml.volume(array))

    def test_changing_the_copy_leaves_the_scene_alone(self, mrml, ramp):
        node = mrml.volume(ramp)
        module.volumeFromNode(node).array[:] = -1
        assert np.array_equal(module.volumeFromNode(node).array, ramp)

    def test_an_image_that_does_not_begin_at_voxel_zero_is_placed_right(self, mrml, ramp, affine):
        node = mrml.volume(ramp, affine)
        image = vtk.vtkImageData()
        image.DeepCopy(node.GetImageData())
        image.SetExtent(2, 6, 1, 6, 3, 9)
        node.SetAndObserveImageData(image)
        volume = module.volumeFromNode(node)
        np.testing.assert_allclose(
            (volume.affine @ [0, 0, 0, 1])[:3], world(node, (2, 1, 3)), atol=1e-9
        )


class TestSegmentationFromResult:
    @pytest.fixture
    def reference(self, mrml, labels, affine):
        return mrml.volume(np.ones(labels.shape, np.float32), affine, name="FLAIR")

    def test_one_named_colored_coded_segment_per_label(self, scene, reference, make_result, labels):
        node = module.segmentationFromResult(scene, reference, make_result(labels, "flair"), BRATS)
        segmentation = node.GetSegmentation()
        assert list(segmentation.GetSegmentIDs()) == ["NCR", "ED", "ET"]
        for label in BRATS.labels:
            segment = segmentation.GetSegment(label.name)
            assert segment.GetName() == label.title
            np.testing.assert_allclose(segment.GetColor(), np.array(label.color) / 255, atol=1e-6)
            assert segment.GetLabelValue() == label.value
            entry = slicer.vtkSlicerTerminologyEntry()
            assert slicer.vtkSlicerTerminologiesModuleLogic.DeserializeTerminologyEntry(
                tag(segment, "TerminologyEntry"), entry
            )
            kind = entry.GetTypeObject()
            code = (kind.GetCodingSchemeDesignator(), kind.GetCodeValue(), kind.GetCodeMeaning())
            assert code == (label.code.scheme, label.code.value, label.code.meaning)
            assert entry.GetRegionObject().GetCodeMeaning() == "Brain"
        assert segmentation.GetNumberOfLayers() == 1

    def test_segments_lie_on_the_reference_voxel_for_voxel(
        self, scene, mrml, reference, make_result, labels
    ):
        outer = mrml.transform(placed(rotation(25), origin=(7, 8, 9)))
        reference.SetAndObserveTransformNodeID(outer.GetID())
        node = module.segmentationFromResult(scene, reference, make_result(labels, "flair"), BRATS)
        assert node.GetTransformNodeID() == outer.GetID()
        for label in BRATS.labels:
            image = slicer.vtkOrientedImageData()
            node.GetBinaryLabelmapRepresentation(label.name, image)
            matrix = vtk.vtkMatrix4x4()
            image.GetImageToWorldMatrix(matrix)
            values = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
            found = np.argwhere(values.reshape(image.GetDimensions()[::-1]).transpose(2, 1, 0) > 0)
            found = found + image.GetExtent()[::2]
            expected = np.argwhere(labels == label.value)
            assert len(found) == len(expected) > 0
            for a, b in zip(found, expected, strict=True):
                local, drawn = matrix.MultiplyPoint([*map(float, a), 1.0])[:3], [0.0] * 3
                node.TransformPointToWorld(local, drawn)
                np.testing.assert_allclose(drawn, world(reference, b), atol=1e-4)

    def test_the_reference_geometry_is_set(self, scene, reference, make_result, labels):
        node = module.segmentationFromResult(scene, reference, make_result(labels, "flair"), BRATS)
        assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is reference
        assert np.array_equal(module.labelsOf(node, BRATS), labels)

    def test_a_label_that_was_not_found_still_gets_its_empty_segment(
        self, scene, reference, make_result, labels
    ):
        labels[labels == 4] = 0
        node = module.segmentationFromResult(scene, reference, make_result(labels, "flair"), BRATS)
        assert node.GetSegmentation().GetNumberOfSegments() == 3
        assert np.array_equal(module.labelsOf(node, BRATS), labels)

    def test_an_empty_result_gives_three_empty_segments(
        self, scene, reference, make_result, labels
    ):
        node = module.segmentationFromResult(
            scene, reference, make_result(labels * 0, "flair"), BRATS
        )
        assert node.GetSegmentation().GetNumberOfSegments() == 3
        assert not module.labelsOf(node, BRATS).any()


def tag(segment, name):
    text = vtk.reference("")
    assert segment.GetTag(name, text)
    return str(text)


@pytest.fixture
def reference(mrml, labels):
    return mrml.volume(
        np.ones(labels.shape, np.float32), AFFINES["oblique and anisotropic"], name="FLAIR"
    )


PROVENANCE = {"bundle": "a|b", "path": "C:\\x\n", "note": 'é ~^:;&<>"', "run": {"device": "cpu"}}


def test_provenance_is_on_the_node_and_on_every_segment(scene, reference, make_result, labels):
    node = module.segmentationFromResult(
        scene, reference, make_result(labels, "flair", provenance=Record(PROVENANCE)), BRATS
    )
    assert module.provenanceOf(node) == PROVENANCE
    for label in BRATS.labels:
        text = tag(node.GetSegmentation().GetSegment(label.name), module.PROVENANCE)
        assert json.loads(text) == PROVENANCE
        assert "|" not in text


def test_everything_survives_a_seg_nrrd_file(scene, reference, make_result, labels, tmp_path):
    node = module.segmentationFromResult(
        scene, reference, make_result(labels, "flair", provenance=Record(PROVENANCE)), BRATS
    )
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(tmp_path / "result.seg.nrrd"))
    assert storage.WriteData(node)
    other = slicer.vtkMRMLScene()
    loaded = other.AddNewNodeByClass("vtkMRMLSegmentationNode")
    assert storage.ReadData(loaded)
    assert module.provenanceOf(loaded) == PROVENANCE
    assert np.array_equal(module.labelsOf(loaded, BRATS), labels)
    for label in BRATS.labels:
        segment = loaded.GetSegmentation().GetSegment(label.name)
        assert segment.GetName() == label.title
        assert tag(segment, "TerminologyEntry") == terminologyEntry(label)
    assert module.foreignSegments(loaded) == []


def test_everything_survives_saving_the_scene(scene, reference, make_result, labels, tmp_path):
    node = module.segmentationFromResult(
        scene, reference, make_result(labels, "flair", provenance=Record(PROVENANCE)), BRATS
    )
    path = str(tmp_path / "scene.mrml")
    scene.SetURL(path)
    assert scene.Commit(path)
    other = slicer.vtkMRMLScene()
    other.SetURL(path)
    assert other.Import()
    loaded = other.GetNodeByID(node.GetID())
    assert json.loads(loaded.GetAttribute(module.PROVENANCE)) == PROVENANCE


def test_the_result_lies_beside_the_reference_in_the_subject_hierarchy(
    scene, reference, make_result, labels
):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.CreateItem(study, reference)
    node = module.segmentationFromResult(scene, reference, make_result(labels, "flair"), BRATS)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study


def test_without_a_subject_hierarchy_none_is_made(scene, reference, make_result, labels):
    scene.RemoveNode(scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode"))
    module.segmentationFromResult(scene, reference, make_result(labels, "flair"), BRATS)
    assert scene.GetNumberOfNodesByClass("vtkMRMLSubjectHierarchyNode") == 0


def test_a_second_result_does_not_touch_the_first(scene, reference, make_result, labels):
    first = module.segmentationFromResult(scene, reference, make_result(labels, "flair"), BRATS)
    second = module.segmentationFromResult(
        scene, reference, make_result(labels * 0, "flair"), BRATS
    )
    assert first.GetName() != second.GetName()
    assert np.array_equal(module.labelsOf(first, BRATS), labels)


def test_a_chosen_node_is_refilled(scene, reference, mrml, make_result, labels):
    node = module.segmentationFromResult(scene, reference, make_result(labels, "flair"), BRATS)
    other = mrml.volume(np.ones((4, 5, 6), np.float32), AFFINES["BraTS"], name="T1")
    smaller = np.zeros((4, 5, 6), np.uint8)
    smaller[1:3, 1:3, 1:3] = 2
    old = slicer.vtkSegment()
    old.SetTag(module.MADE_BY, "of another task")
    node.GetSegmentation().AddSegment(old, "OLD")
    count = scene.GetNumberOfNodes()
    assert (
        module.segmentationFromResult(scene, other, make_result(smaller, "t1"), BRATS, node) is node
    )
    assert scene.GetNumberOfNodes() == count
    assert list(node.GetSegmentation().GetSegmentIDs()) == ["NCR", "ED", "ET"]
    assert np.array_equal(module.labelsOf(node, BRATS), smaller)
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is other


def test_segments_that_a_person_made_are_not_overwritten(scene, reference, make_result, labels):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "manual")
    node.GetSegmentation().AddEmptySegment("mine", "My tumor")
    with pytest.raises(InputDataError, match="My tumor"):
        module.segmentationFromResult(scene, reference, make_result(labels, "flair"), BRATS, node)
    assert module.foreignSegments(node) == ["My tumor"]


def test_labels_of_another_shape_are_refused(scene, reference, make_result, labels, contents):
    before = contents()
    with pytest.raises(InputDataError, match="Press Apply again"):
        module.segmentationFromResult(scene, reference, make_result(labels[:-1], "flair"), BRATS)
    assert contents() == before


@pytest.mark.parametrize("step", ["placeBeside", "_provenanceText", "_labelImage"])
def test_a_failure_leaves_the_scene_as_it_was(
    scene, reference, make_result, labels, monkeypatch, contents, step
):
    def fail(*args):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(module, step, fail)
    before = contents()
    with pytest.raises(RuntimeError, match="out of luck"):
        module.segmentationFromResult(scene, reference, make_result(labels, "flair"), BRATS)
    assert contents() == before


def test_a_failure_leaves_a_chosen_node_as_it_was(
    scene, reference, mrml, make_result, labels, monkeypatch
):
    node = module.segmentationFromResult(
        scene, reference, make_result(labels, "flair", provenance=Record({"n": 1})), BRATS
    )
    other = mrml.volume(np.ones(labels.shape, np.float32))

    def fail(*args):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(module, "placeBeside", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        module.segmentationFromResult(scene, other, make_result(labels * 0, "t1"), BRATS, node)
    assert np.array_equal(module.labelsOf(node, BRATS), labels)
    assert module.provenanceOf(node) == {"n": 1}
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is reference


def test_the_codes_of_all_segments_are_in_the_terminology_that_ships(repository, scene):
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    name = logic.LoadTerminologyFromFile(
        str(repository / "MedMAPSegment/Resources/MedMAP.term.json")
    )
    category = slicer.vtkSlicerTerminologyCategory()
    assert logic.GetNumberOfCategoriesInTerminology(name) == 1
    assert logic.GetNthCategoryInTerminology(name, 0, category)
    listed = {}
    for n in range(logic.GetNumberOfTypesInTerminologyCategory(name, category)):
        kind = slicer.vtkSlicerTerminologyType()
        assert logic.GetNthTypeInTerminologyCategory(name, category, n, kind)
        key = (kind.GetCodingSchemeDesignator(), kind.GetCodeValue(), kind.GetCodeMeaning())
        listed[key] = tuple(kind.GetRecommendedDisplayRGBValue())
    for label in BRATS.labels:
        entry = slicer.vtkSlicerTerminologyEntry()
        assert logic.DeserializeTerminologyEntry(terminologyEntry(label), entry)
        assert entry.GetTerminologyContextName() == name
        assert entry.GetCategoryObject().GetCodeValue() == category.GetCodeValue()
        assert listed[(label.code.scheme, label.code.value, label.code.meaning)] == label.color
