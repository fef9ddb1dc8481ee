"""Registering moves a scan by a parent transform, on request only; a known movement is found, and
can be undone.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache

import numpy as np
import pytest

from medmap.errors import InputDataError, InternalError, UnavailableError, UsageError
from medmap.task import BRATS
from medmap.volume import Volume

pytest.importorskip("slicer")
pytest.importorskip("torch")

from medmap.phantom import generate
from MedMAPSegmentLib.mrml.geometry_checks import checkGeometry, gridOf
from MedMAPSegmentLib.mrml.registration import (
    Pair,
    applyMovement,
    brainsFit,
    isRegistered,
    readPair,
    registerToReference,
    simpleItkRigid,
    undoRegistration,
)
from MedMAPSegmentLib.mrml.scene import volumeFromNode


@lru_cache(maxsize=1)
def phantom():
    return generate(20287, shape=(56, 66, 56), spacing=3.0)


def head(name):
    """[I, J, K] of one synthetic head in one contrast."""
    return phantom().images[name].numpy()


def affine():
    return phantom().affine


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


def brainPoints():
    """[N, 3] world positions all over the brain."""
    inside = np.argwhere(phantom().brain.numpy())[::97]
    return inside @ affine()[:3, :3].T + affine()[:3, 3]


@pytest.fixture
def scans(mrml):
    """Function: modality -> volume node of the head, all on one grid."""
    return lambda *names: {name: mrml.volume(head(name), affine(), name=name) for name in names}


def distance(one, other):
    """Largest distance in mm, over the fixed brain, between where two movements put a point."""
    back = np.linalg.inv(other)
    points = brainPoints() @ back[:3, :3].T + back[:3, 3]
    difference = (one - other)[:3]
    return np.linalg.norm(points @ difference[:, :3].T + difference[:, 3], axis=1).max()


def known(matrix):
    """A method that finds what is given."""
    return lambda pair: matrix


class TestApplying:
    @pytest.fixture
    def pair(self, scans):
        nodes = scans("t1ce", "t2")
        return nodes["t2"], nodes["t1ce"]

    def test_the_movement_becomes_a_parent_transform_and_voxels_stay(self, scene, pair, mrml):
        moving, fixed = pair
        before = volumeFromNode(moving)
        movement = moved(4, 5)
        done = registerToReference(scene, moving, fixed, known(movement))
        after = volumeFromNode(moving)
        assert np.array_equal(after.array, before.array)
        np.testing.assert_allclose(after.affine, movement @ before.affine, atol=1e-9)
        transform = scene.GetNodeByID(done.transformID)
        assert moving.GetTransformNodeID() == done.transformID
        assert transform.GetName() == "t2 to t1ce"
        assert done.degrees == pytest.approx(4)
        assert "turned by 4.0 degrees" in done.text
        assert fixed.GetTransformNodeID() is None

    def test_a_present_parent_stays_above_and_other_children_do_not_move(self, scene, pair, mrml):
        moving, fixed = pair
        parent = mrml.transform(moved(30, 40, axis=(1, 0, 1)))
        for node in pair:
            node.SetAndObserveTransformNodeID(parent.GetID())
        before, other = volumeFromNode(moving).affine, volumeFromNode(fixed).affine
        movement = moved(4, 5)
        done = registerToReference(scene, moving, fixed, known(movement))
        np.testing.assert_allclose(volumeFromNode(moving).affine, movement @ before, atol=1e-9)
        np.testing.assert_allclose(volumeFromNode(fixed).affine, other)
        assert scene.GetNodeByID(done.transformID).GetTransformNodeID() == parent.GetID()

    @pytest.mark.parametrize("parented", [False, True])
    def test_undo_restores_the_scene(self, scene, pair, mrml, parented):
        moving, fixed = pair
        if parented:
            moving.SetAndObserveTransformNodeID(mrml.transform(moved(30, 10)).GetID())
        ids = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
        before = (volumeFromNode(moving).affine, moving.GetTransformNodeID())
        assert not isRegistered(moving)
        registerToReference(scene, moving, fixed, known(moved(4, 5)))
        assert isRegistered(moving)
        assert undoRegistration(scene, moving)
        assert moving.GetTransformNodeID() == before[1]
        np.testing.assert_allclose(volumeFromNode(moving).affine, before[0])
        assert {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())} == ids
        assert not undoRegistration(scene, moving)

    def test_undo_leaves_a_transform_alone_that_others_use_or_made(self, scene, pair, mrml):
        moving, fixed = pair
        done = registerToReference(scene, moving, fixed, known(moved(4, 5)))
        mrml.volume(head("t1")).SetAndObserveTransformNodeID(done.transformID)
        assert undoRegistration(scene, moving)
        assert scene.GetNodeByID(done.transformID) is not None
        moving.SetAndObserveTransformNodeID(mrml.transform(moved(1, 1)).GetID())
        assert not undoRegistration(scene, moving)

    @pytest.mark.parametrize(
        "wrong",
        [
            np.diag([2.0, 1, 1, 1]),
            np.diag([-1.0, 1, 1, 1]),
            np.full((4, 4), np.nan),
            moved(90, 0),
            moved(0, 200),
        ],
        ids=["stretched", "mirrored", "not finite", "turned too far", "moved too far"],
    )
    def test_an_impossible_movement_is_refused_and_the_scene_is_unchanged(
        self, scene, pair, contents, wrong
    ):
        before = contents()
        with pytest.raises(InputDataError, match="'t2' could not be registered to 't1ce'"):
            registerToReference(scene, *pair, known(wrong))
        assert contents() == before

    def test_a_volume_that_is_gone_meanwhile_is_refused(self, scene, pair):
        read = readPair(*pair)
        scene.RemoveNode(pair[1])
        with pytest.raises(InputDataError, match="removed during the registration"):
            applyMovement(scene, read, np.eye(4))

    def test_a_volume_cannot_be_registered_to_itself_or_without_contrast(self, scene, pair, mrml):
        with pytest.raises(UsageError, match="itself"):
            registerToReference(scene, pair[0], pair[0], known(np.eye(4)))
        with pytest.raises(InputDataError, match="'flat' cannot be registered"):
            registerToReference(
                scene, mrml.volume(np.ones((9, 9, 9)), name="flat"), pair[0], known(np.eye(4))
            )

    def test_scans_far_apart_begin_with_their_centers_together(self, pair, mrml):
        moving, fixed = pair
        assert np.array_equal(readPair(moving, fixed).start, np.eye(4))
        moving.SetAndObserveTransformNodeID(mrml.transform(moved(0, 300)).GetID())
        start = readPair(moving, fixed).start
        assert distance(start @ moved(0, 300), np.eye(4)) < 10


class TestBrainsFit:
    """Slicer's command line module is stood in for; what it is given and what becomes of its answer
    is checked.
    """

    def runner(self, scene, answer, seen, failed=False):
        import slicer.util

        def runCli(parameters):
            seen.update(parameters)
            for name in ("fixedVolume", "movingVolume"):
                node = scene.GetNodeByID(parameters[name])
                assert node.GetTransformNodeID() is None
                seen[f"{name} grid"] = gridOf(node)
            slicer.util.updateTransformMatrixFromArray(
                scene.GetNodeByID(parameters["linearTransform"]), answer
            )
            cli = _commandLineModuleNode(0x40 if failed else 0x10)
            scene.AddNode(cli)
            return cli

        return runCli

    def test_it_gets_both_scans_in_the_world_and_leaves_nothing_behind(self, scene, scans, mrml):
        nodes = scans("t1ce", "t2")
        for n, node in enumerate(nodes.values()):
            node.SetAndObserveTransformNodeID(mrml.transform(moved(10 * n + 5, 6)).GetID())
        before = volumeFromNode(nodes["t2"]).affine
        ids = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
        seen = {}
        movement = moved(4, 5)
        done = registerToReference(
            scene, nodes["t2"], nodes["t1ce"], brainsFit(scene, self.runner(scene, movement, seen))
        )
        assert seen["useRigid"] is True
        assert seen["fixedVolume grid"].distance(gridOf(nodes["t1ce"])) < 1e-9
        assert np.allclose(seen["movingVolume grid"].affine, before)
        np.testing.assert_allclose(volumeFromNode(nodes["t2"]).affine, movement @ before, atol=1e-9)
        left = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())} - ids
        assert left == {done.transformID}

    def test_its_failure_is_said_and_leaves_nothing_behind(self, scene, scans):
        nodes = scans("t1ce", "t2")
        ids = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
        method = brainsFit(scene, self.runner(scene, np.eye(4), {}, failed=True))
        with pytest.raises(InternalError, match="BRAINSFit failed: no overlap"):
            registerToReference(scene, nodes["t2"], nodes["t1ce"], method)
        assert {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())} == ids


def _commandLineModuleNode(status):
    """A node with the status of a vtkMRMLCommandLineModuleNode, which slicer-core lacks."""
    import slicer

    class CommandLineModuleNode(slicer.vtkMRMLScriptedModuleNode):
        ErrorsMask = 0x40

        def GetStatus(self):
            return status

        def GetErrorText(self):
            return "no overlap"

    return CommandLineModuleNode()


def test_without_simpleitk_the_error_says_what_to_use_instead(monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    volume = Volume(head("t1"), affine(), "x")
    with pytest.raises(UnavailableError, match=r"SimpleITK.*is not installed.*BRAINS"):
        simpleItkRigid(Pair(volume, volume, None, None, np.eye(4)))


@pytest.mark.skipif(
    importlib.util.find_spec("SimpleITK") is None, reason="SimpleITK is not installed"
)
class TestSimpleItk:
    @pytest.mark.parametrize(
        ("fixed", "moving", "degrees", "shift"),
        [
            ("t1ce", "t2", 4, 5),
            ("flair", "t1", -4, 5),
            ("t1ce", "t1ce", 8, 12),
            ("t2", "flair", 0, 0),
        ],
    )
    def test_a_known_movement_is_found_to_within_a_millimeter(
        self, scene, mrml, fixed, moving, degrees, shift
    ):
        truth = moved(degrees, shift)
        stays = mrml.volume(head(fixed), affine(), name=fixed)
        goes = mrml.volume(head(moving), np.linalg.inv(truth) @ affine(), name="moving")
        done = registerToReference(scene, goes, stays)
        assert distance(done.movement, truth) < 1.0
        assert distance(volumeFromNode(goes).affine @ np.linalg.inv(affine()), np.eye(4)) < 1.0
        assert checkGeometry({"t1": stays, "t2": goes}, BRATS).text.count("overlap") == 0

    def test_thick_oblique_slices_under_a_transform_are_registered_too(self, scene, mrml):
        from medmap.resampling import resample_linear
        from medmap.volume import Grid

        truth, parent = moved(-4, 5), moved(25, 60, axis=(0, 1, 0))
        thick = moved(12, 0, axis=(1, 0, 0)) @ np.diag([2.5, 2.5, 6.0, 1.0])
        thick[:3, 3] -= thick[:3, :3] @ (np.array([70, 80, 30]) - 1) / 2
        source = phantom().images["t2"][None]
        sliced = resample_linear(
            source, Grid(source.shape[1:], affine()), Grid((70, 80, 30), thick)
        )[0].numpy()
        stays = mrml.volume(head("t1ce"), affine(), name="fixed")
        goes = mrml.volume(sliced, np.linalg.inv(truth @ parent) @ thick, name="moving")
        goes.SetAndObserveTransformNodeID(mrml.transform(parent).GetID())
        assert distance(registerToReference(scene, goes, stays).movement, truth) < 1.0

    def test_scans_in_other_corners_of_the_world_find_together(self, scene, mrml):
        truth = moved(5, 250)
        stays = mrml.volume(head("t1ce"), affine(), name="fixed")
        goes = mrml.volume(head("t2"), np.linalg.inv(truth) @ affine(), name="moving")
        assert distance(registerToReference(scene, goes, stays).movement, truth) < 1.0
