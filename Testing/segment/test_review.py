"""Ours against a reference: scored as medmap.metrics and MONAI do, and shown in the scene.
Matching: test_reference.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice

from medmap import metrics
from medmap.agreement import EMPTY_RULE, error_map
from medmap.errors import Cancelled, InputDataError, UsageError
from medmap.metrics import region_masks
from medmap.task import BRATS
from medmap.volume import Grid

slicer = pytest.importorskip("slicer")
vtk = pytest.importorskip("vtk")

from Testing.segment.tumor_nodes import (  # noqa: E402
    AFFINE,
    REGIONS,
    SHAPE,
    labelVolume,
    split,
    tumor,
)

from MedMAPSegmentLib.mrml import nodes, review, review_nodes, worst_slices  # noqa: E402
from MedMAPSegmentLib.mrml import scene as mrmlScene  # noqa: E402


@pytest.fixture
def theirs():
    return tumor((10, 11, 9), 6)


@pytest.fixture
def segmentation(scene, mrml, make_result, ours):
    volume = mrml.volume(np.ones(SHAPE, np.float32), AFFINE, name="FLAIR")
    return mrmlScene.segmentationFromResult(scene, volume, make_result(ours, "flair"), BRATS)


@pytest.mark.parametrize("et", [4, 3])
@pytest.mark.parametrize("className", ["vtkMRMLLabelMapVolumeNode", "vtkMRMLScalarVolumeNode"])
def test_label_volumes_of_both_conventions_score_as_medmap_metrics(
    scene, mrml, segmentation, ours, theirs, et, className
):
    stored = np.where(theirs == 4, et, theirs)
    node = labelVolume(scene, mrml, stored, AFFINE, className)
    request = review.collect(segmentation, node, BRATS)
    found = review.compute(request)
    expected = metrics.compare(ours, theirs, BRATS, Grid(SHAPE, AFFINE))
    for name in REGIONS:
        for field in (
            "dice",
            "sensitivity",
            "precision",
            "hd95_mm",
            "prediction_ml",
            "reference_ml",
        ):
            assert getattr(found.scores[name], field) == pytest.approx(
                getattr(expected[name], field), rel=1e-6
            )
        masks = [
            torch.from_numpy(region_masks(x, BRATS)[name])[None, None].float()
            for x in (ours, theirs)
        ]
        assert found.scores[name].dice == pytest.approx(float(compute_dice(*masks)), abs=1e-6)


@pytest.fixture
def shown(scene, segmentation, drawn, theirs):
    request = review.collect(segmentation, drawn(split(theirs)), BRATS)
    found = review.compute(request)
    return request, found, review_nodes.apply(scene, segmentation, request, found)


def test_the_score_table_holds_the_scores_and_states_the_rule(shown):
    _, found, made = shown
    assert nodes.columnOf(made.scores, "Region") == REGIONS
    for column, field in (
        ("Dice", "dice"),
        ("HD95", "hd95_mm"),
        ("Reference volume", "reference_ml"),
    ):
        expected = [getattr(found.scores[r], field) for r in REGIONS]
        np.testing.assert_allclose(nodes.columnOf(made.scores, column), expected)
    assert made.scores.GetDescription() == EMPTY_RULE
    record = json.loads(made.scores.GetAttribute(review_nodes.REVIEW))
    assert record["empty rule"] == EMPTY_RULE
    assert [m["target"] for m in record["matches"]] == ["NCR", "ED", "ET"]


@pytest.mark.parametrize("region", REGIONS)
def test_the_error_segmentation_has_three_named_colored_segments(
    scene, segmentation, shown, ours, theirs, region
):
    request, _, made = shown
    node = review_nodes.showErrors(scene, segmentation, request, region)
    assert node is made.errors
    expected = error_map(ours, theirs, BRATS, region)
    colors = set()
    for value, key in enumerate(("agreement", "ours", "reference"), 1):
        segment = node.GetSegmentation().GetSegment(key)
        colors.add(segment.GetColor())
        assert segment.GetName().startswith(region)
        kji = slicer.vtkOrientedImageData()
        assert node.GetBinaryLabelmapRepresentation(key, kji)
        mask = mrmlScene._pasted(kji, SHAPE)
        assert np.array_equal(mask, expected == value), key
    assert len(colors) == 3
    np.testing.assert_allclose(
        nodes.geometryOf(node).grid.affine, nodes.geometryOf(segmentation).grid.affine
    )


def test_the_plot_shows_the_slice_table(shown):
    _, found, made = shown
    assert made.chart.GetNumberOfPlotSeriesNodes() == 3
    positions = nodes.columnOf(made.slices, "Position")
    assert len(positions) == (~np.isnan(found.slices.dice["WT"])).sum()
    for region, series in made.series.items():
        assert series.GetTableNode() is made.slices
        assert (series.GetXColumnName(), series.GetYColumnName()) == ("Position", region)
        index = nodes.columnOf(made.slices, "Slice")
        np.testing.assert_allclose(
            nodes.columnOf(made.slices, region), found.slices.dice[region][index]
        )


def test_the_worst_slice_is_where_slicer_must_jump_to(scene, shown, theirs, ours):
    request, found, _ = shown
    worst = worst_slices.worstSlice(request, found, "WT")
    ijk = np.linalg.inv(AFFINE) @ [*worst.ras, 1]
    assert ijk[2] == pytest.approx(worst.index, abs=1e-6)
    assert worst.dice == np.nanmin(found.slices.dice["WT"])
    assert (ijk[:2] >= 0).all()
    assert (ijk[:2] < SHAPE[:2]).all()
    assert worst_slices.worstSlice(request, found, "WT", rank=1).index != worst.index
    assert worst_slices.worstSlice(request, found, "WT", rank=worst.count) == worst
    view = scene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    worst_slices.jumpTo(scene, worst.ras)
    matrix = view.GetSliceToRAS()
    assert [matrix.GetElement(n, 3) for n in range(3)] == pytest.approx(worst.ras, abs=1e-3)


def test_reviewing_again_refreshes_the_nodes(scene, segmentation, shown, drawn, ours, contents):
    made = shown[2]
    other = drawn(split(ours), name="second")
    before = contents()
    again = review.collect(segmentation, other, BRATS)
    assert review_nodes.apply(scene, segmentation, again, review.compute(again)) == made
    assert contents().keys() == before.keys()
    assert nodes.columnOf(made.scores, "Dice") == [1.0, 1.0, 1.0]
    assert review_nodes.nodesOf(scene, segmentation) == made


@pytest.mark.parametrize(
    "step", ["fillTable", "_scoreColumns", "_sliceColumns", "_plot", "_errors", "_record"]
)
def test_a_failure_adds_no_node(scene, segmentation, drawn, theirs, contents, monkeypatch, step):
    request = review.collect(segmentation, drawn(split(theirs)), BRATS)
    found = review.compute(request)

    def fail(*args):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(review_nodes, step, fail)
    before = contents()
    with pytest.raises(RuntimeError):
        review_nodes.apply(scene, segmentation, request, found)
    assert contents().keys() == before.keys()


def test_collecting_and_computing_change_nothing(scene, segmentation, drawn, theirs, contents):
    node = drawn(split(theirs))
    before = contents()
    review.compute(review.collect(segmentation, node, BRATS))
    assert contents() == before


def test_what_cannot_be_reviewed_is_refused_in_words(scene, segmentation, drawn, theirs, contents):
    node = drawn(split(theirs))
    request = review.collect(segmentation, node, BRATS)
    with pytest.raises(InputDataError, match="Choose both"):
        review.collect(segmentation, None, BRATS)
    with pytest.raises(InputDataError, match="the result itself"):
        review.collect(segmentation, segmentation, BRATS)
    with pytest.raises(Cancelled):
        review.compute(request, cancelled=lambda: True)
    with pytest.raises(UsageError, match="does not define CSF"):
        review_nodes.showErrors(scene, segmentation, request, "CSF")
    found = review.compute(request)
    scene.RemoveNode(segmentation)
    before = contents()
    with pytest.raises(InputDataError, match="was removed"):
        review_nodes.apply(scene, segmentation, request, found)
    assert contents() == before


def test_empty_against_empty_is_full_agreement(scene, mrml, make_result):
    nothing = np.zeros(SHAPE, np.uint8)
    volume = mrml.volume(np.ones(SHAPE, np.float32), AFFINE)
    node = mrmlScene.segmentationFromResult(scene, volume, make_result(nothing, "t1"), BRATS)
    request = review.collect(node, labelVolume(scene, mrml, nothing, AFFINE), BRATS)
    found = review.compute(request)
    made = review_nodes.apply(scene, node, request, found)
    assert nodes.columnOf(made.scores, "Dice") == [1.0, 1.0, 1.0]
    assert made.slices.GetNumberOfRows() == 0
    assert worst_slices.worstSlice(request, found, "WT") is None


def test_everything_comes_back_after_saving_the_scene(scene, segmentation, shown, tmp_path):
    _, found, made = shown
    files = {
        segmentation: "s.seg.nrrd",
        made.scores: "a.tsv",
        made.slices: "b.tsv",
        made.errors: "e.seg.nrrd",
    }
    for node, name in files.items():
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(tmp_path / name))
        assert node.GetStorageNode().WriteData(node)
    path = str(tmp_path / "scene.mrml")
    scene.SetURL(path)
    assert scene.Commit(path)
    other = slicer.vtkMRMLScene()
    other.SetURL(path)
    assert other.Import()
    loaded = review_nodes.nodesOf(other, other.GetNodeByID(segmentation.GetID()))
    np.testing.assert_allclose(
        nodes.columnOf(loaded.scores, "Dice"), [found.scores[r].dice for r in REGIONS], rtol=1e-5
    )
    for region in REGIONS:
        before, after = (
            np.array(nodes.columnOf(t, region), float) for t in (made.slices, loaded.slices)
        )
        np.testing.assert_allclose(after, before, rtol=1e-5)
        assert loaded.series[region].GetTableNode() is loaded.slices
    assert json.loads(loaded.scores.GetAttribute(review_nodes.REVIEW))["reference"] == "manual"
    assert loaded.scores.GetDescription() == EMPTY_RULE
    assert list(loaded.errors.GetSegmentation().GetSegmentIDs()) == [
        "agreement",
        "ours",
        "reference",
    ]
