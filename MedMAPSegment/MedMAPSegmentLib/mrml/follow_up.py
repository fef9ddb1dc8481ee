"""Two examinations of a patient: volumes and diameters side by side, with the change.

Nothing is computed on the images of the earlier examination: its segmentation is measured as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medmap.checks import Finding
from medmap.errors import InputDataError
from medmap.task import Task

from . import uncertainty
from .nodes import Column, allOrNothing, columnOf, derive, derivedNode, fillTable
from .results import resultsTable
from .scene import provenanceOf

ROLE_FOLLOW_UP = "follow-up"
EARLIER = "MedMAP.Earlier"
"""Attribute of the table: ID of the earlier segmentation."""


@dataclass(frozen=True)
class FollowUp:
    """The change between two examinations.

    Attributes:
        table: vtkMRMLTableNode, one row per region.
        findings: what a reader must know about the comparison.
    """

    table: Any
    findings: tuple[Finding, ...]


def compareTimePoints(scene, currentNode, earlierNode, task: Task) -> FollowUp:
    """Measure both segmentations and put the change into the scene.

    Args:
        scene: vtkMRMLScene of both.
        currentNode: vtkMRMLSegmentationNode of the result.
        earlierNode: vtkMRMLSegmentationNode of the earlier examination, on any grid.
        task: labels and regions of both.

    Raises:
        InputDataError: one of the two is missing, they are the same, or one cannot be read; the
            scene is unchanged then.
    """
    if currentNode is None or earlierNode is None:
        raise InputDataError(
            "A follow-up needs a result and an earlier segmentation.", "Choose both."
        )
    if currentNode is earlierNode:
        raise InputDataError(
            "The result is its own earlier segmentation.", "Choose the earlier examination."
        )
    with allOrNothing(scene):
        current = resultsTable(scene, currentNode, task)
        earlier = resultsTable(scene, earlierNode, task)
        name = f"{currentNode.GetName()} - follow-up"
        table = derive(scene, "vtkMRMLTableNode", ROLE_FOLLOW_UP, currentNode, name)
        fillTable(table, _columns(current, earlier, task))
        table.SetAttribute(EARLIER, earlierNode.GetID())
    return FollowUp(table, findingsOf(scene, currentNode, earlierNode, table, task))


def tableOf(scene, currentNode):
    """The follow-up table that the scene holds for a result; None without one."""
    return derivedNode(scene, "vtkMRMLTableNode", ROLE_FOLLOW_UP, currentNode)


def findingsOf(scene, currentNode, earlierNode, table, task: Task) -> tuple[Finding, ...]:
    """What a reader of the table must know: other modalities, other models, small changes."""
    findings = []
    current = _modalities(currentNode, task)
    earlier = _modalities(earlierNode, task)
    if not earlier or not current:
        message = "It is not recorded which modalities one of the segmentations was made from."
        findings.append(Finding("warning", "follow-up", message, "Interpret the change with care."))
    elif current != earlier:
        message = (
            f"The result was made from {task.subset_title(current)}, the earlier one from "
            f"{task.subset_title(earlier)}: part of the change may come from the modalities."
        )
        remedy = "Segment both from the modalities that both have."
        findings.append(Finding("warning", "follow-up", message, remedy))
        findings += _subsetFindings(scene, currentNode, earlier, table, task)
    if _model(currentNode) != _model(earlierNode):
        message = "The segmentations were made by different models or by hand."
        findings.append(
            Finding("warning", "follow-up", message, "Segment both with the same model.")
        )
    return tuple(findings)


def _subsetFindings(scene, currentNode, subset: list[str], table, task: Task) -> list[Finding]:
    """Regions whose change lies within what the other modality subset alone would change."""
    subsets = uncertainty.nodesOf(scene, currentNode)
    title = task.subset_title(subset)
    scans = columnOf(subsets.table, "Scans") if subsets is not None else []
    if subsets is None or title not in scans:
        message = "How much another modality subset alone would change the volumes is not known."
        remedy = "Compare the modality subsets of the result to learn it."
        return [Finding("info", "follow-up", message, remedy)]
    row = scans.index(title)
    changes = dict(zip(columnOf(table, "Region"), columnOf(table, "Change"), strict=True))
    findings = []
    for region in task.regions:
        fromSubset = abs(columnOf(subsets.table, f"{region.name} change")[row])
        change = changes[region.name]
        if abs(change) <= fromSubset:
            message = (
                f"The change of {region.name} ({change:+.1f} ml) lies within what the modality "
                f"subset alone would change ({fromSubset:.1f} ml)."
            )
            findings.append(Finding("warning", "follow-up", message, "It may be no real change."))
    return findings


def _modalities(node, task: Task) -> list[str]:
    used = (provenanceOf(node) or {}).get("modalities", {}).get("used", {})
    return [name for name in task.modality_names if name in used]


def _model(node) -> str:
    return (provenanceOf(node) or {}).get("bundle", {}).get("id", "")


def _columns(current, earlier, task: Task) -> list[Column]:
    currentVolumes = columnOf(current, "Volume")
    earlierVolumes = columnOf(earlier, "Volume")
    diameter = columnOf(current, "Axial diameter")
    earlierDiameter = columnOf(earlier, "Axial diameter")
    changes = []
    percents = []
    for new, old in zip(currentVolumes, earlierVolumes, strict=True):
        changes.append(new - old)
        percents.append(100.0 * (new - old) / old if old > 0 else float("nan"))
    diameterChanges = [new - old for new, old in zip(diameter, earlierDiameter, strict=True)]
    return [
        Column("Region", [region.name for region in task.regions]),
        Column("Name", [region.title for region in task.regions]),
        Column("Earlier volume", earlierVolumes, "ml", "Volume at the earlier examination"),
        Column("Volume", currentVolumes, "ml", "Volume now"),
        Column("Change", changes, "ml", "Volume now minus volume before"),
        Column("Relative change", percents, "%", "Change in percent of the earlier volume"),
        Column("Earlier diameter", earlierDiameter, "mm", "Longest axial diameter before"),
        Column("Diameter", diameter, "mm", "Longest axial diameter now"),
        Column(
            "Diameter change", diameterChanges, "mm", "Longest axial diameter: now minus before"
        ),
    ]
