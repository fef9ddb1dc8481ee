"""Review of a segmentation against a reference, in three steps as in ``logic``: collect, compute,
apply.

``collect`` (main thread) copies both label maps out of the scene, ``compute`` (any thread) scores
them with ``medmap.agreement``, ``apply`` (main thread) puts tables, plot and error segmentation
into the scene. Applying again for the same segmentation refreshes these nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import slicer

from medmap.agreement import (
    AGREEMENT,
    EMPTY_RULE,
    OURS_ONLY,
    REFERENCE_ONLY,
    Review,
    SliceScores,
    error_map,
    focus,
    worst_slices,
)
from medmap.agreement import review as compare
from medmap.checks import Finding
from medmap.errors import Cancelled, InputDataError, InternalError, UsageError
from medmap.task import Task

from .nodes import Column, Geometry, allOrNothing, derive, derivedNode, fillTable, orientedMask
from .reference import Source, isResult, labelsOn

ROLE_SCORES = "review scores"
ROLE_SLICES = "review slices"
ROLE_CHART = "review chart"
ROLE_ERRORS = "review errors"
REVIEW = "MedMAP.Review"
"""Attribute with what was compared, as JSON."""

# Colors that people with color-vision deficiency can tell apart (Okabe and Ito, 2008).
ERRORS = {
    AGREEMENT: ("agreement", "Agreement", (0, 158, 115)),
    OURS_ONLY: ("ours", "Result only", (213, 94, 0)),
    REFERENCE_ONLY: ("reference", "Reference only", (86, 180, 233)),
}
"""Value of an error map -> ID, title and color of its segment."""

LINES = ((0, 114, 178), (230, 159, 0), (204, 121, 167), (0, 158, 115))


@dataclass(frozen=True)
class Request:
    """Everything that a comparison needs, copied out of the scene: no MRML node in here.

    Attributes:
        labels: [I, J, K] uint8, ours.
        reference: [I, J, K] uint8, the reference's, on our grid.
        geometry: our grid.
        task: labels and regions.
        regions: regions that the reference speaks about.
        plane: how slices are stacked.
        segmentationName: name of our node.
        referenceName: name of the reference node.
        sources: what was taken for what in the reference.
        findings: what a reader must know.
        withResult: the reference is another result of this module.
        reading: how label values of the reference were read, and why; empty where it has none.
    """

    labels: np.ndarray
    reference: np.ndarray
    geometry: Geometry
    task: Task
    regions: tuple[str, ...]
    plane: str
    segmentationName: str
    referenceName: str
    sources: tuple[Source, ...]
    findings: tuple[Finding, ...]
    withResult: bool = False
    reading: str = ""

    @property
    def errorTitles(self) -> dict[int, str]:
        """Value of an error map -> title."""
        titles = {value: title for value, (_key, title, _color) in ERRORS.items()}
        if self.withResult:
            titles[REFERENCE_ONLY] = "Other result only"
        return titles


@dataclass(frozen=True)
class ReviewNodes:
    """What a review put into the scene.

    Attributes:
        scores: vtkMRMLTableNode, one row per region.
        slices: vtkMRMLTableNode, one row a slice that has tumor in either.
        series: region -> vtkMRMLPlotSeriesNode.
        chart: vtkMRMLPlotChartNode of these series.
        errors: vtkMRMLSegmentationNode with the segments ``agreement``, ``ours``, ``reference``.
    """

    scores: Any
    slices: Any
    series: dict[str, Any]
    chart: Any
    errors: Any


@dataclass(frozen=True)
class WorstSlice:
    """One slice worth looking at.

    Attributes:
        index: along the slice axis of the array, from 0.
        dice: Dice of the region in it.
        wrongVoxels: voxels that only one of the two has.
        ras: world position in mm of the middle of what is wrong, to jump to.
        rank: 0 is the worst.
        count: number of slices with the region.
    """

    index: int
    dice: float
    wrongVoxels: int
    ras: tuple[float, float, float]
    rank: int
    count: int


def collect(
    segmentationNode,
    referenceNode,
    task: Task,
    override: Mapping[str, str] | None = None,
    plane: str = "axial",
    convention: str = "",
) -> Request:
    """Copy ours and the reference out of the scene, onto our grid; nothing in the scene changes.

    Args:
        segmentationNode: vtkMRMLSegmentationNode, ours.
        referenceNode: vtkMRMLSegmentationNode or label volume node, on any grid.
        task: labels and regions.
        override: key or title of a source of the reference -> label or region
            (``reference.sources``).
        plane: ``axial``, ``coronal`` or ``sagittal``.
        convention: name of the label convention of a reference volume; empty: recognize it.

    Raises:
        InputDataError: one of the two is missing, the same as the other, or not understood.
        UsageError: an override names something that is not there.
    """
    if segmentationNode is None or referenceNode is None:
        raise InputDataError("A review needs a segmentation and a reference.", "Choose both.")
    if segmentationNode is referenceNode:
        raise InputDataError("The segmentation is its own reference.", "Choose another reference.")
    ours = labelsOn(segmentationNode, segmentationNode, task)
    theirs = labelsOn(referenceNode, segmentationNode, task, override, convention)
    return Request(
        labels=ours.labels,
        reference=theirs.labels,
        geometry=theirs.geometry,
        task=task,
        regions=theirs.regions,
        plane=plane,
        segmentationName=segmentationNode.GetName(),
        referenceName=referenceNode.GetName(),
        sources=theirs.sources,
        findings=(*ours.findings, *theirs.findings, *_emptiness(theirs.labels, referenceNode)),
        withResult=isResult(referenceNode),
        reading=theirs.reading,
    )


def compute(request: Request, progress=None, cancelled=None) -> Review:
    """Score; touches neither MRML nor VTK. ``progress`` and ``cancelled`` as for every
    ``runner.Work``.
    """
    if cancelled is not None and cancelled():
        raise Cancelled()
    if progress is not None:
        progress(0.0, "comparing with the reference")
    comparison = compare(
        request.labels,
        request.reference,
        request.task,
        request.geometry.grid,
        regions=request.regions,
        plane=request.plane,
    )
    if progress is not None:
        progress(1.0, "done")
    return comparison


def apply(
    scene, segmentationNode, request: Request, found: Review, region: str | None = None
) -> ReviewNodes:
    """Put a review into the scene, or refresh the one that is there for this segmentation.

    Args:
        scene: vtkMRMLScene that takes the nodes.
        segmentationNode: ours; must still be in the scene.
        request: what was compared.
        found: what ``compute`` returned.
        region: region of the error segmentation; None for the first that was scored.

    Raises:
        InputDataError: the segmentation is gone. No node has been added then, nor after any other
            exception.
    """
    if (
        segmentationNode is None
        or scene.GetNodeByID(segmentationNode.GetID()) is not segmentationNode
    ):
        raise InputDataError(
            f"The segmentation '{request.segmentationName}' is gone.", "Start the review again."
        )
    region = region or request.regions[0]
    image = _errorImage(request, region)
    name = request.segmentationName
    with allOrNothing(scene):
        scores = derive(
            scene, "vtkMRMLTableNode", ROLE_SCORES, segmentationNode, f"{name} - review"
        )
        fillTable(scores, _scoreColumns(request, found))
        scores.SetDescription(EMPTY_RULE)
        slices = derive(
            scene, "vtkMRMLTableNode", ROLE_SLICES, segmentationNode, f"{name} - Dice by slice"
        )
        fillTable(slices, _sliceColumns(found))
        chart, series = _plot(scene, segmentationNode, request, slices)
        errors = _errors(scene, segmentationNode, request, region, image)
        for node in (scores, slices, errors):
            node.SetAttribute(REVIEW, _record(request))
    return ReviewNodes(scores, slices, series, chart, errors)


def showErrors(scene, segmentationNode, request: Request, region: str):
    """Make the error segmentation show another region. Returns the vtkMRMLSegmentationNode; errors
    as ``apply``.
    """
    image = _errorImage(request, region)
    with allOrNothing(scene):
        return _errors(scene, segmentationNode, request, region, image)


def nodesOf(scene, segmentationNode) -> ReviewNodes | None:
    """The review that the scene holds for a segmentation (also after loading a scene); None without
    one.
    """
    scores = derivedNode(scene, "vtkMRMLTableNode", ROLE_SCORES, segmentationNode)
    slices = derivedNode(scene, "vtkMRMLTableNode", ROLE_SLICES, segmentationNode)
    chart = derivedNode(scene, "vtkMRMLPlotChartNode", ROLE_CHART, segmentationNode)
    errors = derivedNode(scene, "vtkMRMLSegmentationNode", ROLE_ERRORS, segmentationNode)
    if None in (scores, slices, chart, errors):
        return None
    nodes = [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())]
    return ReviewNodes(
        scores, slices, {node.GetYColumnName(): node for node in nodes}, chart, errors
    )


def readingOfLabels(nodes: ReviewNodes) -> str:
    """How label values of the reference were read in a review, possibly of a loaded scene."""
    try:
        record = json.loads(nodes.scores.GetAttribute(REVIEW) or "{}")
    except ValueError:  # a scene may hold anything
        return ""
    return str(record.get("reading", ""))


def worstSlice(
    request: Request, found: Review, region: str, rank: int = 0, by: str = "dice"
) -> WorstSlice | None:
    """The slice of that rank, worst first; past the last it starts again. None when no slice has
    the region.

    Args:
        request: what was compared.
        found: what ``compute`` returned.
        region: a region that was scored.
        rank: 0 for the worst, 1 for the next.
        by: ``dice`` or ``voxels`` (see ``medmap.agreement.worst_slices``).
    """
    slices = slicesOf(found)
    order = worst_slices(slices, region, by=by)
    if not order:
        return None
    rank %= len(order)
    index = order[rank]
    return WorstSlice(
        index=index,
        dice=float(slices.dice[region][index]),
        wrongVoxels=int(slices.wrong_voxels[region][index]),
        ras=positionOfSlice(request, found, region, index),
        rank=rank,
        count=len(order),
    )


def worstSlices(
    request: Request, found: Review, region: str, count: int = 5
) -> tuple[WorstSlice, ...]:
    """The slices with the most wrong voxels, worst first; fewer where fewer have the region."""
    entries = []
    for rank in range(count):
        entry = worstSlice(request, found, region, rank, by="voxels")
        # Past the last slice it begins again with the first.
        if entry is None or entry.rank < rank:
            break
        entries.append(entry)
    return tuple(entries)


def slicesOf(found: Review) -> SliceScores:
    """Agreement slice by slice. Raises InternalError for a comparison without it."""
    if found.slices is None:
        raise InternalError("The comparison has no scores by slice.", "Please report it.")
    return found.slices


def positionOfSlice(request: Request, found: Review, region: str, index: int):
    """World position in mm of what is wrong in a slice, or of its labels where all is right.

    Args:
        request, found: as for ``worstSlice``.
        region: a region that was scored.
        index: along the slice axis of the array, from 0.
    """
    axis = slicesOf(found).axis
    # One slice only: the whole error map would cost a second per click.
    part = [slice(None)] * 3
    part[axis] = slice(index, index + 1)
    labels = request.labels[tuple(part)]
    reference = request.reference[tuple(part)]
    values = error_map(labels, reference, request.task, region)
    wrong = values > AGREEMENT
    weights = np.zeros(request.labels.shape, bool)
    weights[tuple(part)] = wrong if wrong.any() else values > 0
    return tuple(float(c) for c in focus(weights, request.geometry.grid, axis, index))


def jumpTo(scene, ras) -> None:
    """Let every slice view of the scene show a world position, centered."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(scene, *ras, slicer.vtkMRMLSliceNode.CenteredJumpSlice)


