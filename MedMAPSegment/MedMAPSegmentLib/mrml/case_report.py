"""The report of one case as a page of HTML: warnings, pictures, measurements, what made them.

It names no patient: the name of the segmentation is the only text that comes from the scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from medmap import __version__
from medmap.report import html
from medmap.task import Task

from ..expected_performance import expectedPerformance
from . import follow_up, review, uncertainty
from .editing import sourceVolumeOf
from .export import warningsOf
from .nodes import columnOf
from .pictures import planePictures, pngBytes
from .reference import labelsOn, resampledVolume
from .results import resultsTable
from .scene import provenanceOf

UNDEFINED = "\u2013"


def caseReport(scene, segmentationNode, task: Task, card: Mapping) -> str:
    """The page.

    Args:
        scene: vtkMRMLScene with the segmentation, its source volume, and what was compared.
        segmentationNode: vtkMRMLSegmentationNode of the result, or of its edited copy.
        task: labels and regions.
        card: the model's card, for the expected performance.

    Raises:
        InputDataError: the segmentation cannot be read.
    """
    provenance = provenanceOf(segmentationNode) or {}
    sections = [
        ("Warnings", html.bullets(warningsOf(segmentationNode))),
        ("Pictures", _pictures(segmentationNode, task)),
        ("Volumes and diameters", _measurements(scene, segmentationNode, task)),
        ("Expected performance", _performance(provenance, task, card)),
        ("Agreement with the reference", _agreement(scene, segmentationNode)),
        ("Modality comparison", _subsets(scene, segmentationNode, task)),
        ("Follow-up", _followUp(scene, segmentationNode)),
        ("How it was made", html.bullets(_facts(provenance, task))),
    ]
    lead = f"Brain tumor segmentation from {_modalities(provenance, task) or 'unknown modalities'}"
    return html.page(segmentationNode.GetName(), lead, sections, f"MedMAP {__version__}")


def _modalities(provenance: dict, task: Task) -> str:
    used = provenance.get("modalities", {}).get("used", {})
    names = [name for name in task.modality_names if name in used]
    return task.subset_title(names) if names else ""


def _pictures(segmentationNode, task: Task) -> str:
    volume = sourceVolumeOf(segmentationNode)
    if volume is None:
        return html.paragraph("The volume that was segmented is no longer in the scene.")
    onGrid = labelsOn(segmentationNode, segmentationNode, task)
    image = resampledVolume(volume, segmentationNode, onGrid.geometry)
    parts = []
    pictures = planePictures(image, onGrid.labels, onGrid.geometry.grid, task)
    for plane, pixels in pictures.items():
        alt = f"{plane} slice with the largest area of tumor"
        data = html.picture(pngBytes(pixels), alt, plane.capitalize())
        parts.append(f"<td>{data}</td>")
    legend = []
    for label in task.labels:
        color = "#{:02x}{:02x}{:02x}".format(*label.color)
        legend.append(f'<span style="color:{color}">\u25a0</span> {escape(label.title)}')
    table = f"<table><tr>{''.join(parts)}</tr></table>"
    return table + f"<p>{' &nbsp; '.join(legend)}</p>"


def _measurements(scene, segmentationNode, task: Task) -> str:
    table = resultsTable(scene, segmentationNode, task)
    head = ["Region", "Volume (ml)", "Longest axial diameter (mm)", "Longest diameter (mm)"]
    return html.plain_table(head, _rows(table, ["Volume", "Axial diameter", "Diameter"], 1))


def _performance(provenance: dict, task: Task, card: Mapping) -> str:
    used = provenance.get("modalities", {}).get("used", {})
    names = [name for name in task.modality_names if name in used]
    if not names:
        return ""
    performance = expectedPerformance(task, card, names)
    if not performance.validated:
        return html.paragraph("This modality subset was not validated with this model.")
    rows = []
    for score in performance.scores:
        rows.append([f"{score.title} ({score.region})", f"{score.mean:.2f}", score.range])
    kind = "patients" if performance.onPatients else "synthetic cases, not on patients"
    text = f"Measured on {performance.cases} {kind}. {performance.population}"
    return html.plain_table(["Region", "Dice", "Typical range"], rows) + html.paragraph(text)


def _agreement(scene, segmentationNode) -> str:
    nodes = review.nodesOf(scene, segmentationNode)
    if nodes is None:
        return ""
    head = ["Region", "Dice", "Sensitivity", "Precision", "HD95 (mm)"]
    rows = _rows(nodes.scores, ["Dice", "Sensitivity", "Precision", "HD95"], 3)
    reading = review.readingOfLabels(nodes)
    notes = html.paragraph(reading) if reading else ""
    return html.plain_table(head, rows) + notes + html.paragraph(review.EMPTY_RULE, quiet=True)


def _subsets(scene, segmentationNode, task: Task) -> str:
    nodes = uncertainty.nodesOf(scene, segmentationNode)
    if nodes is None:
        return ""
    names = [region.name for region in task.regions]
    columns = [columnOf(nodes.table, f"{name} change") for name in names]
    rows = []
    for number, title in enumerate(columnOf(nodes.table, "Scans")):
        rows.append([title, *(_number(column[number], 1) for column in columns)])
    head = ["Modalities", *(f"{name}: change (ml)" for name in names)]
    return html.plain_table(head, rows)


def _followUp(scene, segmentationNode) -> str:
    table = follow_up.tableOf(scene, segmentationNode)
    if table is None:
        return ""
    head = ["Region", "Then (ml)", "Now (ml)", "Change (ml)", "Change (%)"]
    columns = ["Earlier volume", "Volume", "Change", "Relative change"]
    return html.plain_table(head, _rows(table, columns, 1))


def _facts(provenance: dict, task: Task) -> list[str]:
    facts = []
    if "bundle" in provenance:
        facts.append(f"Model: {provenance['bundle'].get('id', '?')}")
    reference = provenance.get("modalities", {}).get("reference")
    if reference in task.modality_names:
        facts.append(f"Output geometry: {task.modality(reference).title}")
    for step in provenance.get("preparation", {}).get("steps", []):
        facts.append(step.get("summary", ""))
    run = provenance.get("run", {})
    if "device" in run:
        facts.append(f"Computed on: {run['device']}")
    return facts or ["No information about how this segmentation was made is recorded."]


def _rows(table, columns: list[str], digits: int) -> list[list[str]]:
    """Texts of some columns of a table node, behind name and region."""
    names = columnOf(table, "Name")
    regions = columnOf(table, "Region")
    values = [columnOf(table, name) for name in columns]
    rows = []
    for number, region in enumerate(regions):
        cells = [_number(column[number], digits) for column in values]
        rows.append([f"{names[number]} ({region})", *cells])
    return rows


def _number(value: float, digits: int) -> str:
    return UNDEFINED if np.isnan(value) else f"{value:.{digits}f}"
