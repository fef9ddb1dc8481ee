"""The subset table of a report: modalities as dots, scores as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.colors import to_hex

from medmap.evaluation.tables import Statistics, Summary, counted
from medmap.report.figures import HEAT
from medmap.report.html import framed_table
from medmap.task import Task


def subset_table(summary: Summary, task: Task) -> str:
    """The subset table as papers lay it out.

    Dots for modalities, Dice as a heat map, HD95 and scores after the minimum-volume rule where the
    summary has them.
    """
    columns = _score_columns(summary, task)
    head = ""
    for modality in task.modalities:
        head += f"<th>{escape(modality.title)}</th>"
    for column in columns:
        head += f"<th>{escape(column.region)}<br>{column.title}</th>"
    lines = []
    previous_size = 0
    for key in summary.dice.subsets:
        size = len(key.split("+"))
        # A rule above the first subset of each size.
        row_class = ""
        if previous_size and size != previous_size:
            row_class = " class=first"
        dots = _subset_dots(key, summary.mark(key), task)
        cells = _score_cells(summary, columns, "subsets", key)
        lines.append(f"<tr{row_class}>{dots}{cells}</tr>")
        previous_size = size
    for number, (name, regions) in enumerate(summary.dice.averages.items()):
        subsets = regions[task.regions[0].name].subsets or 0
        title = f"mean, {name} ({counted(subsets, 'subset')})"
        label = f'<td class="name" colspan="{len(task.modalities)}">{escape(title)}</td>'
        row_class = ""
        if number == 0:
            row_class = " class=first"
        cells = _score_cells(summary, columns, "averages", name)
        lines.append(f"<tr{row_class}>{label}{cells}</tr>")
    return framed_table(head, lines)


def _subset_dots(key: str, mark: str, task: Task) -> str:
    """Cells with a dot for each modality of a subset; a mark stands in the last one."""
    names = key.split("+")
    dots = ""
    for modality in task.modalities:
        dots += _dot(modality.name in names)
    if mark:
        dots = dots.removesuffix("</td>") + f"<sup>{mark}</sup></td>"
    return dots


FURTHER_TITLES = {
    "lesion_dice": "lesion-wise Dice",
    "lesion_hd95_mm": "lesion-wise HD95 mm",
    "nsd": "NSD",
}
"""Headings of the scores that an evaluation has only where they were asked for."""


@dataclass(frozen=True)
class _ScoreColumn:
    """A column of the subset table: the score's name in ``Summary.tables``, and its heading."""

    score: str
    title: str
    region: str


def _score_columns(summary: Summary, task: Task) -> list[_ScoreColumn]:
    """Each score of all regions, followed by that after the rule of the regions that have one."""
    columns = []
    names = [region.name for region in task.regions]
    # The rule is that of BraTS: enhancing tumor below a volume counts as absent.
    names_with_rule = [name for name in names if name in summary.least_mm3]
    for score, title in (("dice", "Dice"), ("hd95", "HD95 mm")):
        if score in summary.tables:
            columns += [_ScoreColumn(score, title, name) for name in names]
        rule = f"{score}_rule"
        if rule in summary.tables:
            columns += [_ScoreColumn(rule, f"{title}, rule", name) for name in names_with_rule]
    for score, title in FURTHER_TITLES.items():
        if score in summary.tables:
            columns += [_ScoreColumn(score, title, name) for name in names]
    return columns


def _score_cells(summary: Summary, columns: Sequence[_ScoreColumn], kind: str, row: str) -> str:
    cells = []
    for column in columns:
        table = summary.tables[column.score]
        rows = getattr(table, kind)
        statistics = rows[row][column.region]
        if "hd95" in column.score:
            cells.append(_distance(statistics))
        else:
            cells.append(_heat(statistics))
    return "".join(cells)


def _dot(available: bool) -> str:
    if available:
        return '<td class="scan">●</td>'
    return '<td class="scan off">○</td>'


def _heat(score: Statistics) -> str:
    if score.mean is None or score.sd is None:
        return "<td>–</td>"
    mean = score.mean
    color = "#1d2a33"
    if mean > 0.5:
        # White on the dark half of the scale.
        color = "#fff"
    background = to_hex(HEAT(mean))
    style = f"background:{background};color:{color}"
    numbers = f"<b>{mean:.3f}</b> <small>± {score.sd:.3f}</small>"
    return f'<td class="heat" style="{style}">{numbers}</td>'


def _distance(score: Statistics) -> str:
    if score.mean is None:
        return "<td>–</td>"
    spread = ""
    if score.sd is not None and score.n >= 2:
        spread = f" <small>± {score.sd:.1f}</small>"
    undefined = ""
    if score.undefined:
        undefined = f' <small title="cases without a defined HD95">({score.undefined})</small>'
    return f"<td>{score.mean:.1f}{spread}{undefined}</td>"
