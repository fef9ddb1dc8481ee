"""A reference of any form on any grid becomes labels on ours: matched by value, name or code, in
the world.
"""

from __future__ import annotations

import numpy as np
import pytest

from medmap import metrics
from medmap.errors import InputDataError, UsageError
from medmap.metrics import region_masks
from medmap.task import BRATS

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

from MedMAPSegmentLib.mrml import nodes, reference_parts, review  # noqa: E402
from MedMAPSegmentLib.mrml import scene as mrmlScene  # noqa: E402


@pytest.fixture
def theirs():
    return tumor((10, 11, 9), 6)


@pytest.fixture
def segmentation(scene, mrml, make_result, ours):
    volume = mrml.volume(np.ones(SHAPE, np.float32), AFFINE, name="FLAIR")
    return mrmlScene.segmentationFromResult(scene, volume, make_result(ours, "flair"), BRATS)


NAMES = {
    "names": {"NCR": "NCR", "ED": "ED", "ET": "ET"},
    "titles": {label.name: label.title for label in BRATS.labels},
    "British": {"NCR": "Necrotic core", "ED": "Peritumoral edema", "ET": "Enhancing tumor"},
    "non-enhancing": {
        "NCR": "non-enhancing tumor core (NET)",
        "ED": "SNFH",
        "ET": "GD-enhancing tumor",
    },
    "numbers": {"NCR": "Segment_1", "ED": "Segment_2", "ET": "Segment_4"},
    "numbers of 2023": {"NCR": "1", "ED": "Label 2", "ET": "3"},
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_segments_are_matched_by_name(segmentation, drawn, theirs, names):
    node = drawn({names[name]: mask for name, mask in split(theirs).items()})
    request = review.collect(segmentation, node, BRATS)
    assert [s.target for s in request.sources] == ["NCR", "ED", "ET"]
    assert np.array_equal(request.reference, theirs)
    assert request.regions == tuple(REGIONS)


def test_segments_are_matched_by_code_when_the_name_says_nothing(segmentation, drawn, theirs):
    codes = [
        ("a", "SCT^6574001^Necrosis"),
        ("b", "SCT^79654002^Edema"),
        ("c", "NCIt^C113842^Enhancing Lesion"),
    ]
    node = drawn(dict(zip("abc", split(theirs).values(), strict=True)), codes=codes)
    request = review.collect(segmentation, node, BRATS)
    assert np.array_equal(request.reference, theirs)
    assert {s.reason for s in request.sources} == {"code"}


def test_nested_regions_are_taken_apart(segmentation, drawn, theirs):
    masks = region_masks(theirs, BRATS)
    node = drawn(
        {"Enhancing tumor": masks["ET"], "Tumor core": masks["TC"], "Whole tumor": masks["WT"]}
    )
    assert np.array_equal(review.collect(segmentation, node, BRATS).reference, theirs)


def test_regions_that_the_reference_does_not_speak_about_are_not_scored(
    segmentation, drawn, theirs, ours
):
    node = drawn({"Whole tumor": theirs > 0})
    request = review.collect(segmentation, node, BRATS)
    found = review.compute(request)
    assert list(found.scores) == ["WT"]
    assert found.scores["WT"].dice == metrics.dice(ours > 0, theirs > 0)
    assert any("TC, ET" in f.message and "not scored" in f.message for f in request.findings)


def test_a_missing_label_counts_as_empty_and_is_said(segmentation, drawn, theirs):
    masks = split(theirs)
    del masks["NCR"]
    request = review.collect(segmentation, drawn(masks), BRATS)
    assert request.regions == tuple(REGIONS)
    assert any("Necrosis" in f.message and "empty" in f.message for f in request.findings)


@pytest.mark.parametrize("names", [("lesion", "x"), ("tumor", "edema and enhancing")])
def test_ambiguous_names_are_asked_for_not_guessed(
    scene, segmentation, drawn, theirs, contents, names
):
    node = drawn(dict(zip(names, (theirs == 4, theirs == 2), strict=True)))
    before = contents()
    with pytest.raises(InputDataError, match=f"'{names[0]}'"):
        review.collect(segmentation, node, BRATS)
    assert contents() == before
    request = review.collect(
        segmentation, node, BRATS, override={names[0]: "ET", f"id {names[1]}": "ED"}
    )
    assert set(np.unique(request.reference)) == {0, 2, 4}
    assert {s.reason for s in request.sources} == {"chosen"}


def test_code_and_name_that_contradict_are_not_used(drawn, theirs):
    node = drawn({"edema": theirs == 2}, codes=[("edema", "NCIt^C113842^Enhancing Lesion")])
    (source,) = reference_parts.sources(node, BRATS)
    assert (source.target, source.reason) == ("", "could be ED or ET")


def test_an_override_beats_every_match_and_two_segments_can_be_one_label(
    segmentation, drawn, theirs
):
    masks = {"ET": theirs == 4, "necrosis": theirs == 1, "cyst": theirs == 2}
    request = review.collect(segmentation, drawn(masks), BRATS, override={"cyst": "NCR", "ET": ""})
    assert np.array_equal(request.reference, np.isin(theirs, (1, 2)).astype(np.uint8))
    assert any("ET" in f.message for f in request.findings)


@pytest.mark.parametrize("override", [{"nothing": "ET"}, {"ET": "brain"}])
def test_an_override_of_what_is_not_there_is_refused(segmentation, drawn, theirs, override):
    with pytest.raises(UsageError):
        review.collect(segmentation, drawn(split(theirs)), BRATS, override=override)


def test_unknown_label_values_are_named_and_can_be_assigned(scene, mrml, segmentation, theirs):
    node = labelVolume(scene, mrml, np.where(theirs == 4, 7, theirs), AFFINE)
    with pytest.raises(InputDataError, match="7"):
        review.collect(segmentation, node, BRATS)
    request = review.collect(segmentation, node, BRATS, override={"value 7": "ET"})
    assert np.array_equal(request.reference, theirs)


def test_three_beside_four_is_refused_unless_the_name_or_a_person_says_what_it_is(
    scene, mrml, segmentation, theirs
):
    """3 and 4 are core and enhancing tumor of 2013, or enhancing tumor and cavity since 2024."""
    values = theirs.copy()
    values[theirs == 1] = 3
    node = labelVolume(scene, mrml, values, AFFINE)
    with pytest.raises(InputDataError, match="several meanings"):
        review.collect(segmentation, node, BRATS)
    by_hand = {"value 3": "ET", "value 4": ""}
    request = review.collect(segmentation, node, BRATS, override=by_hand)
    assert np.array_equal(request.reference == 4, theirs == 1)
    node.SetName("brats_2013_pat0001_1")
    request = review.collect(segmentation, node, BRATS)
    assert np.array_equal(request.reference, theirs)
    assert "BraTS 2012 to 2016" in request.sources[0].reason
    node.SetName("BraTS-GLI-02060-101")
    request = review.collect(segmentation, node, BRATS)
    assert np.array_equal(request.reference == 4, theirs == 1)
    assert not (request.reference[theirs == 4]).any()


def test_a_scan_is_no_reference(scene, mrml, segmentation):
    node = mrml.volume(
        np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), AFFINE, name="T1"
    )
    with pytest.raises(InputDataError, match="'T1' are not labels"):
        review.collect(segmentation, node, BRATS)


