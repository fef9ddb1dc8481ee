"""The report of one case as a page of HTML: warnings, pictures, measurements, what made them.

It names no patient: the name of the segmentation is the only text that comes from the scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from medmap import NOTICE, __version__
from medmap.agreement import EMPTY_RULE
from medmap.report import html
from medmap.task import Task

from ..expected_performance import expectedPerformance, measurementText
from ..i18n import translator
from ..i18n.sentences import findingText, sentence
from . import follow_up, review_nodes, uncertainty
from .editing import sourceVolumeOf
from .export import warningFindings
from .nodes import columnOf
from .pictures import planePictures, pngBytes
from .planes import planeTitle
from .reference import labelsOn, resampledVolume
from .results import resultsTable
from .scene import provenanceOf

_ = translator(__file__)

UNDEFINED = "\u2013"


def caseReport(scene: Any, segmentationNode: Any, task: Task, card: Mapping) -> str:
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
        (_("Warnings"), html.bullets(_warnings(segmentationNode))),
        (_("Pictures"), _pictures(segmentationNode, task)),
        (_("Volumes and diameters"), _measurements(scene, segmentationNode, task)),
        (_("Expected performance"), _performance(provenance, task, card)),
        (_("Agreement with the reference"), _agreement(scene, segmentationNode)),
        (_("Modality comparison"), _subsets(scene, segmentationNode, task)),
        (_("Follow-up"), _followUp(scene, segmentationNode)),
        (_("How it was made"), html.bullets(_facts(provenance, task))),
    ]
    return html.page(
        segmentationNode.GetName(),
        _lead(provenance, task),
        sections,
        f"MedMAP {__version__}",
        notice=sentence(NOTICE),
    )


def _lead(provenance: dict, task: Task) -> str:
    names = _used(provenance, task)
    if not names:
        return _("Brain tumor segmentation; it is not recorded from which modalities.")
    text = _("Brain tumor segmentation from {modalities}")
    return text.format(modalities=task.subset_title(names))


def _used(provenance: dict, task: Task) -> list[str]:
    """Modalities that the segmentation was made from, in the task's order."""
    used = provenance.get("modalities", {}).get("used", {})
    return [name for name in task.modality_names if name in used]


def _warnings(segmentationNode: Any) -> list[str]:
    texts = []
    for finding in warningFindings(segmentationNode):
        texts.append(findingText(finding.get("message", ""), finding.get("remedy", "")))
    return texts


def _pictures(segmentationNode: Any, task: Task) -> str:
    volume = sourceVolumeOf(segmentationNode)
    if volume is None:
        return html.paragraph(_("The volume that was segmented is no longer in the scene."))
    onGrid = labelsOn(segmentationNode, segmentationNode, task)
    image = resampledVolume(volume, segmentationNode, onGrid.geometry)
    parts = []
    pictures = planePictures(image, onGrid.labels, onGrid.geometry.grid, task)
    for plane, pixels in pictures.items():
        title = planeTitle(plane)
        alt = _("{plane} slice with the largest area of tumor").format(plane=title)
        data = html.picture(pngBytes(pixels), alt, title[:1].upper() + title[1:])
        parts.append(f"<td>{data}</td>")
    legend = []
    for label in task.labels:
        color = "#{:02x}{:02x}{:02x}".format(*label.color)
        title = escape(sentence(label.title))
        legend.append(f'<span style="color:{color}">\u25a0</span> {title}')
    table = f"<table><tr>{''.join(parts)}</tr></table>"
    return table + f"<p>{' &nbsp; '.join(legend)}</p>"


def _measurements(scene: Any, segmentationNode: Any, task: Task) -> str:
    table = resultsTable(scene, segmentationNode, task)
    head = [
        _("Region"),
        _("Volume (ml)"),
        _("Longest axial diameter (mm)"),
        _("Longest diameter (mm)"),
    ]
    return html.plain_table(head, _rows(table, ["Volume", "Axial diameter", "Diameter"], 1))


def _performance(provenance: dict, task: Task, card: Mapping) -> str:
    names = _used(provenance, task)
    if not names:
        return ""
    performance = expectedPerformance(task, card, names)
    measurement = html.paragraph(measurementText(performance))
    if not performance.validated:
        return measurement
    rows = []
    for score in performance.scores:
        title = f"{sentence(score.title)} ({score.region})"
        rows.append([title, f"{score.mean:.2f}", score.range])
    head = [_("Region"), _("Dice"), _("Typical range")]
    population = html.paragraph(sentence(performance.population))
    return html.plain_table(head, rows) + measurement + population


def _agreement(scene: Any, segmentationNode: Any) -> str:
    nodes = review_nodes.nodesOf(scene, segmentationNode)
    if nodes is None:
        return ""
    head = [_("Region"), _("Dice"), _("Sensitivity"), _("Precision"), _("HD95 (mm)")]
    rows = _rows(nodes.scores, ["Dice", "Sensitivity", "Precision", "HD95"], 3)
    reading = review_nodes.readingOfLabels(nodes)
    notes = html.paragraph(sentence(reading)) if reading else ""
    rule = html.paragraph(sentence(EMPTY_RULE), quiet=True)
    return html.plain_table(head, rows) + notes + rule


def _subsets(scene: Any, segmentationNode: Any, task: Task) -> str:
    nodes = uncertainty.nodesOf(scene, segmentationNode)
    if nodes is None:
        return ""
    names = [region.name for region in task.regions]
    columns = [columnOf(nodes.table, f"{name} change") for name in names]
    rows = []
    for number, title in enumerate(columnOf(nodes.table, "Scans")):
        rows.append([title, *(_number(column[number], 1) for column in columns)])
    changeHead = _("{region}: change (ml)")
    head = [_("Modalities"), *(changeHead.format(region=name) for name in names)]
    return html.plain_table(head, rows)


def _followUp(scene: Any, segmentationNode: Any) -> str:
    table = follow_up.tableOf(scene, segmentationNode)
    if table is None:
        return ""
    head = [
        _("Region"),
        _("Earlier (ml)"),
        _("Now (ml)"),
        _("Change (ml)"),
        _("Change (%)"),
    ]
    columns = ["Earlier volume", "Volume", "Change", "Relative change"]
    return html.plain_table(head, _rows(table, columns, 1))


def _facts(provenance: dict, task: Task) -> list[str]:
    facts = []
    if "bundle" in provenance:
        facts.append(_("Model: {model}").format(model=provenance["bundle"].get("id", "?")))
    reference = provenance.get("modalities", {}).get("reference")
    if reference in task.modality_names:
        title = task.modality(reference).title
        facts.append(_("Output geometry: {scan}").format(scan=title))
    for step in provenance.get("preparation", {}).get("steps", []):
        facts.append(sentence(step.get("summary", "")))
    run = provenance.get("run", {})
    if "device" in run:
        facts.append(_("Computed on: {device}").format(device=run["device"]))
    return facts or [_("It is not recorded how this segmentation was made.")]


def _rows(table: Any, columns: list[str], digits: int) -> list[list[str]]:
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
