"""What-if table and uncertainty overlays on real MRML, from a real run of a small bundle."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.bundle.loading import load_bundle, save_bundle
from medmap.errors import Cancelled, InputDataError
from medmap.networks import build_network
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS

slicer = pytest.importorskip("slicer")


from MedMAPSegmentLib.logic import SegmentationLogic  # noqa: E402
from MedMAPSegmentLib.mrml import nodes, uncertainty  # noqa: E402
from MedMAPSegmentLib.mrml import scene as mrmlScene  # noqa: E402
from MedMAPSegmentLib.runner import InlineRunner, JobState  # noqa: E402
from MedMAPSegmentLib.selftest import addSyntheticCase  # noqa: E402


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(5)
    options = {"modalities": 4, "classes": 4, "widths": [8, 8, 8]}
    network = build_network("SubsetUNet", options)
    with torch.no_grad():
        network.head.weight.mul_(4)
    path = save_bundle(
        tmp_path_factory.mktemp("bundle") / "tiny",
        name="tiny",
        version="1.0.0",
        task=BRATS,
        network=network,
        network_spec=NetworkSpec("SubsetUNet", options),
        preprocess=PreprocessSpec(spacing=4.0),
        inference=InferenceSpec(),
        card={"description": "An untrained network for tests.", "data": "none"},
    )
    return load_bundle(path)


_once: dict = {}


@pytest.fixture
def run(scene, mrml, bundle):
    """A synthetic case under a transform, segmented, with its what-if result."""
    scans = addSyntheticCase(scene)
    moved = mrml.transform([[1, 0, 0, 12], [0, 1, 0, -7], [0, 0, 1, 3], [0, 0, 0, 1]])
    for node in scans.values():
        node.SetAndObserveTransformNodeID(moved.GetID())
    logic = SegmentationLogic(scene, loadBundle=lambda: bundle)
    request = logic.prepare(scans, reference="t1ce", device="cpu")
    if not _once:  # neither result knows the scene, so once is enough
        job = InlineRunner().start(uncertainty.whatIfWork(request, lambda: bundle, "t1ce"))
        assert job.state is JobState.DONE, job.error or job.details
        _once.update(result=logic.compute(request), found=job.result)
    segmentation = logic.apply(request, _once["result"])
    return SimpleNamespace(
        segmentation=segmentation, found=_once["found"], scans=scans, request=request, moved=moved
    )


def test_the_table_has_a_row_for_each_of_fifteen_combinations(scene, run):
    table = uncertainty.apply(scene, run.segmentation, run.found).table
    scans = nodes.columnOf(table, "Scans")
    assert len(set(scans)) == 15
    assert scans[0] == "T1 + T1ce + T2 + FLAIR"
    assert nodes.columnOf(table, "Kind")[0] == "Current"
    for region in ("WT", "TC", "ET"):
        volumes = np.array(nodes.columnOf(table, f"{region} volume"))
        np.testing.assert_allclose(
            nodes.columnOf(table, f"{region} change"), volumes - volumes[0], atol=1e-9
        )
        assert nodes.columnOf(table, f"{region} Dice")[0] == 1.0
    assert table.GetColumnUnitLabel("WT change") == "ml"


def test_the_current_result_is_the_one_in_the_scene(run):
    assert np.array_equal(run.found.labels, mrmlScene.labelsOf(run.segmentation, BRATS))


def test_overlays_lie_where_the_scan_lies(scene, run):
    volumes = uncertainty.apply(scene, run.segmentation, run.found).volumes
    assert list(volumes) == ["entropy", "disagreement"]
    reference = mrmlScene.volumeFromNode(run.scans["t1ce"])
    for name, node in volumes.items():
        assert node.GetTransformNodeID() == run.moved.GetID()
        volume = mrmlScene.volumeFromNode(node)
        np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-6)
        assert np.array_equal(volume.array, run.found.maps[name])
        display = node.GetDisplayNode()
        assert display.GetColorNode() is not None
        assert display.GetApplyThreshold()
        assert display.GetLowerThreshold() > 0
        assert not display.GetAutoWindowLevel()


def test_the_most_uncertain_slice_is_the_one_with_the_largest_sum(scene, run):
    node = uncertainty.apply(scene, run.segmentation, run.found).volumes["entropy"]
    kji = slicer.util.arrayFromVolume(node)
    first = uncertainty.uncertainSlice(run.found)
    assert first.index == kji.sum((1, 2)).argmax()
    ijk = np.linalg.inv(mrmlScene.volumeFromNode(node).affine) @ [*first.ras, 1]
    assert ijk[2] == pytest.approx(first.index)
    assert first.share == pytest.approx(kji[first.index].sum() / kji.sum(), rel=1e-4)
    assert uncertainty.uncertainSlice(run.found, rank=1).index != first.index
    assert uncertainty.uncertainSlice(run.found, rank=first.count) == first
    assert uncertainty.uncertainSlice(run.found, "no such map") is None


def test_doing_it_again_refreshes_the_nodes(scene, run, contents):
    first = uncertainty.apply(scene, run.segmentation, run.found)
    before = contents()
    assert uncertainty.apply(scene, run.segmentation, run.found) == first
    assert contents().keys() == before.keys()
    assert uncertainty.nodesOf(scene, run.segmentation) == first


@pytest.mark.parametrize("step", ["fillTable", "_display", "matrixFromArray"])
def test_a_failure_adds_no_node(scene, run, contents, monkeypatch, step):
    def fail(*args):
        raise RuntimeError("out of luck")

    before = contents()
    monkeypatch.setattr(uncertainty, step, fail)
    with pytest.raises(RuntimeError):
        uncertainty.apply(scene, run.segmentation, run.found)
    assert contents().keys() == before.keys()


def test_a_segmentation_that_is_gone_or_was_moved_is_refused(scene, mrml, run, contents):
    run.segmentation.SetAndObserveTransformNodeID(None)
    before = contents()
    with pytest.raises(InputDataError, match="another grid or was moved"):
        uncertainty.apply(scene, run.segmentation, run.found)
    assert contents() == before
    scene.RemoveNode(run.segmentation)
    with pytest.raises(InputDataError, match="removed"):
        uncertainty.apply(scene, run.segmentation, run.found)


def test_cancelling_in_mid_run_changes_nothing(scene, run, bundle, contents):
    before = contents()
    stopped = threading.Event()
    work = uncertainty.whatIfWork(run.request, lambda: bundle, "t1ce")
    with pytest.raises(Cancelled):
        work(lambda fraction, text: stopped.set() if fraction > 0.3 else None, stopped.is_set)
    assert contents() == before


def test_everything_comes_back_after_saving_the_scene(scene, run, tmp_path):
    made = uncertainty.apply(scene, run.segmentation, run.found)
    files = {run.segmentation: "s.seg.nrrd", made.table: "t.tsv"}
    files |= {node: f"{n}.nrrd" for n, node in enumerate(made.volumes.values())}
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
    loaded = uncertainty.nodesOf(other, other.GetNodeByID(run.segmentation.GetID()))
    assert nodes.columnOf(loaded.table, "Scans") == nodes.columnOf(made.table, "Scans")
    np.testing.assert_allclose(
        nodes.columnOf(loaded.table, "WT Dice"), nodes.columnOf(made.table, "WT Dice"), rtol=1e-5
    )
    for name, node in loaded.volumes.items():
        assert node.GetAttribute(uncertainty.UNCERTAINTY) == name
        np.testing.assert_allclose(
            mrmlScene.volumeFromNode(node).array, run.found.maps[name], atol=1e-6
        )


def test_importing_needs_no_torch(repository):
    import subprocess
    import sys

    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(repository / 'MedMAPSegment')!r})\n"
        f"sys.path.insert(0, {str(repository / 'MedMAPTraining')!r})\n"
        "from MedMAPSegmentLib.mrml import nodes, reference, results, review, uncertainty\n"
        "assert 'torch' not in sys.modules and 'scipy' not in sys.modules, 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
