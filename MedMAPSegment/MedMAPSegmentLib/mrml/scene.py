"""MRML on one side, ``medmap.Volume`` and label arrays on the other. The only file that touches
MRML nodes.

Slicer indexes arrays (k, j, i), medmap (i, j, k). Arrays are copied on the way in, so that a worker
thread never shares memory with the scene. Everything here runs on the main thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import slicer.util
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from medmap.checks import Finding, replace_not_finite
from medmap.errors import InputDataError, InternalError
from medmap.task import Task
from medmap.volume import Grid, Volume

from ..i18n.sentences import sentence
from .fingerprints import fingerprint
from .geometry import ijkToRAS, parentToWorld
from .storage import checkFile
from .terminology import terminologyEntry

if TYPE_CHECKING:
    from medmap.inference import Segmentation


PROVENANCE = "MedMAP.Provenance"
MADE_LABELS = "MedMAP.Labels"
"""Attribute, and tag on every segment: fingerprint of the labels as the model made them."""
MADE_BY = "MedMAP.Label"
"""Tag on every segment that this module makes: the label's name. Tells them from segments that a
person made.
"""


def volumeFromNode(node: Any) -> Volume:
    """Copy a scalar volume node, placed in the world as the user sees it.

    Args:
        node: vtkMRMLScalarVolumeNode, possibly under a chain of linear transforms.

    Returns:
        Volume with array [I, J, K] float32, affine = parent-to-world @ IJKToRAS, and the node's ID
        as name; a note when voxels that are NaN or infinite were replaced, as reading a file does.

    Raises:
        InputDataError: no voxels, several values per voxel, too many that are no numbers, a
            non-linear transform, or a NIfTI file behind the node that says otherwise
            (``storage.checkFile``).
    """
    if shapeOf(node) is None:
        raise InputDataError(
            f"The volume '{node.GetName()}' has no voxels.", "Choose another volume."
        )
    if node.GetImageData().GetNumberOfScalarComponents() != 1:
        raise InputDataError(
            f"The volume '{node.GetName()}' has "
            f"{node.GetImageData().GetNumberOfScalarComponents()} values per voxel.",
            "Choose a volume with one value per voxel.",
        )
    kji = slicer.util.arrayFromVolume(node)
    ijk = np.array(kji.transpose(2, 1, 0), dtype=np.float32, order="C", copy=True)
    ijk, notes = replace_not_finite(ijk, node.GetName())
    path = storedFile(node)
    if path is not None:
        checkFile(path, node.GetName(), ijk, Grid(ijk.shape, ijkToRAS(node)))
    return Volume(ijk, parentToWorld(node) @ ijkToRAS(node), name=node.GetID(), notes=notes)


def storedFile(node: Any) -> Path | None:
    """The file that a node was read from; None without one, or if the node changed since."""
    storage = node.GetStorageNode()
    name = storage.GetFullNameFromFileName() if storage is not None else None
    return Path(name) if name and not node.GetModifiedSinceRead() else None


def shapeOf(node: Any) -> tuple[int, int, int] | None:
    """Voxels along i, j, k; None when the node holds no image."""
    image = node.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        return None
    return tuple(image.GetDimensions())


def foreignSegments(node: Any) -> list[str]:
    """Names of the segments of a segmentation node that this module did not make."""
    segmentation = node.GetSegmentation()
    segments = [segmentation.GetNthSegment(n) for n in range(segmentation.GetNumberOfSegments())]
    return [segment.GetName() for segment in segments if not segment.HasTag(MADE_BY)]


def segmentationFromResult(
    scene: Any, referenceNode: Any, result: Segmentation, task: Task, node: Any = None
) -> Any:
    """Put a result into the scene as a segmentation node with one segment per label of the task.

    The node gets the geometry and parent transform of the reference volume, lies beside it in the
    subject hierarchy, and carries the provenance as node attribute and as segment tags (only tags
    survive in a ``.seg.nrrd`` file).

    Args:
        scene: vtkMRMLScene that takes the node.
        referenceNode: volume node on whose voxel grid the labels lie.
        result: ``medmap.inference.Segmentation``; used are ``labels`` uint8 [I, J, K] with file
            label values and ``provenance``.
        task: gives names, colors and codes of the labels.
        node: vtkMRMLSegmentationNode whose segments are replaced; None makes a new one.

    Returns:
        The vtkMRMLSegmentationNode.

    Raises:
        InputDataError: the labels do not fit the reference volume, or ``node`` holds segments made
            by someone else.
        The scene is unchanged then, as it is after any other exception.
    """
    _refuseForeign(node)
    segments = _segments(referenceNode, result, task)
    record = result.provenance.to_dict()
    if result.preparation is not None:
        record["preparation"] = result.preparation.to_dict()
    provenance = _provenanceText(record)
    for segment in segments.values():
        segment.SetTag(PROVENANCE, provenance)
    isNewNode = node is None
    restore: Callable[[], None]
    if isNewNode:
        name = scene.GenerateUniqueName(f"{referenceNode.GetName()} - MedMAP")
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        restore = partial(removeWithDisplay, scene, node)
    else:
        restore = snapshot(node)
    try:
        _fill(scene, node, referenceNode, segments)
        node.SetAttribute(PROVENANCE, provenance)
        _recordLabels(node)
    except Exception:
        restore()
        raise
    return node


def _recordLabels(node: Any) -> None:
    """Note what the labels are, so that edits made later can be told."""
    labels = fingerprint(node)
    node.SetAttribute(MADE_LABELS, labels)
    segmentation = node.GetSegmentation()
    for number in range(segmentation.GetNumberOfSegments()):
        segmentation.GetNthSegment(number).SetTag(MADE_LABELS, labels)


def madeLabelsOf(node: Any) -> str:
    """Fingerprint of the labels as the model made them; empty where it is not recorded."""
    return _recordOf(node, MADE_LABELS) or ""


def provenanceOf(node: Any) -> dict | None:
    """Provenance of a segmentation node: from its attribute, or from a segment's tag when it came
    from a file.
    """
    text = _recordOf(node, PROVENANCE)
    return None if text is None else json.loads(text)


def _recordOf(node: Any, name: str) -> str | None:
    """Attribute of a segmentation node, or the tag of a segment: only tags survive in files."""
    text = node.GetAttribute(name)
    segmentation = node.GetSegmentation()
    for number in range(segmentation.GetNumberOfSegments()):
        tag = vtk.reference("")
        if text is None and segmentation.GetNthSegment(number).GetTag(name, tag):
            text = str(tag)
    return text


def addFindings(node: Any, findings: Iterable[Finding]) -> bool:
    """Add to the provenance of a segmentation what became known after it was made.

    Args:
        node: vtkMRMLSegmentationNode; nothing is added where it has no provenance.
        findings: those that it has already are left out.

    Returns:
        Whether anything was added.
    """
    record = provenanceOf(node)
    if record is None:
        return False
    recorded = list(record.get("findings", []))
    messages = {finding.get("message") for finding in recorded}
    added = []
    for finding in findings:
        if finding.message not in messages:
            added.append(asdict(finding))
    if not added:
        return False
    # In front, as what preparing had to say: an export has room for the first warning only.
    record["findings"] = [*added, *recorded]
    text = _provenanceText(record)
    node.SetAttribute(PROVENANCE, text)
    segmentation = node.GetSegmentation()
    for number in range(segmentation.GetNumberOfSegments()):
        segmentation.GetNthSegment(number).SetTag(PROVENANCE, text)
    return True


def labelsOf(node: Any, task: Task) -> np.ndarray:
    """Label array [I, J, K] of the task's type with file label values, on the reference geometry
    that the node carries.

    Raises:
        InputDataError: a segment of the task is missing.
    """
    segmentation = node.GetSegmentation()
    geometry = slicer.vtkOrientedImageData()
    text = segmentation.GetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    )
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, geometry, False)
    labels = np.zeros(geometry.GetDimensions(), task.label_dtype)
    for label in task.labels:
        image = slicer.vtkOrientedImageData()
        if not node.GetBinaryLabelmapRepresentation(label.name, image):
            raise InputDataError(
                f"The segmentation has no segment '{label.name}'.", "Press Apply again."
            )
        labels[_pasted(image, labels.shape)] = label.value
    return labels


def _pasted(image: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Mask [I, J, K] of an oriented image whose extent is a part of the reference extent."""
    mask = np.zeros(shape, bool)
    first, size = image.GetExtent()[::2], image.GetDimensions()
    if min(size) > 0:
        values = vtk_to_numpy(image.GetPointData().GetScalars())
        part = values.reshape(size[::-1]).transpose(2, 1, 0) > 0
        mask[tuple(slice(f, f + n) for f, n in zip(first, size, strict=True))] = part
    return mask


