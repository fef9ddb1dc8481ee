"""A review in the scene: tables, the plot of the Dice by slice, and the error segmentation.

Applying again for the same segmentation refreshes these nodes.
"""

from __future__ import annotations

import json
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
    error_map,
)
from medmap.errors import InputDataError, UsageError

from ..i18n import translator
from ..i18n.sentences import sentence
from .fingerprints import fingerprint
from .nodes import Column, allOrNothing, derive, derivedNode, fillTable, orientedMask
from .planes import planeTitle
from .results import regionColumns
from .review import Request, slicesOf

_ = translator(__file__)

ROLE_SCORES = "review scores"
ROLE_SLICES = "review slices"
ROLE_CHART = "review chart"
ROLE_ERRORS = "review errors"
REVIEW = "MedMAP.Review"
"""Attribute with what was compared, as JSON."""

# Colors that people with color-vision deficiency can tell apart (Okabe and Ito, 2008).
ERRORS = {
    AGREEMENT: ("agreement", (0, 158, 115)),
    OURS_ONLY: ("ours", (213, 94, 0)),
    REFERENCE_ONLY: ("reference", (86, 180, 233)),
}
"""Value of an error map -> ID and color of its segment."""

LINES = ((0, 114, 178), (230, 159, 0), (204, 121, 167), (0, 158, 115))


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