class TestOtherGrids:
    """The reference lies on another lattice, under transforms, or both; the world decides."""

    def test_a_finer_flipped_lattice_of_the_same_tumor_scores_one(
        self, scene, mrml, segmentation, ours
    ):
        fine = np.repeat(np.repeat(np.repeat(ours, 2, 0), 2, 1), 2, 2)[::-1]
        change = np.diag([-0.5, 0.5, 0.5, 1.0])
        change[:3, 3] = [SHAPE[0] - 1 + 0.25, -0.25, -0.25]
        node = labelVolume(scene, mrml, np.ascontiguousarray(fine), AFFINE @ change)
        request = review.collect(segmentation, node, BRATS)
        assert np.array_equal(request.reference, ours)
        assert review.compute(request).scores["ET"].dice == 1.0

    @pytest.mark.parametrize("moved", ["ours", "theirs", "both"])
    def test_parent_transforms_of_either_are_honored(self, scene, mrml, segmentation, ours, moved):
        outer = mrml.transform([[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
        inner = mrml.transform(
            [[0, 0, 1, 3], [0, 1, 0, 0], [-1, 0, 0, 2], [0, 0, 0, 1]], parent=outer
        )
        matrix = vtk.vtkMatrix4x4()
        inner.GetMatrixTransformToWorld(matrix)
        world = nodes.arrayFromMatrix(matrix)
        affine = {"ours": world @ AFFINE, "theirs": np.linalg.inv(world) @ AFFINE, "both": AFFINE}[
            moved
        ]
        node = labelVolume(scene, mrml, ours, affine)
        if moved in ("ours", "both"):
            segmentation.SetAndObserveTransformNodeID(inner.GetID())
        if moved in ("theirs", "both"):
            node.SetAndObserveTransformNodeID(inner.GetID())
        assert np.array_equal(review.collect(segmentation, node, BRATS).reference, ours)

    def test_a_reference_under_a_bent_transform_is_resampled_point_by_point(
        self, scene, mrml, segmentation, theirs
    ):
        bent = mrml.warp()
        node = labelVolume(scene, mrml, theirs, AFFINE)
        node.SetAndObserveTransformNodeID(bent.GetID())
        found = review.collect(segmentation, node, BRATS).reference
        inverse = vtk.vtkGeneralTransform()
        bent.GetTransformFromWorld(inverse)
        rng, agree = np.random.default_rng(1), []
        for ijk in rng.integers(0, SHAPE, (300, 3)):
            world = (AFFINE @ [*ijk, 1])[:3]
            index = np.round(
                (np.linalg.inv(AFFINE) @ [*inverse.TransformPoint(world), 1])[:3]
            ).astype(int)
            inside = ((index >= 0) & (index < SHAPE)).all()
            agree.append(found[tuple(ijk)] == (theirs[tuple(index)] if inside else 0))
        assert np.mean(agree) > 0.98

    def test_our_segmentation_under_a_bent_transform_is_refused(
        self, scene, mrml, segmentation, theirs
    ):
        node = labelVolume(scene, mrml, theirs, AFFINE)
        segmentation.SetAndObserveTransformNodeID(mrml.warp().GetID())
        with pytest.raises(InputDataError, match="non-linear"):
            review.collect(segmentation, node, BRATS)

    def test_a_reference_elsewhere_is_empty_and_said_to_be(self, scene, mrml, segmentation, theirs):
        affine = AFFINE.copy()
        affine[0, 3] += 500
        request = review.collect(segmentation, labelVolume(scene, mrml, theirs, affine), BRATS)
        assert not request.reference.any()
        assert any("no label where the result lies" in f.message for f in request.findings)

    def test_surfaces_become_voxels_without_touching_the_reference(self, scene, segmentation):
        sphere = vtk.vtkSphereSource()
        center = (AFFINE @ [9, 10, 8, 1])[:3]
        sphere.SetCenter(*center)
        sphere.SetRadius(6)
        sphere.SetThetaResolution(40)
        sphere.SetPhiResolution(40)
        sphere.Update()
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surfaces")
        node.GetSegmentation().SetSourceRepresentationName("Closed surface")
        segment = slicer.vtkSegment()
        segment.SetName("Whole tumor")
        segment.AddRepresentation("Closed surface", sphere.GetOutput())
        node.GetSegmentation().AddSegment(segment, "ball")
        request = review.collect(segmentation, node, BRATS)
        ijk = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
        inside = np.linalg.norm(ijk @ AFFINE[:3, :3].T + AFFINE[:3, 3] - center, axis=-1) < 6
        assert metrics.dice(request.reference > 0, inside) > 0.95  # 40 facets lie inside the sphere
        middle = AFFINE[:3, :3] @ np.argwhere(request.reference).mean(0) + AFFINE[:3, 3]
        np.testing.assert_allclose(middle, center, atol=0.1)
        assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")