def _emptiness(labels: np.ndarray, node) -> list[Finding]:
    if labels.any():
        return []
    message = f"The reference '{node.GetName()}' is empty on the grid of the segmentation."
    return [
        Finding(
            "warning", "reference", message, "Check that both belong to the same patient and place."
        )
    ]


def _scoreColumns(request: Request, found: Review) -> list[Column]:
    regions = [r for r in request.task.regions if r.name in found.scores]
    scores = [found.scores[r.name] for r in regions]
    return [
        Column("Region", [r.name for r in regions]),
        Column("Name", [r.title for r in regions]),
        Column("Dice", [s.dice for s in scores], "", EMPTY_RULE),
        Column(
            "Sensitivity",
            [s.sensitivity for s in scores],
            "",
            "Share of the reference that was found",
        ),
        Column(
            "Precision",
            [s.precision for s in scores],
            "",
            "Share of our segmentation that is right",
        ),
        Column(
            "HD95",
            [s.hd95_mm for s in scores],
            "mm",
            "95 % Hausdorff distance between the surfaces",
        ),
        Column("Volume", [s.prediction_ml for s in scores], "ml", "Our segmentation"),
        Column(
            "Reference volume", [s.reference_ml for s in scores], "ml", "The reference on our grid"
        ),
    ]


