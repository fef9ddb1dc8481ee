"""Someone's segmentation, whatever its form and grid, as labels of the task on the grid of ours.

A reference is a segmentation node, whose segments are matched by tag, code or name, or a label
volume with the values of the task's files. What belongs to what is shown (``sources``) and can be
overridden; nothing in the scene changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from medmap.checks import Finding
from medmap.errors import InputDataError, UsageError
from medmap.metrics import label_masks
from medmap.task import Region, Task
from medmap.task.conventions import find_convention, names_of_conventions, recognize

from .geometry import arrayFromMatrix, matrixFromArray
from .nodes import ROLE, Geometry, geometryOf, linearPart, resampledNearest
from .scene import MADE_BY, shapeOf

NOT_USED = ""
BY_HAND = "chosen"
"""Reason of what a person assigned."""

# Words of BraTS-like tasks, in texts of lower-case words; a pattern counts only where the task has
# its name.
_WORDS = {
    "NCR": r"\bnon ?enhanc\w*( tumor)?( core)?\b|\bnecro\w*( tumor)?( core)?\b|\bncr\b|\bnetc?\b",
    "ET": r"\b(gd )?enhanc\w*( tumor)?( core)?\b|\bet\b",
    "ED": r"\bedema\w*\b|\bed\b|\bsnfh\b|\bflair hyperintens\w*\b",
    "TC": r"\btumor core\b|\btc\b",
    "WT": r"\bwhole tumor\b|\bcomplete tumor\b|\bwt\b",
}
_CODES = {"6574001": "NCR"}
"""Codes besides those of the task itself: SNOMED CT Necrosis."""


@dataclass(frozen=True)
class Source:
    """One segment, or one value of a label volume, and what it is taken for.

    Attributes:
        key: segment ID, or the value as a text: the key for overriding.
        title: what a person sees: the segment's name, or ``value 4``.
        target: label or region of the task; ``NOT_USED`` when it is not used.
        reason: why, in a few words.
    """

    key: str
    title: str
    target: str
    reason: str


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


def isLabelVolume(node) -> bool:
    """True for a scalar or label map volume node, False for anything else."""
    return node is not None and node.IsA("vtkMRMLScalarVolumeNode")


def hasLabelValues(node: Any) -> bool:
    """Whether the parts of a reference are numbers: a label volume, or segments such as
    ``Segment_4`` that were imported from a label file.
    """
    if node is None or isLabelVolume(node):
        return node is not None
    return bool(_numbersOf(_namesOf(node)))


def readingOf(node: Any, task: Task, convention: str = "") -> str:
    """How the label values of a reference are read, and why; empty where it has none, or where they
    cannot be read.
    """
    if not hasLabelValues(node):
        return ""
    try:
        values = _valuesOf(node)
        return recognize({node.GetName(): values}, task, convention).statement
    except InputDataError:
        return ""


def unassignedSources(node: Any) -> tuple[Source, ...]:
    """The segments or label values of a reference, none of them understood: to be assigned by hand.

    Raises InputDataError for a volume that holds no labels.
    """
    reason = "several meanings"
    if isLabelVolume(node):
        values = _valuesOf(node)
        return tuple(Source(str(v), f"value {v}", NOT_USED, reason) for v in values)
    names = _namesOf(node)
    return tuple(Source(key, name, NOT_USED, reason) for key, name in names.items())


def _namesOf(node: Any) -> dict[str, str]:
    """Name of each segment by its ID."""
    segmentation = node.GetSegmentation()
    return {key: segmentation.GetSegment(key).GetName() for key in segmentation.GetSegmentIDs()}


def _valuesOf(node: Any) -> list[int]:
    """Label values of a volume, or of segments that are named by them, without 0."""
    if not isLabelVolume(node):
        return sorted(_numbersOf(_namesOf(node)).values())
    image = node.GetImageData()
    if shapeOf(node) is None or image.GetNumberOfScalarComponents() != 1:
        raise InputDataError(
            f"The volume '{node.GetName()}' has no label in each voxel.", "Choose a label volume."
        )
    values = np.unique(vtk_to_numpy(image.GetPointData().GetScalars()))
    if values.size > 1000 or (values != np.round(values)).any():
        raise InputDataError(
            f"The volume '{node.GetName()}' holds no labels but other numbers.",
            "Choose a label volume.",
        )
    return [int(value) for value in values if value != 0]


def conventionsOf(task: Task) -> dict[str, str]:
    """Label conventions that can be chosen for a task: name -> description."""
    names = names_of_conventions(task)
    return {name: find_convention(name, task).description for name in names}


def referenceCandidates(scene) -> list:
    """Label volumes and segmentations of a scene that somebody else made, in scene order."""
    candidates = []
    for className in ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode"):
        for number in range(scene.GetNumberOfNodesByClass(className)):
            node = scene.GetNthNodeByClass(number, className)
            if not node.GetHideFromEditors() and node.GetAttribute(ROLE) is None:
                candidates.append(node)
    return [node for node in candidates if not isResult(node)]


def isResult(node) -> bool:
    """True for a segmentation that this module made."""
    if node is None or not node.IsA("vtkMRMLSegmentationNode"):
        return False
    segmentation = node.GetSegmentation()
    count = segmentation.GetNumberOfSegments()
    segments = [segmentation.GetNthSegment(number) for number in range(count)]
    return any(segment.HasTag(MADE_BY) for segment in segments)


def targets(task: Task) -> tuple[str, ...]:
    """What a segment can be taken for: labels first, then the regions that are no label. BraTS:
    NCR, ED, ET, WT, TC.
    """
    labels = [label.name for label in task.labels]
    return (*labels, *(r.name for r in task.regions if r.name not in labels))


def sources(
    node, task: Task, override: Mapping[str, str] | None = None, convention: str = ""
) -> tuple[Source, ...]:
    """What each segment (or label value) of a reference is taken for.

    Args:
        node: vtkMRMLSegmentationNode, or a volume node with label values.
        task: labels and regions.
        override: key or title of a source -> label or region name, or ``NOT_USED``.
        convention: name of the convention of label values; empty: recognize it.

    Raises:
        InputDataError: a volume without whole numbers or with several values per voxel, or label
            values that several conventions have.
        UsageError: an override names no source or no target.
    """
    allSources = (
        _valueSources(node, task, override or {}, convention)
        if isLabelVolume(node)
        else _segmentSources(node, task, override or {}, convention)
    )
    for key, target in (override or {}).items():
        if not any(key in (s.key, s.title) for s in allSources):
            raise UsageError(
                f"The reference '{node.GetName()}' has no '{key}'.", "Choose the segments again."
            )
        if target != NOT_USED and target not in targets(task):
            raise UsageError(
                f"'{target}' is no label or region.", f"Use one of {', '.join(targets(task))}."
            )
        allSources = [
            Source(s.key, s.title, target, BY_HAND) if key in (s.key, s.title) else s
            for s in allSources
        ]
    return tuple(allSources)


def labelsOn(
    node,
    segmentationNode,
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
        override: see ``sources``.
        convention: see ``sources``.

    Raises:
        InputDataError: the grid is not known, or nothing in the reference is understood (the
            message names it).
        UsageError: see ``sources``.
    """
    geometry = geometryOf(segmentationNode)
    allSources = sources(node, task, override, convention)
    used = [s for s in allSources if s.target]
    if not used and allSources:
        names = ", ".join(f"'{s.title}'" for s in allSources)
        raise InputDataError(
            f"Nothing in the reference '{node.GetName()}' is understood: {names}.",
            f"Say by hand which is which of {', '.join(targets(task))}.",
        )
    parent = segmentationNode.GetParentTransformNode()
    if isLabelVolume(node):
        values = _volumeOn(node, segmentationNode, geometry)
        masks = ((s, values == int(s.key)) for s in used)
    else:
        keys = [s.key for s in used]
        masks = _segmentsOn(node, keys, geometry, parent, used)
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


