"""The sample patient is made on the spot, loads as ordinary volumes, and is detected."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from medmap.task import BRATS

pytest.importorskip("slicer")
pytest.importorskip("torch")

import medmap.phantom
from MedMAPSegmentLib.expected_performance import expectedPerformance
from MedMAPSegmentLib.inputs import readSlots
from MedMAPSegmentLib.mrml import sample
from MedMAPSegmentLib.mrml.geometry_checks import checkGeometry
from MedMAPSegmentLib.mrml.modality_detection import detectModalities, volumesOf
from MedMAPSegmentLib.mrml.sample import addPhantomPatient, registerSampleData
from MedMAPSegmentLib.mrml.scene import volumeFromNode

_generate = medmap.phantom.generate


class Source:
    """A sample data source as strict as Slicer's: one entry each of addresses, file names and node
    names.
    """

    def __init__(self, uris, fileNames, nodeNames, **others):
        assert all(isinstance(given, str) for given in (uris, fileNames, nodeNames))
        self.__dict__.update(others)


class Logic:
    """``SampleData.SampleDataLogic`` with the arguments that Slicer 5.10 and later document."""

    sources: ClassVar[dict] = {}

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileType="VolumeFile",
        loadFiles=None,
        loadFileProperties=None,
        checksums=None,
    ):
        source = Source(
            uris,
            fileNames,
            nodeNames,
            customDownloader=customDownloader,
            thumbnail=thumbnailFileName,
        )
        Logic.sources[category, sampleName] = source


@lru_cache(maxsize=1)
def generatedOnce(seed, **options):
    return _generate(seed, **options)


@pytest.fixture
def patient(scene, monkeypatch):
    monkeypatch.setattr(medmap.phantom, "generate", generatedOnce)
    return addPhantomPatient(scene)


def test_four_scans_and_the_truth_lie_on_one_grid(patient):
    assert list(patient.volumes) == list(BRATS.modality_names)
    grids = [volumeFromNode(node).grid for node in patient.nodes]
    assert all(grid.distance(grids[0]) == 0 for grid in grids)
    assert np.allclose(grids[0].spacing, 2.0)
    assert np.allclose(grids[0].corners().mean(axis=0), 0)


def test_the_truth_has_the_values_of_the_tasks_files(patient):
    values = volumeFromNode(patient.truth).array
    assert patient.truth.IsA("vtkMRMLLabelMapVolumeNode")
    assert set(np.unique(values)) == set(BRATS.label_values())
    for value in BRATS.label_values()[1:]:
        assert np.count_nonzero(values == value) * 0.008 > 5  # ml


def test_enhancing_tumor_is_bright_in_t1ce_and_edema_in_flair(patient):
    truth = volumeFromNode(patient.truth).array
    mean = {
        n: [float(volumeFromNode(v).array[truth == k].mean()) for k in (1, 2, 4)]
        for n, v in patient.volumes.items()
    }
    brain = {
        n: float(volumeFromNode(v).array[(truth == 0) & (volumeFromNode(v).array > 0)].mean())
        for n, v in patient.volumes.items()
    }
    assert mean["t1ce"][2] > 1.2 * mean["t1ce"][1]
    assert mean["t1ce"][2] > brain["t1ce"]
    assert mean["flair"][1] > 1.1 * brain["flair"]


def test_the_detection_finds_the_scans_and_leaves_the_truth_alone(scene, patient):
    detection = detectModalities(volumesOf(scene), BRATS)
    assert {name: c.series.source for name, c in detection.assigned.items()} == patient.volumes
    assert not detection.questions
    assert [series.source for series, _ in detection.rejected] == [patient.truth]


def test_from_the_sample_to_a_ready_panel_without_a_word_of_warning(scene, patient):
    detection = detectModalities(volumesOf(scene), BRATS)
    inputs = readSlots(BRATS, {name: c.series.source for name, c in detection.assigned.items()})
    assert inputs.problems == inputs.warnings == ()
    assert checkGeometry(inputs.used, BRATS).findings == ()
    assert expectedPerformance(BRATS, {}, inputs.used).warnings == ()


def test_it_is_the_same_every_time_and_loads_twice_without_a_clash(scene, patient, monkeypatch):
    monkeypatch.undo()
    again = addPhantomPatient(scene)
    for name, node in patient.volumes.items():
        assert np.array_equal(volumeFromNode(node).array, volumeFromNode(again.volumes[name]).array)
    names = [node.GetName() for node in (*patient.nodes, *again.nodes)]
    assert len(set(names)) == 10
    assert {q.modality for q in detectModalities(volumesOf(scene), BRATS).questions} == set(
        BRATS.modality_names
    )


def test_the_nodes_say_that_they_are_synthetic_and_lie_together(scene, patient):
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    parents = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) for node in patient.nodes}
    assert len(parents) == 1
    assert hierarchy.GetItemName(parents.pop()).startswith("MedMAP phantom")
    assert all(
        "medmap.phantom, seed" in node.GetAttribute(sample.SYNTHETIC) for node in patient.nodes
    )


def test_a_scene_without_a_subject_hierarchy_will_do(scene, monkeypatch):
    monkeypatch.setattr(medmap.phantom, "generate", generatedOnce)
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    if hierarchy is not None:
        scene.RemoveNode(hierarchy)
    assert len(addPhantomPatient(scene).nodes) == 5


class TestSampleData:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch):
        monkeypatch.setattr(medmap.phantom, "generate", generatedOnce)

    def test_registering_computes_nothing_and_a_click_loads_the_patient(self, scene, contents):
        before = contents()
        seen = []
        registerSampleData(Logic, "/icon.png", scene, ready=lambda: True, loaded=seen.append)
        assert contents() == before
        source = Logic.sources["MedMAP", "MedMAP phantom"]
        assert source.thumbnail == "/icon.png"
        nodes = source.customDownloader(source)
        assert len(nodes) == 5
        assert seen[0].nodes == nodes

    def test_the_logic_may_be_an_instance(self, scene):
        assert len(registerSampleData(Logic(), "", scene)()) == 5

    def test_nothing_is_loaded_when_the_user_does_not_want_pytorch(self, scene, contents):
        before = contents()
        assert registerSampleData(Logic, "", scene, ready=lambda: False)() == []
        assert contents() == before

    def test_without_pytorch_the_user_is_told(self, scene, contents, monkeypatch):
        monkeypatch.setitem(sys.modules, "medmap.phantom", None)
        before, said = contents(), []
        assert registerSampleData(Logic, "", scene, failed=said.append)() == []
        assert "PyTorch, which computes the sample, is not installed." in said[0]
        assert contents() == before


def test_making_the_sample_needs_nothing_but_torch_and_numpy():
    code = (
        "import sys, medmap.phantom as p; p.generate(1, shape=(24, 24, 24), spacing=8.0); "
        "print(*sys.modules)"
    )
    path = str(Path(__file__).resolve().parents[2] / "MedMAPTraining")
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {name.split(".")[0] for name in run.stdout.split()}
    assert "torch" in modules
    assert not modules & {"monai", "nibabel", "torchvision", "scipy", "matplotlib", "slicer"}
