"""The table of a result: numbers of the metrics, refreshed in place, and back after saving the
scene.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from medmap.diameters import region_diameters
from medmap.errors import InputDataError
from medmap.metrics import region_volumes_ml
from medmap.task import BRATS
from medmap.volume import Grid

slicer = pytest.importorskip("slicer")

from MedMAPSegmentLib.mrml import nodes, results  # noqa: E402
from MedMAPSegmentLib.mrml import scene as mrmlScene  # noqa: E402

REGIONS = ["WT", "TC", "ET"]
AFFINE = np.array([[0.9, -0.3, 0, 10], [0.3, 0.9, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])


@pytest.fixture
def labels():
    result = np.zeros((14, 13, 12), np.uint8)
    result[2:11, 3:10, 2:9] = 2
    result[4:8, 4:8, 3:7] = 4
    result[5:7, 5:7, 4:6] = 1
    return result


@pytest.fixture
def segmentation(scene, mrml, make_result, labels):
    volume = mrml.volume(np.ones(labels.shape, np.float32), AFFINE, name="FLAIR")
    return mrmlScene.segmentationFromResult(scene, volume, make_result(labels, "flair"), BRATS)


def test_volumes_and_diameters_are_those_of_medmap(scene, segmentation, labels):
    table = results.resultsTable(scene, segmentation, BRATS)
    grid = Grid(labels.shape, AFFINE)
    volumes, diameters = (
        region_volumes_ml(labels, BRATS, grid.voxel_ml),
        region_diameters(labels, BRATS, grid),
    )
    assert nodes.columnOf(table, "Region") == REGIONS
    np.testing.assert_allclose(
        nodes.columnOf(table, "Volume"), [volumes[r] for r in REGIONS], rtol=1e-6
    )
    np.testing.assert_allclose(
        nodes.columnOf(table, "Axial diameter"), [diameters[r].axial_mm for r in REGIONS]
    )
    np.testing.assert_allclose(
        nodes.columnOf(table, "Diameter"), [diameters[r].longest_mm for r in REGIONS]
    )
    assert table.GetColumnUnitLabel("Volume") == "ml"
    assert table.GetColumnUnitLabel("Diameter") == "mm"


def test_volumes_equal_slicers_own_count_of_voxels(scene, segmentation):
    table = results.resultsTable(scene, segmentation, BRATS)
    voxels = 0
    for name in ("NCR", "ED", "ET"):
        image = slicer.vtkOrientedImageData()
        segmentation.GetBinaryLabelmapRepresentation(name, image)
        voxels += np.count_nonzero(nodes.vtk_to_numpy(image.GetPointData().GetScalars()))
    spacing = np.prod(image.GetSpacing())
    assert nodes.columnOf(table, "Volume")[0] == pytest.approx(voxels * spacing / 1000)


def test_a_scaling_parent_transform_scales_the_volume(scene, mrml, segmentation):
    before = nodes.columnOf(results.resultsTable(scene, segmentation, BRATS), "Volume")
    segmentation.SetAndObserveTransformNodeID(mrml.transform(np.diag([2.0, 1, 1, 1])).GetID())
    after = nodes.columnOf(results.resultsTable(scene, segmentation, BRATS), "Volume")
    np.testing.assert_allclose(after, 2 * np.array(before))


def test_the_table_of_a_segmentation_is_refreshed_not_added(scene, segmentation, contents):
    table = results.resultsTable(scene, segmentation, BRATS)
    before = contents()
    segmentation.GetSegmentation().RemoveSegment("ED")
    assert results.resultsTable(scene, segmentation, BRATS) is table
    assert contents().keys() == before.keys()
    volumes = nodes.columnOf(table, "Volume")
    assert volumes[0] == pytest.approx(volumes[1])


def test_two_segmentations_have_two_tables(scene, mrml, make_result, labels, segmentation):
    volume = mrml.volume(np.ones(labels.shape, np.float32))
    other = mrmlScene.segmentationFromResult(scene, volume, make_result(labels * 0, "t1"), BRATS)
    tables = [results.resultsTable(scene, s, BRATS) for s in (segmentation, other)]
    assert tables[0] is not tables[1]
    assert nodes.columnOf(tables[1], "Volume") == nodes.columnOf(tables[1], "Diameter") == [0, 0, 0]


def test_the_table_lies_beside_the_segmentation_and_repeats_its_provenance(
    scene, mrml, make_result, labels
):
    volume = mrml.volume(np.ones(labels.shape, np.float32))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.CreateItem(study, volume)
    node = mrmlScene.segmentationFromResult(scene, volume, make_result(labels, "t1"), BRATS)
    table = results.resultsTable(scene, node, BRATS)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(table)) == study
    assert mrmlScene.provenanceOf(node) == json.loads(table.GetAttribute(mrmlScene.PROVENANCE))


def test_a_segmentation_without_a_grid_is_refused_and_adds_nothing(scene, contents):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    before = contents()
    with pytest.raises(InputDataError, match="'drawn' has no reference geometry"):
        results.resultsTable(scene, node, BRATS)
    assert contents() == before


def test_a_failure_half_way_adds_nothing(scene, segmentation, contents, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(results, "fillTable", fail)
    before = contents()
    with pytest.raises(RuntimeError):
        results.resultsTable(scene, segmentation, BRATS)
    assert contents().keys() == before.keys()


def test_a_bent_segmentation_is_refused_in_words(scene, mrml, segmentation):
    segmentation.SetAndObserveTransformNodeID(mrml.warp().GetID())
    with pytest.raises(InputDataError, match="non-linear transform 'bent'"):
        results.resultsTable(scene, segmentation, BRATS)


def test_saving_and_loading_the_scene_brings_back_numbers_codes_and_provenance(
    scene, segmentation, labels, tmp_path
):
    table = results.resultsTable(scene, segmentation, BRATS)
    expected = {
        name: nodes.columnOf(table, name) for name in ("Region", "Name", "Volume", "Axial diameter")
    }
    provenance = mrmlScene.provenanceOf(segmentation)
    loaded = reloaded(scene, tmp_path, {segmentation: "s.seg.nrrd", table: "t.tsv"})
    node = loaded.GetNodeByID(segmentation.GetID())
    again = nodes.derivedNode(loaded, "vtkMRMLTableNode", results.ROLE_RESULTS, node)
    for name, values in expected.items():
        assert nodes.columnOf(again, name) == (
            values if isinstance(values[0], str) else pytest.approx(values, rel=1e-5)
        )
    assert again.GetColumnUnitLabel("Volume") == "ml"
    assert (
        mrmlScene.provenanceOf(node)
        == json.loads(again.GetAttribute(mrmlScene.PROVENANCE))
        == provenance
    )
    assert np.array_equal(mrmlScene.labelsOf(node, BRATS), labels)
    for name in ("NCR", "ED", "ET"):
        assert node.GetSegmentation().GetSegment(name).HasTag("TerminologyEntry")
    assert results.resultsTable(loaded, node, BRATS) is again


def reloaded(scene, folder, files):
    """The scene written to a folder and read into a new one; ``files``: node -> file name."""
    for node, name in files.items():
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(folder / name))
        assert node.GetStorageNode().WriteData(node)
    path = str(folder / "scene.mrml")
    scene.SetURL(path)
    assert scene.Commit(path)
    other = slicer.vtkMRMLScene()
    other.SetURL(path)
    assert other.Import()
    return other