def _valueSources(node, task: Task, override: Mapping[str, str], chosen: str) -> list[Source]:
    values = np.array(_valuesOf(node), int)
    open_ = np.array([v for v in values if not {str(v), f"value {v}"} & set(override)], int)
    reading = recognize({node.GetName(): open_.tolist()}, task, chosen)
    convention = reading.conventions[node.GetName()]
    # Raises for values that the convention does not have.
    masks = label_masks(convention.to_task(open_, task, node.GetName()), task)
    targetOfValue = {int(v): name for name, mask in masks.items() for v in open_[mask]}
    reason = f"label value of {convention.title}"
    return [
        Source(str(v), f"value {v}", targetOfValue.get(int(v), NOT_USED), reason) for v in values
    ]


def _segmentSources(
    node: Any, task: Task, override: Mapping[str, str], convention: str
) -> list[Source]:
    segmentation = node.GetSegmentation()
    segments = {key: segmentation.GetSegment(key) for key in segmentation.GetSegmentIDs()}
    names = {key: segment.GetName() for key, segment in segments.items()}
    numbers = _numbered(node.GetName(), names, task, override, convention)
    return [
        Source(key, s.GetName(), *(numbers.get(key) or _taken(s, task)))
        for key, s in segments.items()
    ]


def _taken(segment, task: Task) -> tuple[str, str]:
    """What one segment is taken for and why: its tag, its code and its name, in this order."""
    labels = {label.name: label for label in task.labels}
    labelName = _tag(segment, MADE_BY)
    if labelName in labels:
        return labelName, "made by MedMAP"
    entry = _tag(segment, slicer.vtkSegment.GetTerminologyEntryTagName()).split("~")
    value = entry[2].split("^")[1] if len(entry) > 2 and "^" in entry[2] else ""
    byCode = {label.code.value: name for name, label in labels.items() if label.code} | _CODES
    coded = byCode.get(value) if byCode.get(value) in labels else None
    named = _named(segment.GetName(), task)
    if len(named) == 1 and coded in (None, *named):
        return named[0], "name" if coded is None else "code and name"
    if coded is not None and not named:
        return coded, "code"
    if coded is not None or named:
        return (
            NOT_USED,
            f"could be {' or '.join(dict.fromkeys([*named, *([coded] if coded else [])]))}",
        )
    return NOT_USED, "not understood"


