"""Someone's segmentation, whatever its form and grid, as labels of the task on the grid of ours.

What its parts are taken for is decided in ``reference_parts``; nothing in the scene changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk

from medmap.checks import Finding
from medmap.errors import InputDataError
from medmap.task import Region, Task

from ..i18n.sentences import sentence
from .geometry import arrayFromMatrix, matrixFromArray
from .nodes import ROLE, Geometry, geometryOf, linearPart, resampledNearest
from .reference_parts import BY_HAND, Source, isLabelVolume, readingOf, sources, targets
from .scene import MADE_BY


@dataclass(frozen=True)
class OnGrid:
    """A segmentation brought to a grid.

    Attributes:
        labels: [I, J, K] uint8 label values of the task's files.
        geometry: that grid.
        regions: regions that the segmentation says something about.
        sources: what was taken for what.
        findings: what a reader must know.
        reading: how label values were read, and why; empty for segments with names.
    """

    labels: np.ndarray
    geometry: Geometry
    regions: tuple[str, ...]
    sources: tuple[Source, ...]
    findings: tuple[Finding, ...]
    reading: str = ""


def referenceCandidates(scene: Any) -> list[Any]:
    """Label volumes and segmentations of a scene that somebody else made, in scene order."""
    candidates = []
    for className in ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode"):
        for number in range(scene.GetNumberOfNodesByClass(className)):
            node = scene.GetNthNodeByClass(number, className)
            if not node.GetHideFromEditors() and node.GetAttribute(ROLE) is None:
                candidates.append(node)
    return [node for node in candidates if not isResult(node)]


def isResult(node: Any) -> bool:
    """True for a segmentation that this module made."""
    if node is None or not node.IsA("vtkMRMLSegmentationNode"):
        return False
    segmentation = node.GetSegmentation()
    count = segmentation.GetNumberOfSegments()
    segments = [segmentation.GetNthSegment(number) for number in range(count)]
    return any(segment.HasTag(MADE_BY) for segment in segments)


def labelsOn(
    node: Any,
    segmentationNode: Any,
    task: Task,
    override: Mapping[str, str] | None = None,
    convention: str = "",
) -> OnGrid:
    """Bring a segmentation to the grid of ours, by nearest voxel, in the world, that is with parent
    transforms.

    Args:
        node: the reference: vtkMRMLSegmentationNode or label volume, on any grid, under transforms
            of any kind.
        segmentationNode: the segmentation whose reference geometry gives the grid (may be ``node``
            itself).
        task: labels and regions.
        override: see ``reference_parts.sources``.
        convention: see ``reference_parts.sources``.

    Raises:
        InputDataError: the grid is not known, or nothing in the reference is understood (the
            message names it).
        UsageError: see ``reference_parts.sources``.
    """
    geometry = geometryOf(segmentationNode)
    allSources = sources(node, task, override, convention)
    used = [s for s in allSources if s.target]
    if not used and allSources:
        names = ", ".join(f"'{s.title}'" for s in allSources)
        raise InputDataError(
            f"No part of the reference '{node.GetName()}' was recognized: {names}.",
            f"Assign its parts by hand to {', '.join(targets(task))}.",
        )
    parent = segmentationNode.GetParentTransformNode()
    masks: Iterable[tuple[Source, np.ndarray]]
    if isLabelVolume(node):
        values = _volumeOn(node, segmentationNode, geometry)
        masks = [(s, values == int(s.key)) for s in used]
    else:
        masks = _segmentsOn(node, geometry, parent, used)
    labels, overlapping = _painted(masks, geometry.shape, task)
    regions, findings = _coverage(node, allSources, task)
    if overlapping:
        names = ", ".join(overlapping)
        message = f"Segments of '{node.GetName()}' overlap ({names}); the later label was taken."
        findings.append(
            Finding("warning", "reference", message, "Remove the overlap in the Segment Editor.")
        )
    reading = ""
    if any(source.reason != BY_HAND for source in allSources):
        reading = readingOf(node, task, convention)
    return OnGrid(labels, geometry, regions, allSources, tuple(findings), reading)


def resampledVolume(node: Any, segmentationNode: Any, geometry: Geometry) -> np.ndarray:
    """Nearest voxel of a volume node at each voxel of a segmentation's grid; 0 outside.

    Args:
        node: scalar volume node on any grid, under transforms of any kind.
        segmentationNode: the segmentation that carries the grid.
        geometry: that grid.

    Returns:
        [I, J, K] of the volume's scalar type.
    """
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    parent = node.GetParentTransformNode()
    gridParent = segmentationNode.GetParentTransformNode()
    return resampledNearest(
        node.GetImageData(), arrayFromMatrix(matrix), parent, geometry, gridParent
    )


def _volumeOn(node: Any, segmentationNode: Any, geometry: Geometry) -> np.ndarray:
    values = resampledVolume(node, segmentationNode, geometry)
    if values.dtype.kind == "f":
        return np.round(values).astype(int)
    return values


def _segmentsOn(
    node: Any, geometry: Geometry, parent: Any, used: Sequence[Source]
) -> Iterator[tuple[Source, np.ndarray]]:
    """Pairs (source, mask) of the used segments, one at a time, so that memory stays small."""
    copy = _withLabelmaps(node, geometry, parent)
    for source in used:
        segment = copy.GetSegment(source.key)
        shared = segment.GetRepresentation(_binaryName())
        mask = np.zeros(geometry.shape, bool)
        if (
            shared is not None
            and shared.GetNumberOfPoints() > 0
            and shared.GetPointData().GetScalars() is not None
        ):
            matrix = vtk.vtkMatrix4x4()
            shared.GetImageToWorldMatrix(matrix)
            layer = resampledNearest(
                shared, arrayFromMatrix(matrix), node.GetParentTransformNode(), geometry, parent
            )
            mask = layer == segment.GetLabelValue()
        yield source, mask


def _withLabelmaps(node: Any, geometry: Geometry, parent: Any) -> Any:
    """The node's segmentation, or a copy with label maps where it has only surfaces: inputs are
    never changed.
    """
    segmentation = node.GetSegmentation()
    if segmentation.GetNumberOfSegments() == 0 or segmentation.ContainsRepresentation(
        _binaryName()
    ):
        return segmentation
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(segmentation)
    between = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(
        parent, node.GetParentTransformNode(), between
    )
    linear = linearPart(between)
    if linear is not None:
        image = slicer.vtkOrientedImageData()
        image.SetExtent(*(v for n in geometry.shape for v in (0, n - 1)))
        image.SetImageToWorldMatrix(matrixFromArray(linear @ geometry.local))
        converter = slicer.vtkSegmentationConverter
        copy.SetConversionParameter(
            converter.GetReferenceImageGeometryParameterName(),
            converter.SerializeImageGeometry(image),
        )
    if not copy.CreateRepresentation(_binaryName()):
        raise InputDataError(
            f"The segments of '{node.GetName()}' cannot be converted to a label map.",
            "Create a binary label map representation in the Segmentations module.",
        )
    return copy


def _binaryName() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _painted(
    masks: Iterable[tuple[Source, np.ndarray]], shape: tuple[int, int, int], task: Task
) -> tuple[np.ndarray, list[str]]:
    """Labels from masks of labels and regions: regions first, large ones below, each as what only
    it has.
    """
    values = {label.name: label.value for label in task.labels}
    regions = {r.name: r for r in task.regions if r.name not in values}
    targetMasks: dict[str, np.ndarray] = {}
    for source, mask in masks:
        if source.target in targetMasks:
            mask = targetMasks[source.target] | mask
        targetMasks[source.target] = mask
    labels = np.zeros(shape, task.label_dtype)
    labeledVoxels = np.zeros(shape, bool)
    overlapping = []
    regionNames = [name for name in targetMasks if name in regions]
    for name in sorted(regionNames, key=lambda n: -len(regions[n].labels)):
        labels[targetMasks[name]] = values[_own(regions[name], task)]
    for name in (n for n in values if n in targetMasks):
        if (labeledVoxels & targetMasks[name]).any():
            overlapping.append(name)
        labels[targetMasks[name]] = values[name]
        labeledVoxels |= targetMasks[name]
    return labels, overlapping


def _own(region: Region, task: Task) -> str:
    """The label that a region has and no smaller region inside it: ED for WT, NCR for TC."""
    inner = {n for r in task.regions if set(r.labels) < set(region.labels) for n in r.labels}
    return next((name for name in region.labels if name not in inner), region.labels[0])


def _coverage(
    node: Any, parts: Sequence[Source], task: Task
) -> tuple[tuple[str, ...], list[Finding]]:
    """Which regions the reference defines, and what a reader must know."""
    used = {part.target for part in parts if part.target}
    findings = _ignoredParts(node, parts)
    if used <= {label.name for label in task.labels}:
        # A label map has each label, if only in no voxel.
        if not isLabelVolume(node):
            findings += _absentLabels(node, used, task)
        return tuple(region.name for region in task.regions), findings
    covered = []
    uncovered = []
    for region in task.regions:
        if _isCovered(region, used, task):
            covered.append(region.name)
        else:
            uncovered.append(region.name)
    if uncovered:
        findings.append(_uncoveredRegions(node, uncovered))
    return tuple(covered), findings


def _ignoredParts(node: Any, parts: Sequence[Source]) -> list[Finding]:
    ignored = [part.title for part in parts if not part.target]
    if not ignored:
        return []
    message = f"Ignored in the reference '{node.GetName()}': {', '.join(ignored)}."
    return [Finding("info", "reference", message, "Assign these parts by hand if they matter.")]


def _absentLabels(node: Any, used: set[str], task: Task) -> list[Finding]:
    absent = [sentence(label.title) for label in task.labels if label.name not in used]
    if not absent:
        return []
    titles = ", ".join(absent)
    message = f"The reference '{node.GetName()}' has no segment for {titles}: counted as empty."
    return [Finding("warning", "reference", message, "Assign a segment by hand if there is one.")]


def _uncoveredRegions(node: Any, names: Sequence[str]) -> Finding:
    message = f"The reference '{node.GetName()}' does not define {', '.join(names)}: not scored."
    return Finding("warning", "reference", message, "Assign a segment by hand if there is one.")


def _isCovered(region: Region, used: set[str], task: Task) -> bool:
    parts = {r.name: set(r.labels) for r in task.regions} | {
        label.name: {label.name} for label in task.labels
    }
    inside = [parts[name] for name in used if parts[name] <= set(region.labels)]
    return set(region.labels) <= set().union(*inside)