def _refuseForeign(node: Any) -> None:
    foreign = foreignSegments(node) if node is not None else []
    if foreign:
        raise InputDataError(
            f"The segmentation '{node.GetName()}' holds segments that MedMAP did not make "
            f"({', '.join(foreign)}).",
            "Choose another output, or leave it empty to create a new segmentation.",
        )


def _segments(referenceNode: Any, result: Segmentation, task: Task) -> dict:
    """One vtkSegment per label, keyed by label name; all share one label image, as Slicer's own
    layers do.
    """
    labels = np.asarray(result.labels)
    if labels.shape != shapeOf(referenceNode):
        raise InputDataError(
            f"The volume '{referenceNode.GetName()}' now has the shape {shapeOf(referenceNode)}, "
            f"but {labels.shape} when the computation began.",
            "Press Apply again.",
        )
    image = _labelImage(referenceNode, labels)
    segments = {}
    for label in task.labels:
        segment = slicer.vtkSegment()
        segment.SetName(sentence(label.title))
        segment.SetColor(*(c / 255.0 for c in label.color))
        segment.SetTag(MADE_BY, label.name)
        entry = terminologyEntry(label)
        if entry is not None:
            segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), entry)
        segment.SetLabelValue(label.value)
        segment.AddRepresentation(_binaryLabelmapName(), image)
        segments[label.name] = segment
    return segments