def _named(name: str, task: Task) -> list[str]:
    """Labels and regions that a name may mean."""
    american = name.lower().replace("oedema", "edema").replace("tumour", "tumor")
    text = " ".join(re.findall(r"[a-z0-9]+", american))
    titles = {region.title.lower(): region.name for region in task.regions}
    titles |= {label.title.lower(): label.name for label in task.labels}
    names = {target.lower(): target for target in targets(task)}
    for lookup in (names, titles):
        if name.lower().strip() in lookup:
            return [lookup[name.lower().strip()]]
    targetNames = []
    for target, pattern in _WORDS.items():
        if target in targets(task) and re.search(pattern, text):
            targetNames.append(target)
            text = re.sub(
                pattern, " | ", text
            )  # so that the "enhancing" of "non-enhancing" is not found again
    return targetNames


def _numbersOf(names: Mapping[str, str]) -> dict[str, int]:
    """Label values of segments that were imported from a label file without names ('Segment_4');
    empty unless all names are of that kind.
    """
    numbers = {}
    for key, name in names.items():
        match = re.fullmatch(r"(?:segment|label|class)?[ _-]*(\d+)", name.strip(), re.I)
        if match is None:
            return {}
        numbers[key] = int(match[1])
    return numbers


def _numbered(
    title: str,
    names: Mapping[str, str],
    task: Task,
    override: Mapping[str, str],
    convention: str,
) -> dict[str, tuple[str, str]]:
    """What numbered segments are taken for and why, by ID.

    Raises InputDataError where the values have several meanings and none is chosen.
    """
    numbers = _numbersOf(names)
    openNumbers = {}
    for key, value in numbers.items():
        if key not in override and names[key] not in override:
            openNumbers[key] = value
    if not openNumbers:
        return {}
    values = np.array(list(openNumbers.values()))
    chosen = recognize({title: values.tolist()}, task, convention).conventions[title]
    if not convention and not chosen.values.issuperset(values.tolist()):
        # Slicer numbers segments that a person drew, too: those are assigned by hand.
        return {}
    masks = label_masks(chosen.to_task(values, task, title), task)
    meanings = {}
    for name, mask in masks.items():
        for key in np.array(list(openNumbers))[mask].tolist():
            meanings[key] = (name, f"label value {openNumbers[key]}")
    return meanings


