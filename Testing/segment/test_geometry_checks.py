"""Grids, fields of view and skulls are looked at in world space, and nothing is changed."""

from __future__ import annotations

import numpy as np
import pytest

from medmap.task import BRATS

pytest.importorskip("slicer")

from MedMAPSegmentLib.mrml.geometry_checks import (
    checkGeometry,
    gridOf,
    installedSkullStrippers,
)
from MedMAPSegmentLib.mrml.scene import volumeFromNode

SHAPE, SPACING = (44, 52, 40), 4.0
AFFINE = np.diag([SPACING, SPACING, SPACING, 1.0])
AFFINE[:3, 3] = -SPACING * (np.array(SHAPE) - 1) / 2


def head(kind=0, shape=SHAPE, affine=AFFINE, skull=False):
    """[I, J, K] of an egg with ventricle-like and tumor-like parts, sampled by the affine."""
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    x, y, z = np.moveaxis(ijk @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    egg = np.sqrt((x / 66) ** 2 + ((y + 4) / 82) ** 2 + (z / 62) ** 2 + 0.1 * (x / 66) * (y / 82))
    inner = np.exp(-(((np.abs(x) - 14) / 7) ** 2 + ((y - 8) / 26) ** 2 + ((z - 6) / 9) ** 2))
    blob = np.exp(-(((x - 30) / 14) ** 2 + ((y + 25) / 17) ** 2 + ((z - 18) / 12) ** 2))
    folds = np.cos(x / 9) * np.cos(y / 8) * np.cos(z / 10) * np.clip(egg - 0.55, 0, 1)
    weights = ((-150, 120, 90), (220, 260, -80), (-180, 320, 60), (60, -90, 140))[kind]
    image = 400 + weights[0] * inner + weights[1] * blob + weights[2] * folds
    noise = np.random.default_rng(kind).normal(0, 6, shape)
    image = np.where(egg < 1, np.maximum(image + noise, 1), 0)
    if skull:
        air = np.abs(np.random.default_rng(9).normal(8, 4, shape)) + 0.5
        image = np.where(egg < 1, image, np.where(egg < 1.15, 300 + noise, air))
    return image.astype(np.float32)


def moved(degrees, shift, axis=(1, 2, 3)):
    """[4, 4] rotation about an axis through the origin, then a shift of so many mm."""
    k = np.array(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    a = np.radians(degrees)
    result = np.eye(4)
    result[:3, :3] += np.sin(a) * cross + (1 - np.cos(a)) * cross @ cross
    direction = np.array([3.0, -2.0, 3.5])
    result[:3, 3] = shift * direction / np.linalg.norm(direction)
    return result


@pytest.fixture
def scans(mrml):
    """Function: modality -> volume node with a head of that contrast, all on one grid."""

    def make(*names, **options):
        return {
            n: mrml.volume(head(BRATS.index(n), **options), options.get("affine", AFFINE), name=n)
            for n in names
        }

    return make


def checksOf(report, level=None):
    return [finding.check for finding in report.findings if level in (None, finding.level)]


class TestGrids:
    def test_scans_on_one_grid_need_no_words(self, scans):
        report = checkGeometry(scans("t1", "t1ce", "t2", "flair"), BRATS)
        assert [
            n for n in report.findings if n.check != "modality"
        ] == []  # the contrasts of these eggs are nobody's
        assert [line for line in report.text.splitlines() if "look exchanged" not in line] == []
        assert report.resampled == ()
        assert report.reference == "t1ce"

    @pytest.mark.parametrize(
        ("voxels", "silent"), [(0.0, True), (0.05, True), (0.09, True), (0.12, False), (1, False)]
    )
    def test_a_tenth_of_a_voxel_is_silent_and_more_is_said(self, mrml, voxels, silent):
        shifted = AFFINE.copy()
        shifted[1, 3] += voxels * SPACING
        nodes = {"t1": mrml.volume(head(0), AFFINE), "t2": mrml.volume(head(2), shifted)}
        report = checkGeometry(nodes, BRATS)
        assert report.resampled == (() if silent else ("t2",))
        if not silent:
            (finding,) = report.findings
            assert finding.level == "info"
            assert finding.message.startswith("T2 lies on another grid than T1")
            assert "will be resampled" in finding.message
            assert f"{voxels * SPACING:.1f} mm apart" in finding.message

    def test_a_parent_transform_moves_a_grid(self, scans, mrml):
        nodes = scans("t1", "t2")
        nodes["t2"].SetAndObserveTransformNodeID(mrml.transform(moved(0, 3)).GetID())
        assert checkGeometry(nodes, BRATS).resampled == ("t2",)
        nodes["t1"].SetAndObserveTransformNodeID(nodes["t2"].GetTransformNodeID())
        assert checkGeometry(nodes, BRATS).resampled == ()

    def test_a_parent_transform_that_brings_scans_together_is_honored(self, scans, mrml):
        away = moved(10, 20)
        nodes = scans("t1") | scans("t2", affine=AFFINE)
        nodes["t2"].SetIJKToRASMatrix(mrml.matrix(np.linalg.inv(away) @ AFFINE))
        assert checkGeometry(nodes, BRATS).resampled == ("t2",)
        nodes["t2"].SetAndObserveTransformNodeID(mrml.transform(away).GetID())
        assert checkGeometry(nodes, BRATS).findings == ()

    def test_another_size_is_named_with_both(self, mrml):
        thick = np.diag([4.0, 4.0, 8.0, 1.0])
        thick[:3, 3] = AFFINE[:3, 3]
        nodes = {"t1": mrml.volume(head(0), AFFINE)}
        nodes["t2"] = mrml.volume(head(2, (44, 52, 20), thick), thick)
        (finding,) = checkGeometry(nodes, BRATS).findings
        assert (
            "44 x 52 x 20 at 4 x 4 x 8 mm instead of 44 x 52 x 40 at 4 x 4 x 4 mm"
            in finding.message
        )

    def test_the_reference_can_be_chosen(self, scans, mrml):
        nodes = scans("t1", "t2")
        nodes["t2"].SetAndObserveTransformNodeID(mrml.transform(moved(0, 3)).GetID())
        report = checkGeometry(nodes, BRATS, reference="t2")
        assert report.reference == "t2"
        assert report.resampled == ("t1",)

    def test_the_same_scan_is_the_reference_as_in_the_computation(self, mrml):
        preprocess = pytest.importorskip("medmap.preprocess")
        rng = np.random.default_rng(1)
        for _ in range(25):
            nodes = {}
            for name in rng.permutation(BRATS.modality_names)[:3]:
                size = rng.choice([1.0, 1.001, 1.2, 3.0], 3)
                array = rng.normal(100, 20, (6, 6, 6)).astype(np.float32)
                nodes[str(name)] = mrml.volume(array, np.diag([*size, 1.0]))
            volumes = {name: volumeFromNode(node) for name, node in nodes.items()}
            prepared = preprocess.prepare(volumes, BRATS, preprocess.PreprocessSpec())
            assert checkGeometry(nodes, BRATS).reference == prepared.reference

    def test_grids_are_those_of_the_copied_volumes(self, scans, mrml):
        (node,) = scans("t1").values()
        node.SetAndObserveTransformNodeID(mrml.transform(moved(20, 30)).GetID())
        assert gridOf(node).distance(volumeFromNode(node).grid) == 0

    def test_what_cannot_be_read_is_an_error_and_the_rest_is_checked(self, scene, scans, mrml):
        nodes = scans("t1", "t2")
        nodes["t2"].SetAndObserveTransformNodeID(mrml.transform(moved(0, 3)).GetID())
        nodes["t1ce"] = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
        nodes |= scans("flair")
        nodes["flair"].SetAndObserveTransformNodeID(mrml.warp().GetID())
        report = checkGeometry(nodes, BRATS)
        assert checksOf(report) == ["unreadable", "unreadable", "grid"]
        assert "'nothing' has no voxels" in report.text
        assert "non-linear" in report.text

    def test_no_scan_is_nothing_to_check(self):
        assert checkGeometry({}, BRATS).text == ""
        assert checkGeometry({"t1": None}, BRATS).reference is None

    def test_nothing_in_the_scene_changes(self, scans, contents):
        nodes = scans("t1", "flair", skull=True)
        before = contents()
        checkGeometry(nodes, BRATS)
        assert contents() == before


class TestFieldOfView:
    def test_a_slab_that_leaves_out_brain_is_a_warning(self, mrml):
        nodes = {"t1": mrml.volume(head(0), AFFINE)}
        slab = AFFINE.copy()
        slab[2, 3] += 14 * SPACING
        nodes["t2"] = mrml.volume(head(2)[:, :, 14:24], slab)
        report = checkGeometry(nodes, BRATS, reference="t1")
        assert "field-of-view" in checksOf(report, "warning")
        assert "The field of view of T2 covers 4" in report.text

    def test_a_smaller_box_about_the_whole_brain_is_fine(self, mrml):
        nodes = {"t1": mrml.volume(head(0), AFFINE)}
        inner = AFFINE.copy()
        inner[:3, 3] += SPACING * 4
        nodes["t2"] = mrml.volume(head(2)[4:-4, 4:-4, 4:-4], inner)
        assert checksOf(checkGeometry(nodes, BRATS)) == ["grid"]

    def test_brains_that_lie_apart_are_an_error(self, scans, mrml):
        nodes = scans("t1", "t2")
        nodes["t2"].SetAndObserveTransformNodeID(mrml.transform(moved(0, 500)).GetID())
        report = checkGeometry(nodes, BRATS)
        assert "overlap" in checksOf(report, "error")
        assert report.findings[0].modalities == ("t1", "t2")

    def test_brains_that_overlap_badly_are_a_warning(self, scans, mrml):
        nodes = scans("t1", "t2")
        nodes["t2"].SetAndObserveTransformNodeID(mrml.transform(moved(0, 30)).GetID())
        assert "overlap" in checksOf(checkGeometry(nodes, BRATS), "warning")

    def test_one_image_given_twice_is_an_error(self, mrml):
        nodes = {"t1": mrml.volume(head(0), AFFINE), "t2": mrml.volume(head(0), AFFINE)}
        report = checkGeometry(nodes, BRATS)
        assert checksOf(report, "error") == ["same-image"]
        assert "T1 and T2 are the same image" in report.text


class TestSkull:
    def test_a_head_with_skull_is_a_warning_that_names_the_scan(self, scans):
        report = checkGeometry(scans("t1") | scans("flair", skull=True), BRATS)
        assert report.notStripped == ("flair",)
        assert "FLAIR does not look skull-stripped" in report.text
        assert report.skullStrippers == ()

    def test_installed_modules_are_offered_and_only_then(self, scans):
        names = ["Volumes", "SwissSkullStripper", "HDBrainExtractionTool"]
        report = checkGeometry(scans("t1", skull=True), BRATS, moduleNames=names)
        assert report.skullStrippers == (
            ("HDBrainExtractionTool", "HD Brain Extraction"),
            ("SwissSkullStripper", "Swiss Skull Stripper"),
        )
        assert checkGeometry(scans("t1"), BRATS, moduleNames=names).skullStrippers == ()

    @pytest.mark.parametrize("names", [[], ["Volumes", "hdbrainextraction", "NeuroStripper"]])
    def test_other_modules_are_not_offered(self, names):
        assert installedSkullStrippers(names) == ()

    def test_large_volumes_are_looked_at_quickly(self, mrml):
        import time

        large = np.repeat(np.repeat(np.repeat(head(0), 5, 0), 5, 1), 4, 2)
        nodes = {
            name: mrml.volume(large + n, np.diag([0.8, 0.8, 1.0, 1.0]))
            for n, name in enumerate(("t1", "t2"))
        }
        before = time.process_time()
        assert checkGeometry(nodes, BRATS).reference == "t1"
        assert time.process_time() - before < 2
