"""Mean Dice of several methods by modality subset: a line for each method over a row of dots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from medmap.evaluation.tables import Summary
from medmap.report.figures import INK, PALETTE, figure_png, new_figure, style
from medmap.report.upset import draw_subset_dots
from medmap.task import Task

MARKERS = ("o", "s", "^", "D", "v", "P")
"""With ``PALETTE``: methods differ in form, too, for readers who do not tell colors apart."""


def subset_chart(summaries: Mapping[str, Summary], task: Task) -> bytes:
    """A PNG: Dice averaged over regions, by subset, with a line for each method.

    Subsets stand in the order of the field's tables. A method without a score of a subset has a
    gap there. Source of the form: PASSION, Fig. 3 (average performance over modality subsets).

    Args:
        summaries: of one cohort, by the name of the method.
        task: modalities, regions, and the order of the subsets.
    """
    subsets = scored_subsets(list(summaries.values()), task)
    dots_height = 0.3 * len(task.modalities)
    width = 2.0 + 0.5 * len(subsets)
    figure = new_figure(width, 3.0 + dots_height)
    grid = figure.add_gridspec(2, 1, height_ratios=(3.0, dots_height))
    dots = figure.add_subplot(grid[1])
    lines = figure.add_subplot(grid[0], sharex=dots)
    for number, (name, summary) in enumerate(summaries.items()):
        means = mean_dice(summary, subsets, task)
        _draw_line(lines, means, name, number)
    regions = ", ".join(region.name for region in task.regions)
    style(lines, title=f"Mean Dice of {regions} by modality subset", y="Dice")
    lines.tick_params(labelbottom=False)
    lines.legend(fontsize=8, frameon=False, labelcolor=INK)
    draw_subset_dots(dots, subsets, task)
    titles = [modality.title for modality in task.modalities]
    dots.set_yticks(range(len(titles)), titles)
    dots.tick_params(labelleft=True)
    return figure_png(figure)


def scored_subsets(summaries: Sequence[Summary], task: Task) -> list[str]:
    """Keys of the subsets that any summary has, in the order of the field's tables."""
    scored: set[str] = set()
    for summary in summaries:
        scored.update(summary.dice.subsets)
    ordered = [task.subset_key(subset) for subset in task.table_order()]
    return [key for key in ordered if key in scored]


def mean_dice(summary: Summary, subsets: Sequence[str], task: Task) -> list[float]:
    """Dice averaged over the regions, by subset; nan where any of them has no mean."""
    means = []
    for subset in subsets:
        scores = summary.dice.subsets.get(subset, {})
        total = 0.0
        for region in task.regions:
            mean = None
            if region.name in scores:
                mean = scores[region.name].mean
            if mean is None:
                mean = math.nan
            total += mean
        means.append(total / len(task.regions))
    return means


def _draw_line(axes: Axes, means: Sequence[float], name: str, number: int) -> None:
    color = PALETTE[number % len(PALETTE)]
    marker = MARKERS[number % len(MARKERS)]
    axes.plot(means, color=color, marker=marker, markersize=5, linewidth=1.4, label=name)
