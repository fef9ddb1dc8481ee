"""Detection of the modality of a scene's volumes: MRML nodes in, ``medmap.detection`` decides.

Nothing in the scene changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from medmap.detection.modality_detection import Detection, SeriesEvidence, detect_modalities
from medmap.task import Task

from .nodes import ROLE

TAGS = {
    "SeriesDescription": "0008,103E",
    "ProtocolName": "0018,1030",
    "ContrastBolusAgent": "0018,0010",
    "Modality": "0008,0060",
    "ImageType": "0008,0008",
    "PatientAge": "0010,1010",
}
"""DICOM attributes that are read, by keyword."""

TagLookup = Callable[[Any], Mapping[str, str]]


def volumesOf(scene: Any) -> list:
    """Every scalar volume node of a scene that a user sees, in scene order.

    Volumes that the panel derived from a result are no scans of the patient: a prepared T1 would
    compete with the T1 that it was made from.
    """
    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    nodes = [scene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode") for n in range(count)]
    return [
        node for node in nodes if not node.GetHideFromEditors() and node.GetAttribute(ROLE) is None
    ]


def detectModalities(nodes: Iterable[Any], task: Task, tags: TagLookup | None = None) -> Detection:
    """Find the volumes for a task's slots.

    Args:
        nodes: volume nodes, as from ``volumesOf``; others are rejected with a reason.
        task: its modalities are the slots.
        tags: gives DICOM values of a node by keyword (see ``TAGS``); attributes of the node and of
            its item in the subject hierarchy (``DICOM.<keyword>``) are read anyway.

    Returns:
        Clear candidates, questions, and rejected series; ``series.source`` is the node of each.
    """
    return detect_modalities([evidenceOf(node, tags) for node in nodes], task)


def evidenceOf(node: Any, tags: TagLookup | None = None) -> SeriesEvidence:
    """Names and DICOM attributes of a volume node."""
    unusable = _unusable(node)
    if unusable:
        return SeriesEvidence(node.GetName() or "", unusable=unusable, source=node)
    dicom = _dicom(node, tags)
    return SeriesEvidence(
        name=node.GetName() or "",
        description=dicom.get("SeriesDescription", ""),
        protocol=dicom.get("ProtocolName", ""),
        contrast_agent=dicom.get("ContrastBolusAgent", ""),
        image_type=dicom.get("ImageType", ""),
        scanner=dicom.get("Modality", ""),
        source=node,
    )


def databaseTags(database: Any) -> TagLookup:
    """``tags`` for ``detectModalities`` from Slicer's DICOM database (``slicer.dicomDatabase``)."""

    def lookUp(node: Any) -> dict[str, str]:
        instances = (node.GetAttribute("DICOM.instanceUIDs") or "").split()
        path = database.fileForInstance(instances[0]) if instances else ""
        if not path:
            return {}
        return {keyword: database.fileValue(path, tag) for keyword, tag in TAGS.items()}

    return lookUp


def _unusable(node: Any) -> str:
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        return "not a volume"
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return "a label map"
    if node.GetClassName() != "vtkMRMLScalarVolumeNode":
        return "several values per voxel"
    return ""


def _dicom(node: Any, tags: TagLookup | None) -> dict[str, str]:
    """DICOM values by keyword; the node's attributes and its item's win over the lookup."""
    values = {}
    if tags is not None:
        for keyword, value in tags(node).items():
            if value:
                values[keyword] = str(value)
    hierarchy: Any = None
    item = 0
    if node.GetScene() is not None:
        hierarchy = node.GetScene().GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    if hierarchy is not None:
        item = hierarchy.GetItemByDataNode(node)
    for keyword in TAGS:
        name = f"DICOM.{keyword}"
        attribute = hierarchy.GetItemAttribute(item, name) if item else ""
        value = node.GetAttribute(name) or attribute
        if value:
            values[keyword] = value
    return values
