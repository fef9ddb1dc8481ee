"""The report of one case: warnings, pictures, measurements, what made them.

It names no patient: names of segmentations and of references are all that comes from the scene.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from medmap import NOTICE, __version__
from medmap.agreement import EMPTY_RULE
from medmap.report import html
from medmap.task import Task

from ..devices import deviceTitle
from ..expected_performance import expectedPerformance, measurementText
from ..i18n import languageTag, translator
from ..i18n.sentences import findingText, sentence
from . import follow_up, review_nodes, uncertainty
from .editing import isEditedByHand, sourceVolumeOf
from .export import warningFindings
from .nodes import ROLE, ROLE_EDITED, columnOf
from .pictures import planePictures, pngBytes
from .planes import planeTitle
from .reference import labelsOn, resampledVolume
from .reference_parts import unusedSegments
from .results import resultsTable
from .scene import provenanceOf

_ = translator(__file__)

UNDEFINED = "\u2013"
PICTURES_WIDTH = 580
"""Pixels of a page (96 to an inch) that the three pictures beside each other take on paper."""


@dataclass(frozen=True)
class CaseReport:
    """The report of a case, for any page format.

    Attributes:
        title: name of the segmentation.
        lead: what it was made from, as a sentence.
        notice: what the results may be used for.
        sections: (title, HTML) of what there is to report.
        foot: what wrote the report.
        language: tag of the language of all texts (BCP 47).
    """

    title: str
    lead: str
    notice: str
    sections: tuple[tuple[str, str], ...]
    foot: str
    language: str = "en"

    def webPage(self) -> str:
        """One page of HTML with everything in it."""
        return html.page(
            self.title,
            self.lead,
            self.sections,
            self.foot,
            notice=self.notice,
            language=self.language,
        )


def caseReport(
    scene: Any, segmentationNode: Any, task: Task, card: Mapping, locale: str = "en_US"
) -> CaseReport:
    """Collect what is known of a segmentation.

    Args:
        scene: vtkMRMLScene with the segmentation, its source volume, and what was compared.
        segmentationNode: vtkMRMLSegmentationNode of the result, or of its edited copy.
        task: labels and regions.
        card: the model's card, for the expected performance.
        locale: of the application.

    Raises:
        InputDataError: the segmentation cannot be read.
    """
    provenance = provenanceOf(segmentationNode) or {}
    sections = [
        (_("Warnings"), html.bullets(_warnings(segmentationNode, task), quiet=False)),
        (_("Pictures"), _pictures(segmentationNode, task)),
        (_("Volumes and diameters"), _measurements(scene, segmentationNode, task)),
        (_("Expected performance"), _performance(provenance, task, card)),
        (_agreementTitle(scene, segmentationNode), _agreement(scene, segmentationNode)),
        (_("Modality comparison"), _subsets(scene, segmentationNode, task)),
        (_("Follow-up"), _followUp(scene, segmentationNode, task)),
        (_("How it was made"), html.bullets(_facts(segmentationNode, provenance, task))),
    ]
    measured = "Volumes and diameters"
    return CaseReport(
        title=segmentationNode.GetName(),
        lead=_lead(provenance, task),
        notice=sentence(NOTICE),
        sections=tuple((title, body) for title, body in sections if body),
        foot=f"MedMAP {__version__}",
        language=languageTag(measured, _("Volumes and diameters"), locale),
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


def _warnings(segmentationNode: Any, task: Task) -> list[str]:
    texts = []
    if isEditedByHand(segmentationNode):
        # On the first page: the volumes below are not the model's.
        texts.append(_("Edited by hand: the figures are those of the edited labels."))
    unused = unusedSegments(segmentationNode, task)
    if unused:
        text = _("Not measured, because they are none of the labels: {segments}")
        texts.append(text.format(segments=", ".join(unused)))
    for finding in warningFindings(segmentationNode):
        texts.append(findingText(finding.get("message", ""), finding.get("remedy", "")))
    return texts


def _pictures(segmentationNode: Any, task: Task) -> str:
    volume = sourceVolumeOf(segmentationNode)
    if volume is None:
        return html.paragraph(_("The volume that was segmented is no longer in the scene."))
    onGrid = labelsOn(segmentationNode, segmentationNode, task)
    image = resampledVolume(volume, segmentationNode, onGrid.geometry)
    pictures = planePictures(image, onGrid.labels, onGrid.geometry.grid, task)
    scale = sum(pixels.shape[1] for pixels in pictures.values()) / PICTURES_WIDTH
    parts = []
    for plane, pixels in pictures.items():
        title = planeTitle(plane)
        alt = _("{plane} slice with the largest area of tumor").format(plane=title)
        caption = _caption(plane).format(plane=title[:1].upper() + title[1:])
        parts.append(
            f'<td class="plane">{html.picture(pngBytes(pixels), alt, caption, scale)}</td>'
        )
    legend = []
    for label in task.labels:
        color = "#{:02x}{:02x}{:02x}".format(*label.color)
        title = escape(sentence(label.title))
        legend.append(f'<span style="color:{color}">\u25a0</span> {title}')
    table = f'<table class="planes"><tr>{"".join(parts)}</tr></table>'
    return f'<div class="scroll">{table}</div><p>{" &nbsp; ".join(legend)}</p>'


def _caption(plane: str) -> str:
    """Template of the caption of a picture: a reader must know which side is which."""
    if plane == "sagittal":
        return _("{plane}; anterior is on the left")
    return _("{plane}; the patient's right is on the left")


def _measurements(scene: Any, segmentationNode: Any, task: Task) -> str:
    table = resultsTable(scene, segmentationNode, task)
    head = [
        _("Region"),
        _("Volume (ml)"),
        _("Longest axial diameter (mm)"),
        _("Longest diameter (mm)"),
    ]
    columns = dict.fromkeys(("Volume", "Axial diameter", "Diameter"), _number)
    return html.plain_table(head, _rows(table, columns))


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


def _agreementTitle(scene: Any, segmentationNode: Any) -> str:
    nodes = review_nodes.nodesOf(scene, segmentationNode)
    if nodes is not None and review_nodes.recordOf(nodes).get("withResult"):
        return _("Agreement with another result")
    return _("Agreement with the reference")


def _agreement(scene: Any, segmentationNode: Any) -> str:
    nodes = review_nodes.nodesOf(scene, segmentationNode)
    if nodes is None:
        return ""
    head = [_("Region"), _("Dice"), _("Sensitivity"), _("Precision"), _("HD95 (mm)")]
    columns = {"Dice": _score, "Sensitivity": _score, "Precision": _score, "HD95": _number}
    rows = _rows(nodes.scores, columns)
    record = review_nodes.recordOf(nodes)
    body = html.plain_table(head, rows)
    if review_nodes.isOutdated(scene, segmentationNode, nodes):
        body += html.paragraph(_("The result or the reference has changed since."))
    name = record.get("reference")
    if name:
        body += html.paragraph(_("Compared with '{name}'.").format(name=name))
    reading = str(record.get("reading", ""))
    if reading:
        body += html.paragraph(sentence(reading))
    return body + html.paragraph(sentence(EMPTY_RULE), quiet=True)


def _subsets(scene: Any, segmentationNode: Any, task: Task) -> str:
    nodes = uncertainty.nodesOf(scene, segmentationNode)
    if nodes is None:
        return ""
    names = [region.name for region in task.regions]
    columns = [columnOf(nodes.table, f"{name} change") for name in names]
    rows = []
    for number, title in enumerate(columnOf(nodes.table, "Scans")):
        rows.append([title, *(_change(column[number]) for column in columns)])
    changeHead = _("{region}: change (ml)")
    head = [_("Modalities"), *(changeHead.format(region=name) for name in names)]
    return html.plain_table(head, rows)


def _followUp(scene: Any, segmentationNode: Any, task: Task) -> str:
    table = follow_up.tableOf(scene, segmentationNode)
    if table is None:
        return ""
    head = [
        _("Region"),
        _("Earlier (ml)"),
        _("Now (ml)"),
        _("Change (ml)"),
        _("Change (%)"),
        _("Earlier \u00d8 (mm)"),
        _("Now \u00d8 (mm)"),
    ]
    columns = {
        "Earlier volume": _number,
        "Volume": _number,
        "Change": _change,
        "Relative change": _change,
        "Earlier diameter": _number,
        "Diameter": _number,
    }
    notes = []
    earlier = scene.GetNodeByID(table.GetAttribute(follow_up.EARLIER) or "")
    if earlier is not None:
        notes.append(_("Earlier: {name}").format(name=earlier.GetName()))
    for finding in follow_up.findingsOfTable(scene, segmentationNode, table, task):
        notes.append(findingText(finding.message, finding.remedy))
    return html.plain_table(head, _rows(table, columns)) + html.bullets(notes, quiet=False)


def _facts(segmentationNode: Any, provenance: dict, task: Task) -> list[str]:
    facts = []
    if segmentationNode.GetAttribute(ROLE) == ROLE_EDITED:
        facts.append(_("Edited by hand: a copy of the model's result, which is kept apart."))
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
        facts.append(_("Computed on: {device}").format(device=deviceTitle(run["device"])))
    return facts or [_("It is not recorded how this segmentation was made.")]


def _rows(table: Any, columns: Mapping[str, Callable[[float], str]]) -> list[list[str]]:
    """Texts of some columns of a table node, behind name and region.

    Args:
        table: vtkMRMLTableNode.
        columns: name of a column -> function that turns its values into texts.
    """
    names = columnOf(table, "Name")
    regions = columnOf(table, "Region")
    values = {name: columnOf(table, name) for name in columns}
    rows = []
    for number, region in enumerate(regions):
        cells = [form(values[name][number]) for name, form in columns.items()]
        rows.append([f"{names[number]} ({region})", *cells])
    return rows


def _number(value: float) -> str:
    return UNDEFINED if np.isnan(value) else f"{value:.1f}"


def _score(value: float) -> str:
    return UNDEFINED if np.isnan(value) else f"{value:.3f}"


def _change(value: float) -> str:
    return UNDEFINED if np.isnan(value) else f"{value:+z.1f}"