def _tag(segment, name: str) -> str:
    text = vtk.reference("")
    return str(text) if segment.GetTag(name, text) else ""


def resampledVolume(node, segmentationNode, geometry: Geometry) -> np.ndarray:
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


def _volumeOn(node, segmentationNode, geometry: Geometry) -> np.ndarray:
    values = resampledVolume(node, segmentationNode, geometry)
    if values.dtype.kind == "f":
        return np.round(values).astype(int)
    return values


def _segmentsOn(node, keys, geometry: Geometry, parent, used):
    """Pairs (source, mask) of the used segments, one at a time, so that memory stays small."""
    copy = _withLabelmaps(node, geometry, parent)
    for source, key in zip(used, keys, strict=True):
        shared = copy.GetSegment(key).GetRepresentation(_binaryName())
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
            mask = layer == copy.GetSegment(key).GetLabelValue()
        yield source, mask


def _withLabelmaps(node, geometry: Geometry, parent):
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
            f"The segments of '{node.GetName()}' cannot be turned into voxels.",
            "Create a binary label map representation in the Segmentations module.",
        )
    return copy


def _binaryName() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _painted(masks, shape, task: Task) -> tuple[np.ndarray, list[str]]:
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


def _coverage(node, found, task: Task) -> tuple[tuple[str, ...], list[Finding]]:
    """Which regions the reference speaks about, and what a reader must know."""
    used = {s.target for s in found if s.target}
    labels = {label.name for label in task.labels}
    findings = []
    ignored = [s.title for s in found if not s.target]
    if ignored:
        message = f"Not used of '{node.GetName()}': {', '.join(ignored)}."
        findings.append(
            Finding("info", "reference", message, "Assign them by hand if they matter.")
        )
    if used <= labels:
        absent = [label.title for label in task.labels if label.name not in used]
        if absent and not isLabelVolume(node):
            titles = ", ".join(absent)
            message = (
                f"The reference '{node.GetName()}' has no segment for {titles}: counted as empty."
            )
            findings.append(
                Finding("warning", "reference", message, "Assign one by hand if there is one.")
            )
        return tuple(r.name for r in task.regions), findings
    covered = {r.name for r in task.regions if _isCovered(r, used, task)}
    missing = [r.name for r in task.regions if r.name not in covered]
    if missing:
        names = ", ".join(missing)
        message = f"The reference '{node.GetName()}' does not say what {names} is: not scored."
        findings.append(
            Finding("warning", "reference", message, "Assign a segment by hand if there is one.")
        )
    return tuple(r.name for r in task.regions if r.name in covered), findings


def _isCovered(region: Region, used: set[str], task: Task) -> bool:
    parts = {r.name: set(r.labels) for r in task.regions} | {
        label.name: {label.name} for label in task.labels
    }
    inside = [parts[name] for name in used if parts[name] <= set(region.labels)]
    return set(region.labels) <= set().union(*inside)
