"""Sample data without a download: a synthetic patient of ``medmap.phantom``, made on the user's
computer in a second.

Four skull-stripped, registered scans and the true labels, named so that ``detect`` finds the scans
and leaves the labels alone. Not a person; license-free; the same on every computer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer.util
import vtk

from medmap.errors import MedMAPError, UnavailableError
from medmap.task import BRATS, Task

from ..i18n import translator
from ..i18n.sentences import errorText

_ = translator(__file__)

CATEGORY = "MedMAP"
SAMPLE_NAME = "MedMAP phantom"
SEED = 20287
"""An enhancing tumor of 90 ml in one place, without artifacts that would need explaining."""
SHAPE, SPACING_MM = (84, 100, 84), 2.0
SYNTHETIC = "MedMAP.Synthetic"
"""Attribute of every node made here: what made it."""


@dataclass(frozen=True)
class PhantomPatient:
    """The nodes of a synthetic patient.

    Attributes:
        volumes: modality name -> vtkMRMLScalarVolumeNode.
        truth: vtkMRMLLabelMapVolumeNode with the task's file values, to review results against.
    """

    volumes: dict[str, Any]
    truth: Any

    @property
    def nodes(self) -> list:
        """All nodes, scans first."""
        return [*self.volumes.values(), self.truth]


def addPhantomPatient(
    scene: Any, seed: int = SEED, task: Task = BRATS, name: str = SAMPLE_NAME
) -> PhantomPatient:
    """Generate a patient and add it to a scene, grouped under one item of the subject hierarchy.

    Args:
        scene: vtkMRMLScene that takes the nodes.
        seed: any integer; each is another patient.
        task: titles of the modalities and values of the labels.
        name: what the nodes' names begin with.

    Raises:
        UnavailableError: PyTorch, which computes the patient, is not installed; the scene is
            unchanged.
    """
    try:
        from medmap.phantom import generate  # imports torch
        from medmap.tensors import to_array
    except ImportError as error:
        raise UnavailableError(
            "PyTorch, which computes the sample, is not installed.",
            "Install it with the PyTorch extension.",
        ) from error
    phantom = generate(seed, shape=SHAPE, spacing=SPACING_MM)
    provenance = f"medmap.phantom, seed {seed}"
    volumes = {}
    for modality in task.modalities:
        if modality.name in phantom.images:
            array = to_array(phantom.images[modality.name])
            title = f"{name} {modality.title}"
            volumes[modality.name] = _add(
                scene, "vtkMRMLScalarVolumeNode", title, array, phantom.affine, provenance
            )
    values = np.array(task.label_values(), np.uint8)[to_array(phantom.label)]
    truthName = _("{name} truth").format(name=name)
    truth = _add(scene, "vtkMRMLLabelMapVolumeNode", truthName, values, phantom.affine, provenance)
    patient = PhantomPatient(volumes, truth)
    _group(scene, patient.nodes, name)
    return patient


def registerSampleData(
    sampleDataLogic: Any,
    iconPath: str,
    scene: Any,
    *,
    ready: Callable[[], bool] | None = None,
    loaded: Callable[[PhantomPatient], None] | None = None,
    failed: Callable[[str], None] | None = None,
) -> Callable[..., list]:
    """Offer the synthetic patient in Slicer's Sample Data module; nothing is computed before the
    user clicks it.

    Args:
        sampleDataLogic: ``SampleData.SampleDataLogic`` (the class will do).
        iconPath: picture of about 260 x 280 pixels.
        scene: ``slicer.mrmlScene``.
        ready: makes sure that PyTorch is there, asking the user if need be; the click does nothing
            when it says False.
        loaded: called with the patient, to show it.
        failed: called with a message for the user; None only logs it.

    Returns:
        The function that a click calls; it returns the nodes.
    """

    def download(source: Any = None) -> list:
        try:
            if ready is not None and not ready():
                return []
            patient = addPhantomPatient(scene)
        except MedMAPError as error:
            (failed or logging.error)(errorText(error))
            return []
        if loaded is not None:
            loaded(patient)
        return patient.nodes

    sampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=SAMPLE_NAME,
        # Slicer insists on one entry each, although a source with a downloader of its own uses none
        # of them.
        uris="medmap:phantom",
        fileNames=SAMPLE_NAME,
        nodeNames=SAMPLE_NAME,
        customDownloader=download,
        thumbnailFileName=iconPath,
    )
    return download


def _add(
    scene: Any, className: str, name: str, ijk: np.ndarray, affine: np.ndarray, made: str
) -> Any:
    node = scene.AddNewNodeByClass(className, scene.GenerateUniqueName(name))
    matrix = vtk.vtkMatrix4x4()
    for row, column in np.ndindex(4, 4):
        matrix.SetElement(row, column, float(affine[row, column]))
    node.SetIJKToRASMatrix(matrix)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(ijk.transpose(2, 1, 0)))
    node.SetAttribute(SYNTHETIC, made)
    node.CreateDefaultDisplayNodes()
    return node


def _group(scene: Any, nodes: list, name: str) -> None:
    """Put nodes under one study item, if the scene has a subject hierarchy."""
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    if hierarchy is None:
        return
    study = hierarchy.CreateStudyItem(
        hierarchy.GetSceneItemID(), hierarchy.GenerateUniqueItemName(name)
    )
    for node in nodes:
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, study)
        else:
            hierarchy.CreateItem(study, node)