def _binaryLabelmapName() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _labelImage(referenceNode: Any, labels: np.ndarray) -> Any:
    """vtkOrientedImageData of the labels in the reference's own RAS, that is before its parent
    transform.
    """
    matrix = vtk.vtkMatrix4x4()
    referenceNode.GetIJKToRASMatrix(matrix)
    image = slicer.vtkOrientedImageData()
    image.SetExtent(*referenceNode.GetImageData().GetExtent())
    image.SetImageToWorldMatrix(matrix)
    # Hearts have labels up to 2221: the type of the labels decides, bytes or shorts.
    kji = np.ascontiguousarray(labels.transpose(2, 1, 0))
    scalars = numpy_to_vtk(kji.ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def _fill(scene: Any, node: Any, referenceNode: Any, segments: dict) -> None:
    segmentation = node.GetSegmentation()
    wasModified = node.StartModify()
    try:
        node.CreateDefaultDisplayNodes()
        node.SetAndObserveTransformNodeID(referenceNode.GetTransformNodeID())
        segmentation.RemoveAllSegments()
        segmentation.SetSourceRepresentationName(_binaryLabelmapName())
        # After the transform, because Slicer stores the geometry relative to the node's own parent.
        node.SetReferenceImageGeometryParameterFromVolumeNode(referenceNode)
        # The reference is what DICOM Segmentation export asks for.
        node.SetNodeReferenceID(
            node.GetReferenceImageGeometryReferenceRole(), referenceNode.GetID()
        )
        for name, segment in segments.items():
            if not segmentation.AddSegment(segment, name):
                raise InternalError(
                    f"Slicer did not accept the segment '{name}'.", "Please report it."
                )
        placeBeside(scene, node, referenceNode)
    finally:
        node.EndModify(wasModified)


def placeBeside(scene: Any, node: Any, referenceNode: Any) -> None:
    """Give the node the reference's parent in the subject hierarchy, if there is one."""
    if scene.GetNumberOfNodesByClass("vtkMRMLSubjectHierarchyNode") == 0:
        return
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    nothing = hierarchy.GetInvalidItemID()
    referenceItem = hierarchy.GetItemByDataNode(referenceNode)
    if referenceItem == nothing:
        return
    parent = hierarchy.GetItemParent(referenceItem)
    item = hierarchy.GetItemByDataNode(node)
    if item == nothing:
        hierarchy.CreateItem(parent, node)
    else:
        hierarchy.SetItemParent(item, parent)


def snapshot(node: Any) -> Callable[[], None]:
    """Function that puts a segmentation node back to what it holds now."""
    segmentation = slicer.vtkSegmentation()
    segmentation.DeepCopy(node.GetSegmentation())
    role = node.GetReferenceImageGeometryReferenceRole()
    transform, reference = node.GetTransformNodeID(), node.GetNodeReferenceID(role)
    provenance = node.GetAttribute(PROVENANCE)
    labels = node.GetAttribute(MADE_LABELS)

    def restore() -> None:
        node.GetSegmentation().DeepCopy(segmentation)
        node.SetAndObserveTransformNodeID(transform)
        node.SetNodeReferenceID(role, reference)
        node.SetAttribute(PROVENANCE, provenance)
        node.SetAttribute(MADE_LABELS, labels)

    return restore


def takeBack(scene: Any, node: Any, restore: Callable[[], None] | None = None) -> Any:
    """Undo ``segmentationFromResult``.

    Args:
        scene: vtkMRMLScene of the node.
        node: what it returned.
        restore: ``snapshot`` of the node from before, if it was there before.

    Returns:
        The node with its former segments, or None when it is gone: removed now, or by somebody else
            before.
    """
    if not scene.IsNodePresent(node):
        return None
    if restore is not None:
        restore()
        return node
    removeWithDisplay(scene, node)
    return None


def removeWithDisplay(scene: Any, node: Any) -> None:
    """Remove a node together with its display nodes."""
    if node.IsA("vtkMRMLDisplayableNode"):
        count = node.GetNumberOfDisplayNodes()
        for display in [node.GetNthDisplayNode(number) for number in range(count)]:
            if display is not None:
                scene.RemoveNode(display)
    scene.RemoveNode(node)


def _provenanceText(provenance: dict) -> str:
    """JSON in one line of ASCII without ``|``, which separates tags in ``.seg.nrrd`` files."""
    return json.dumps(provenance, sort_keys=True).replace("|", "\\u007c")
