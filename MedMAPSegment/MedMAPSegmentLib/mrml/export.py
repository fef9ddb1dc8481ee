"""Hand-over to other systems: DICOM through Slicer's own exporters, NIfTI on the reference grid.

What a reader must know about a result (``provenance["findings"]``) goes with every object.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import slicer.util

from medmap import NOTICE
from medmap.errors import InputDataError, IOFailure, OutputError, UnavailableError
from medmap.io.atomic import atomic_path, write_text
from medmap.task import Task

from .editing import isEditedByHand, sourceVolumeOf
from .geometry import matrixFromArray
from .nodes import geometryOf
from .output_files import SIDECAR_KEY, filesOfVolumes, outputFile, sidecarOf
from .reference import labelsOn
from .scene import provenanceOf

NIFTI_ENDINGS = (".nii.gz", ".nii")
DICOM_TEXT_LIMIT = 64
"""Characters of a DICOM long string (PS3.5, value representation LO)."""


@dataclass(frozen=True)
class DicomExporter:
    """One of Slicer's DICOM plugins.

    Attributes:
        title: what it writes.
        module: its Python module.
        pluginClass: the class in it.
        extension: Slicer extension that brings it.
        takesVolume: whether it wants the image series beside the segmentation.
    """

    title: str
    module: str
    pluginClass: str
    extension: str
    takesVolume: bool = False

    @property
    def isInstalled(self) -> bool:
        """Whether Slicer has the plugin."""
        return importlib.util.find_spec(self.module) is not None

    def create(self) -> Any:
        """The plugin. Raises UnavailableError where it is not installed."""
        if not self.isInstalled:
            raise UnavailableError(
                f"Slicer's exporter for {self.title} is not installed.",
                f"Install the extension {self.extension} with the Extensions Manager.",
            )
        return getattr(importlib.import_module(self.module), self.pluginClass)()


SEGMENTATION_OBJECT = DicomExporter(
    "DICOM segmentation",
    "DICOMSegmentationPlugin",
    "DICOMSegmentationPluginClass",
    "QuantitativeReporting",
)
STRUCTURE_SET = DicomExporter(
    "RT structure set",
    "DicomRtImportExportPlugin",
    "DicomRtImportExportPluginClass",
    "SlicerRT",
    takesVolume=True,
)


def warningFindings(segmentationNode: Any) -> list[dict]:
    """What a reader of a result must know: recorded findings with ``message`` and ``remedy``."""
    findings = (provenanceOf(segmentationNode) or {}).get("findings", [])
    return [finding for finding in findings if finding.get("level") == "warning"]


def warningsOf(segmentationNode: Any) -> list[str]:
    """The same as sentences for exported objects: in English, whoever reads them elsewhere."""
    sentences = []
    for finding in warningFindings(segmentationNode):
        text = f"{finding.get('message', '')} {finding.get('remedy', '')}"
        sentences.append(text.strip())
    return sentences


def exportDicom(
    scene: Any,
    segmentationNode: Any,
    folder: str | Path,
    exporter: DicomExporter = SEGMENTATION_OBJECT,
) -> None:
    """Write a segmentation as a DICOM object, with the codes of its segments.

    Args:
        scene: vtkMRMLScene; the segmentation is placed in the study of its source volume.
        segmentationNode: vtkMRMLSegmentationNode.
        folder: existing folder that takes the files.
        exporter: what to write.

    Raises:
        UnavailableError: Slicer lacks the exporter.
        InputDataError: the source volume is gone, or nothing can be exported.
        OutputError: the folder is missing.
        IOFailure: the exporter reports a fault.
    """
    plugin = exporter.create()
    folder = Path(folder)
    if not folder.is_dir():
        raise OutputError(f"There is no folder {folder}.", "Choose an existing folder.")
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    volume = sourceVolumeOf(segmentationNode)
    if volume is None or hierarchy is None:
        raise InputDataError(
            "The volume that the segmentation lies on is no longer in the scene.",
            "Load it again and segment it.",
        )
    volumeItem = hierarchy.GetItemByDataNode(volume)
    segmentationItem = hierarchy.GetItemByDataNode(segmentationNode)
    hierarchy.SetItemParent(segmentationItem, hierarchy.GetItemParent(volumeItem))
    items = [segmentationItem]
    if exporter.takesVolume:
        items.insert(0, volumeItem)
    exportables = []
    for item in items:
        exportables.extend(plugin.examineForExport(item))
    if not exportables:
        raise InputDataError(
            f"Slicer's exporter for {exporter.title} accepts neither the segmentation nor its "
            "volume.",
            "Load the images from DICOM, segment them, and export again.",
        )
    for exportable in exportables:
        exportable.directory = str(folder)
    exportables[-1].setTag("SeriesDescription", seriesDescription(segmentationNode))
    fault = plugin.export(exportables)
    if fault:
        raise IOFailure(f"The export failed: {str(fault).rstrip('.')}.", "See Slicer's error log.")


def seriesDescription(segmentationNode: Any) -> str:
    """Series description of an exported object: short, with the most important warning, and with
    whether a person edited it.
    """
    maker = "MedMAP"
    if isEditedByHand(segmentationNode):
        maker = "MedMAP, edited by hand"
    text = f"{maker}, research use only"
    warnings = warningsOf(segmentationNode)
    if warnings:
        text = f"{maker}, WARNING: {warnings[0]}"
    if len(text) > DICOM_TEXT_LIMIT:
        text = text[: DICOM_TEXT_LIMIT - 3].rstrip() + "..."
    return text


def exportNifti(segmentationNode: Any, path: str | Path, task: Task) -> tuple[Path, Path]:
    """Write the labels on the grid of the source volume, and what made them beside the file.

    Args:
        segmentationNode: vtkMRMLSegmentationNode.
        path: file to write; ``.nii.gz`` is added to a name without an ending.
        task: values of the labels.

    Returns:
        The image and the ``.json`` file with provenance and warnings.

    Raises:
        InputDataError: the segmentation cannot be read.
        OutputError: the folder is missing or cannot be written, or the name is that of a scan of
            the scene.
        IOFailure: writing broke off.
    """
    path = outputFile(path, NIFTI_ENDINGS, filesOfVolumes(segmentationNode.GetScene()))
    sidecar = sidecarOf(path)
    # A scene of its own: nothing flashes up in the views.
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    geometry = geometryOf(segmentationNode)
    labels = labelsOn(segmentationNode, segmentationNode, task).labels
    kji = np.ascontiguousarray(labels.transpose(2, 1, 0))
    slicer.util.updateVolumeFromArray(node, kji)
    node.SetIJKToRASMatrix(matrixFromArray(geometry.local))
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetScene(scene)
    with atomic_path(path) as temporary:
        storage.SetFileName(str(temporary))
        if not storage.WriteData(node):
            raise IOFailure(f"{path.name} could not be written.", "Choose another folder.")
    write_text(sidecar, json.dumps(_record(segmentationNode, task), indent=1))
    return path, sidecar


def _record(segmentationNode: Any, task: Task) -> dict:
    labels = {str(label.value): label.title for label in task.labels}
    return {
        SIDECAR_KEY: NOTICE,
        "warnings": warningsOf(segmentationNode),
        "labels": labels,
        "edited_by_hand": isEditedByHand(segmentationNode),
        "provenance": provenanceOf(segmentationNode) or {},
    }