def apply(
    scene: Any,
    segmentationNode: Any,
    request: Request,
    comparison: Review,
    region: str | None = None,
) -> ReviewNodes:
    """Put a review into the scene, or refresh the one that is there for this segmentation.

    Args:
        scene: vtkMRMLScene that takes the nodes.
        segmentationNode: ours; must still be in the scene.
        request: what was compared.
        comparison: what ``review.compute`` returned.
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
            f"The segmentation '{request.segmentationName}' was removed.", "Compare again."
        )
    region = region or request.regions[0]
    image = _errorImage(request, region)
    name = request.segmentationName
    with allOrNothing(scene):
        title = _("{name} - review").format(name=name)
        scores = derive(scene, "vtkMRMLTableNode", ROLE_SCORES, segmentationNode, title)
        fillTable(scores, _scoreColumns(request, comparison))
        scores.SetDescription(sentence(EMPTY_RULE))
        title = _slicesTitle(request)
        slices = derive(scene, "vtkMRMLTableNode", ROLE_SLICES, segmentationNode, title)
        fillTable(slices, _sliceColumns(comparison))
        chart, series = _plot(scene, segmentationNode, request, slices)
        errors = _errors(scene, segmentationNode, request, region, image)
        for node in (scores, slices, errors):
            node.SetAttribute(REVIEW, _record(request))
    return ReviewNodes(scores, slices, series, chart, errors)


def showErrors(scene: Any, segmentationNode: Any, request: Request, region: str) -> Any:
    """Make the error segmentation show another region. Returns the vtkMRMLSegmentationNode; errors
    as ``apply``.
    """
    image = _errorImage(request, region)
    with allOrNothing(scene):
        return _errors(scene, segmentationNode, request, region, image)


def nodesOf(scene: Any, segmentationNode: Any) -> ReviewNodes | None:
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


def recordOf(nodes: ReviewNodes) -> dict:
    """What was compared in a review, possibly of a loaded scene: ``reading`` of the label values,
    ``withResult`` and more; empty where nothing is recorded.
    """
    try:
        record = json.loads(nodes.scores.GetAttribute(REVIEW) or "{}")
    except ValueError:  # a scene may hold anything
        return {}
    return record if isinstance(record, dict) else {}


def isOutdated(scene: Any, segmentationNode: Any, nodes: ReviewNodes) -> bool:
    """Whether one of the two has changed since the review. A reference that is gone has not."""
    record = recordOf(nodes)
    recorded = record.get("fingerprints")
    if not recorded:
        return False
    reference = scene.GetNodeByID(record.get("referenceID") or "")
    present = [fingerprint(segmentationNode), fingerprint(reference) or recorded[1]]
    return present != list(recorded)


def _scoreColumns(request: Request, comparison: Review) -> list[Column]:
    regions = [region for region in request.task.regions if region.name in comparison.scores]
    scores = [comparison.scores[region.name] for region in regions]
    return [
        *regionColumns(regions),
        Column("Dice", [s.dice for s in scores], "", sentence(EMPTY_RULE), _("Dice")),
        Column(
            "Sensitivity",
            [s.sensitivity for s in scores],
            "",
            _("Share of the reference that the result contains"),
            _("Sensitivity"),
        ),
        Column(
            "Precision",
            [s.precision for s in scores],
            "",
            _("Share of the result that lies in the reference"),
            _("Precision"),
        ),
        Column(
            "HD95",
            [s.hd95_mm for s in scores],
            "mm",
            _("95th percentile of the distance between the surfaces (Hausdorff)"),
            _("HD95"),
        ),
        Column(
            "Volume",
            [s.prediction_ml for s in scores],
            "ml",
            _("Volume in the result"),
            _("Volume"),
        ),
        Column(
            "Reference volume",
            [s.reference_ml for s in scores],
            "ml",
            _("Volume in the reference, on the grid of the result"),
            _("Reference volume"),
        ),
    ]


def _sliceColumns(comparison: Review) -> list[Column]:
    slices = slicesOf(comparison)
    scoredSlices = np.flatnonzero(~np.all([np.isnan(d) for d in slices.dice.values()], axis=0))
    positions = slices.position_mm[scoredSlices]
    indexTip = _("Index along the slice axis, from 0")
    positionTip = _("Along the slice normal")
    columns = [
        Column("Slice", scoredSlices.tolist(), "", indexTip, _("Slice")),
        Column("Position", positions.tolist(), "mm", positionTip, _("Position")),
    ]
    for name, scores in slices.dice.items():
        tip = _("Dice of {region} in the slice").format(region=name)
        columns.append(Column(name, scores[scoredSlices].tolist(), "", tip))
    for name, counts in slices.wrong_voxels.items():
        tip = _("Voxels of {region} that only one of the two segmentations has")
        title = _("{region} wrong voxels").format(region=name)
        column = Column(
            f"{name} wrong",
            counts[scoredSlices].tolist(),
            _("voxels"),
            tip.format(region=name),
            title,
        )
        columns.append(column)
    return columns


def _slicesTitle(request: Request) -> str:
    """Name of the table and of the chart of the Dice by slice."""
    return _("{name} - Dice by slice").format(name=request.segmentationName)


def _plot(
    scene: Any, segmentationNode: Any, request: Request, table: Any
) -> tuple[Any, dict[str, Any]]:
    """Dice against slice position: one series a region, and the chart of them."""
    series = {}
    for name, color in zip(request.regions, LINES * len(request.regions), strict=False):
        node = derive(
            scene,
            "vtkMRMLPlotSeriesNode",
            f"review series {name}",
            segmentationNode,
            _("{region} Dice by slice").format(region=name),
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
    title = _slicesTitle(request)
    chart = derive(scene, "vtkMRMLPlotChartNode", ROLE_CHART, segmentationNode, title)
    chart.RemoveAllPlotSeriesNodeIDs()
    for node in series.values():
        chart.AddAndObservePlotSeriesNodeID(node.GetID())
    title = _("Dice by slice ({plane}), reference: {reference}")
    plane = planeTitle(request.plane)
    chart.SetTitle(title.format(plane=plane, reference=request.referenceName))
    chart.SetXAxisTitle(_("Position (mm)"))
    chart.SetYAxisTitle(_("Dice"))
    chart.SetYAxisRangeAuto(False)
    chart.SetYAxisRange(0.0, 1.0)
    return chart, series


def _errorImage(request: Request, region: str) -> Any:
    if region not in request.regions:
        raise UsageError(
            f"The reference does not define {region}.",
            f"Choose one of {', '.join(request.regions)}.",
        )
    values = error_map(request.labels, request.reference, request.task, region)
    return orientedMask(values, request.geometry.local)


def _errors(scene: Any, segmentationNode: Any, request: Request, region: str, image: Any) -> Any:
    node = derive(
        scene,
        "vtkMRMLSegmentationNode",
        ROLE_ERRORS,
        segmentationNode,
        _("{name} - errors").format(name=request.segmentationName),
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
        for value, (key, color) in ERRORS.items():
            segment = slicer.vtkSegment()
            title = _("{region}: {part}")
            segment.SetName(title.format(region=region, part=request.errorTitles[value]))
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
        "withResult": request.withResult,
        "referenceID": request.referenceID,
        "fingerprints": request.fingerprints,
        "choices": request.choices,
        "findings": [
            {"level": f.level, "message": f.message, "remedy": f.remedy} for f in request.findings
        ],
    }
    return json.dumps(record, sort_keys=True)
