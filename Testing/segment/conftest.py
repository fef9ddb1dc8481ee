"""Real MRML (slicer-core from PyPI) without Slicer, Qt or a display.

Modules that need MRML begin with ``pytest.importorskip("slicer")``. With MEDMAP_REQUIRE_SLICER=1 a
missing slicer-core is a failure instead of a skip, so that continuous integration cannot lose these
tests unnoticed.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

for folder in ("MedMAPTraining", "MedMAPSegment"):
    if str(REPOSITORY / folder) not in sys.path:
        sys.path.insert(0, str(REPOSITORY / folder))

if os.environ.get("MEDMAP_REQUIRE_SLICER") == "1":
    import slicer  # noqa: F401  (fails here, loudly, when it is missing)


@dataclass(frozen=True)
class FakeProvenance:
    """The fields of ``medmap.provenance.Provenance`` that the module reads, without torch."""

    run: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(device="cpu"))
    findings: tuple = ()
    record: dict = field(default_factory=dict)

    def to_dict(self) -> dict:
        findings = [
            {"level": f.level, "check": f.check, "message": f.message, "remedy": f.remedy}
            for f in self.findings
        ]
        return {"run": {"device": self.run.device}, "findings": findings, **self.record}


@dataclass(frozen=True)
class FakeResult:
    """The fields of ``medmap.inference.Segmentation`` that the module reads, without torch."""

    labels: np.ndarray
    reference: str
    volumes_ml: dict = field(default_factory=dict)
    findings: tuple = ()
    provenance: FakeProvenance = field(default_factory=lambda: FakeProvenance())
    preparation: Any = None


@pytest.fixture
def repository() -> Path:
    return REPOSITORY


@pytest.fixture
def make_result():
    return FakeResult


@pytest.fixture
def scene():
    """A fresh vtkMRMLScene with the logics that volumes and segmentations rely on."""
    slicer = pytest.importorskip("slicer")
    scene = slicer.vtkMRMLScene()
    slicer.mrmlScene = scene  # slicer.util looks for it there
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    logics = {}
    for name, logic in (
        ("Colors", slicer.vtkMRMLColorLogic()),
        ("Volumes", slicer.vtkSlicerVolumesLogic()),
        ("Segmentations", slicer.vtkSlicerSegmentationsModuleLogic()),
    ):
        logic.SetMRMLScene(scene)
        logic.SetMRMLApplicationLogic(application)
        application.SetModuleLogic(name, logic)
        logics[name] = logic
    logics["Colors"].AddDefaultColorNodes()
    yield scene
    scene.Clear(1)
    del slicer.mrmlScene


@pytest.fixture
def mrml(scene):
    """Short hands for making MRML nodes from numpy."""
    import slicer
    import slicer.util
    import vtk

    def matrix(array):
        result = vtk.vtkMatrix4x4()
        for row, column in np.ndindex(4, 4):
            result.SetElement(row, column, float(array[row][column]))
        return result

    def volume(ijk, affine=None, name="scan"):
        """Scalar volume node with array [I, J, K]."""
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        slicer.util.updateVolumeFromArray(
            node, np.ascontiguousarray(np.asarray(ijk).transpose(2, 1, 0))
        )
        node.SetIJKToRASMatrix(matrix(np.eye(4) if affine is None else affine))
        return node

    def transform(array, parent=None):
        """Linear transform node from a [4, 4] to-parent matrix."""
        node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
        node.SetMatrixTransformToParent(matrix(array))
        if parent is not None:
            node.SetAndObserveTransformNodeID(parent.GetID())
        return node

    def warp():
        """A transform node that bends space."""
        spline = vtk.vtkThinPlateSplineTransform()
        source, target = vtk.vtkPoints(), vtk.vtkPoints()
        for n, point in enumerate(np.ndindex(2, 2, 2)):
            source.InsertNextPoint(*(20.0 * c for c in point))
            target.InsertNextPoint(*(20.0 * c + 3.0 * (n % 3) for c in point))
        spline.SetSourceLandmarks(source)
        spline.SetTargetLandmarks(target)
        spline.SetBasisToR()
        node = scene.AddNewNodeByClass("vtkMRMLTransformNode", "bent")
        node.SetAndObserveTransformToParent(spline)
        return node

    def load(path):
        """Scalar volume node read by Slicer's own NIfTI reader."""
        storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
        storage.SetFileName(str(path))
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", Path(path).name.split(".")[0])
        assert storage.ReadData(node)
        return node

    return SimpleNamespace(volume=volume, transform=transform, warp=warp, load=load, matrix=matrix)


@pytest.fixture
def contents(scene):
    """Function that lists what a scene holds: node IDs and when each was last modified."""

    def listed():
        nodes = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
        return {node.GetID(): node.GetMTime() for node in nodes}

    return listed


@pytest.fixture
def drawn(scene):
    """Function that makes a segmentation node as a person would: name -> mask."""
    from Testing.segment.tumor_nodes import drawSegmentation

    return partial(drawSegmentation, scene)


@pytest.fixture
def ours():
    """Labels of a small tumor, as a model's result."""
    from Testing.segment.tumor_nodes import tumor

    return tumor((9, 10, 8), 7)