def _sliceColumns(found: Review) -> list[Column]:
    slices = slicesOf(found)
    scoredSlices = np.flatnonzero(~np.all([np.isnan(d) for d in slices.dice.values()], axis=0))
    positions = slices.position_mm[scoredSlices]
    columns = [
        Column("Slice", scoredSlices.tolist(), "", "Index along the slice axis, from 0"),
        Column("Position", positions.tolist(), "mm", "Along the slice normal"),
    ]
    for name, scores in slices.dice.items():
        columns.append(
            Column(name, scores[scoredSlices].tolist(), "", f"Dice of {name} in the slice")
        )
    for name, counts in slices.wrong_voxels.items():
        description = f"Voxels of {name} that only one of the two has"
        columns.append(
            Column(f"{name} wrong", counts[scoredSlices].tolist(), "voxels", description)
        )
    return columns


def _plot(scene, segmentationNode, request: Request, table):
    """Dice against slice position: one series a region, and the chart of them."""
    series = {}
    for name, color in zip(request.regions, LINES * len(request.regions), strict=False):
        node = derive(
            scene,
            "vtkMRMLPlotSeriesNode",
            f"review series {name}",
            segmentationNode,
            f"{name} Dice by slice",
        )
        node.SetAndObserveTableNodeID(table.GetID())
        node.SetXColumnName("Position")
        node.SetYColumnName(name)
        node.SetPlotType(node.PlotTypeScatter)
        node.SetMarkerStyle(node.MarkerStyleCircle)
        node.SetMarkerSize(5)
        node.SetLineStyle(node.LineStyleSolid)
        node.SetColor(*(c / 255.0 for c in color))
        series[name] = node
    chart = derive(
        scene,
        "vtkMRMLPlotChartNode",
        ROLE_CHART,
        segmentationNode,
        f"{request.segmentationName} - Dice by slice",
    )
    chart.RemoveAllPlotSeriesNodeIDs()
    for node in series.values():
        chart.AddAndObservePlotSeriesNodeID(node.GetID())
    chart.SetTitle(f"Dice by slice ({request.plane}), reference: {request.referenceName}")
    chart.SetXAxisTitle("Position (mm)")
    chart.SetYAxisTitle("Dice")
    chart.SetYAxisRangeAuto(False)
    chart.SetYAxisRange(0.0, 1.0)
    return chart, series


