"""Two examinations of a patient: volumes and diameters side by side, with the change.

Nothing is computed on the images of the earlier examination: its segmentation is measured as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medmap.checks import Finding
from medmap.errors import InputDataError
from medmap.task import Task

from ..i18n import translator
from . import uncertainty
from .editing import isEditedByHand
from .fingerprints import fingerprint
from .nodes import Column, allOrNothing, columnOf, derive, derivedNode, fillTable
from .patient import patientIDOf, studyDateOf
from .results import regionColumns, resultsTable
from .scene import provenanceOf

_ = translator(__file__)

ROLE_FOLLOW_UP = "follow-up"
EARLIER = "MedMAP.Earlier"
"""Attribute of the table: ID of the earlier segmentation."""
FINGERPRINTS = "MedMAP.Fingerprints"
"""Attribute of the table: of the result and of the earlier segmentation when it was made."""


@dataclass(frozen=True)
class FollowUp:
    """The change between two examinations.

    Attributes:
        table: vtkMRMLTableNode, one row per region.
        findings: what a reader must know about the comparison.
    """

    table: Any
    findings: tuple[Finding, ...]


def compareTimePoints(scene: Any, currentNode: Any, earlierNode: Any, task: Task) -> FollowUp:
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
            "The earlier segmentation is the result itself.", "Choose the earlier examination."
        )
    with allOrNothing(scene):
        current = resultsTable(scene, currentNode, task)
        earlier = resultsTable(scene, earlierNode, task)
        name = _("{name} - follow-up").format(name=currentNode.GetName())
        table = derive(scene, "vtkMRMLTableNode", ROLE_FOLLOW_UP, currentNode, name)
        fillTable(table, _columns(current, earlier, task))
        table.SetAttribute(EARLIER, earlierNode.GetID())
        table.SetAttribute(FINGERPRINTS, _fingerprints(currentNode, earlierNode))
    return FollowUp(table, findingsOf(scene, currentNode, earlierNode, table, task))


def tableOf(scene: Any, currentNode: Any) -> Any:
    """The follow-up table that the scene holds for a result; None without one."""
    return derivedNode(scene, "vtkMRMLTableNode", ROLE_FOLLOW_UP, currentNode)


def findingsOfTable(scene: Any, currentNode: Any, table: Any, task: Task) -> tuple[Finding, ...]:
    """What a reader of a follow-up table of the scene must know; see ``findingsOf``."""
    earlierNode = scene.GetNodeByID(table.GetAttribute(EARLIER) or "")
    if earlierNode is None:
        message = "The earlier segmentation is no longer in the scene."
        return (Finding("info", "follow-up", message),)
    return findingsOf(scene, currentNode, earlierNode, table, task)


def findingsOf(
    scene: Any, currentNode: Any, earlierNode: Any, table: Any, task: Task
) -> tuple[Finding, ...]:
    """What a reader of the table must know: another patient or order, other modalities, other
    models, small changes.
    """
    findings = _identityFindings(scene, currentNode, earlierNode)
    recorded = table.GetAttribute(FINGERPRINTS)
    if recorded and recorded != _fingerprints(currentNode, earlierNode):
        findings.append(
            _warning("One of the segmentations has changed since the comparison.", "Compare again.")
        )
    current = _modalities(currentNode, task)
    earlier = _modalities(earlierNode, task)
    if not earlier or not current:
        findings.append(
            _warning(
                "It is not recorded from which modalities one of the segmentations was made.",
                "Interpret the change with care.",
            )
        )
    elif current != earlier:
        findings.append(_otherModalities(current, earlier, task))
        findings += _subsetFindings(scene, currentNode, earlier, table, task)
    if _model(currentNode) != _model(earlierNode):
        findings.append(
            _warning(
                "The segmentations were made by different models or by hand.",
                "Segment both examinations with the same model.",
            )
        )
    elif isEditedByHand(currentNode) or isEditedByHand(earlierNode):
        findings.append(
            _warning(
                "One of the segmentations was edited by hand: part of the change may come from "
                "that.",
                "Interpret the change with care.",
            )
        )
    return tuple(findings)


def _warning(message: str, remedy: str) -> Finding:
    return Finding("warning", "follow-up", message, remedy)


def _identityFindings(scene: Any, currentNode: Any, earlierNode: Any) -> list[Finding]:
    """Whether these may not be two examinations of one patient, in this order."""
    findings = []
    patients = {patientIDOf(scene, node) for node in (currentNode, earlierNode)} - {""}
    if len(patients) > 1:
        findings.append(
            _warning(
                "According to DICOM the segmentations belong to different patients.",
                "Choose an examination of the same patient.",
            )
        )
    date = studyDateOf(scene, currentNode)
    earlierDate = studyDateOf(scene, earlierNode)
    if date and earlierDate > date:
        findings.append(
            _warning(
                f"According to DICOM the earlier segmentation is of {earlierDate}, the result of "
                f"{date}.",
                "Exchange them.",
            )
        )
    return findings


def _fingerprints(currentNode: Any, earlierNode: Any) -> str:
    return f"{fingerprint(currentNode)} {fingerprint(earlierNode)}"


def _otherModalities(current: list[str], earlier: list[str], task: Task) -> Finding:
    return _warning(
        f"The result was made from {task.subset_title(current)}, the earlier one from "
        f"{task.subset_title(earlier)}: part of the change may come from the modalities.",
        "Segment both examinations from the modalities that they share.",
    )


def _subsetFindings(
    scene: Any, currentNode: Any, subset: list[str], table: Any, task: Task
) -> list[Finding]:
    """Regions whose change lies within what the other modality subset alone would change."""
    subsets = uncertainty.nodesOf(scene, currentNode)
    title = task.subset_title(subset)
    scans = columnOf(subsets.table, "Scans") if subsets is not None else []
    if subsets is None or title not in scans:
        return [
            Finding(
                "info",
                "follow-up",
                "It is not known how much the modality subset alone would change the volumes.",
                "Compare the modality subsets of the result to find out.",
            )
        ]
    row = scans.index(title)
    names = columnOf(table, "Region")
    changes = dict(zip(names, columnOf(table, "Change"), strict=True))
    volumes = dict(zip(names, columnOf(table, "Volume"), strict=True))
    findings = []
    for region in task.regions:
        # A region that neither examination has did not change, whatever the modalities.
        if volumes[region.name] == 0 and changes[region.name] == 0:
            continue
        fromSubset = abs(columnOf(subsets.table, f"{region.name} change")[row])
        if abs(changes[region.name]) <= fromSubset:
            findings.append(_withinSubset(region.name, changes[region.name], fromSubset))
    return findings


def _withinSubset(region: str, change: float, fromSubset: float) -> Finding:
    return _warning(
        f"The change of {region} ({change:+z.1f} ml) lies within what the modality subset alone "
        f"would change ({fromSubset:.1f} ml).",
        "The tumor may not have changed.",
    )


def _modalities(node: Any, task: Task) -> list[str]:
    used = (provenanceOf(node) or {}).get("modalities", {}).get("used", {})
    return [name for name in task.modality_names if name in used]


def _model(node: Any) -> str:
    return (provenanceOf(node) or {}).get("bundle", {}).get("id", "")


def _columns(current: Any, earlier: Any, task: Task) -> list[Column]:
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
        *regionColumns(task.regions),
        Column(
            "Earlier volume",
            earlierVolumes,
            "ml",
            _("Volume at the earlier examination"),
            _("Earlier volume"),
        ),
        Column("Volume", currentVolumes, "ml", _("Volume in the result"), _("Volume")),
        Column(
            "Change", changes, "ml", _("Volume in the result minus earlier volume"), _("Change")
        ),
        Column(
            "Relative change",
            percents,
            "%",
            _("Change in percent of the earlier volume"),
            _("Relative change"),
        ),
        Column(
            "Earlier diameter",
            earlierDiameter,
            "mm",
            _("Longest axial diameter at the earlier examination"),
            _("Earlier diameter"),
        ),
        Column(
            "Diameter",
            diameter,
            "mm",
            _("Longest axial diameter in the result"),
            _("Diameter"),
        ),
        Column(
            "Diameter change",
            diameterChanges,
            "mm",
            _("Longest axial diameter in the result minus the earlier one"),
            _("Diameter change"),
        ),
    ]