def _errorImage(request: Request, region: str):
    if region not in request.regions:
        raise UsageError(
            f"The reference does not say what {region} is.", f"Use {', '.join(request.regions)}."
        )
    values = error_map(request.labels, request.reference, request.task, region)
    return orientedMask(values, request.geometry.local)


def _errors(scene, segmentationNode, request: Request, region: str, image):
    node = derive(
        scene,
        "vtkMRMLSegmentationNode",
        ROLE_ERRORS,
        segmentationNode,
        f"{request.segmentationName} - errors",
    )
    segmentation = node.GetSegmentation()
    binary = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    wasModified = node.StartModify()
    try:
        node.CreateDefaultDisplayNodes()
        node.SetAndObserveTransformNodeID(request.geometry.transformID)
        segmentation.RemoveAllSegments()
        segmentation.SetSourceRepresentationName(binary)
        name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
        segmentation.SetConversionParameter(name, request.geometry.text)
        for value, (key, _title, color) in ERRORS.items():
            segment = slicer.vtkSegment()
            segment.SetName(f"{region}: {request.errorTitles[value]}")
            segment.SetColor(*(c / 255.0 for c in color))
            segment.SetLabelValue(value)
            segment.SetTag(REVIEW, region)
            segment.AddRepresentation(binary, image)
            segmentation.AddSegment(segment, key)
    finally:
        node.EndModify(wasModified)
    return node


def _record(request: Request) -> str:
    """What was compared, as JSON in one line of ASCII."""
    record = {
        "segmentation": request.segmentationName,
        "reference": request.referenceName,
        "matches": [asdict(s) for s in request.sources],
        "empty rule": EMPTY_RULE,
        "reading": request.reading,
        "findings": [
            {"level": f.level, "message": f.message, "remedy": f.remedy} for f in request.findings
        ],
    }
    return json.dumps(record, sort_keys=True)
