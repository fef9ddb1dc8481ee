"""The UpSet plot of a cohort: how many cases have exactly which modalities.

Source: Lex et al., "UpSet: Visualization of Intersecting Sets", IEEE TVCG 2014.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from medmap.report.figures import INK, PALETTE, RULE, figure_png, new_figure, style
from medmap.task import Task

MOST_SUBSETS = 20
"""Columns that are drawn; rarer subsets are left out, and counted in the title."""


def upset_plot(subsets: Mapping[str, int], task: Task) -> bytes:
    """A PNG: a column for each modality subset, with a bar of its cases above its dots.

    Bars on the left count the cases that have a modality.

    Args:
        subsets: number of cases by ``Task.subset_key``, in the order of the columns.
        task: names the modalities.
    """
    drawn = dict(list(subsets.items())[:MOST_SUBSETS])
    # Rare subsets would make the picture wider than a page.
    hidden = len(subsets) - len(drawn)
    figure = new_figure(2.6 + 0.42 * len(drawn), 2.0 + 0.34 * len(task.modalities))
    grid = figure.add_gridspec(
        2,
        2,
        width_ratios=(1.6, 0.42 * len(drawn)),
        height_ratios=(1.6, 0.34 * len(task.modalities)),
    )
    matrix = figure.add_subplot(grid[1, 1])
    bars = figure.add_subplot(grid[0, 1], sharex=matrix)
    totals = figure.add_subplot(grid[1, 0], sharey=matrix)
    title = f"{sum(subsets.values())} cases"
    if hidden:
        title += f", {hidden} rarer subsets not shown"
    _draw_bars(bars, drawn, title)
    draw_subset_dots(matrix, list(drawn), task)
    _draw_totals(totals, subsets, task)
    return figure_png(figure)


def _draw_bars(axes: Axes, subsets: Mapping[str, int], title: str) -> None:
    counts = list(subsets.values())
    columns = range(len(counts))
    axes.bar(columns, counts, color=PALETTE[0], width=0.62)
    for column, count in zip(columns, counts, strict=True):
        axes.text(
            column,
            count,
            str(count),
            ha="center",
            va="bottom",
            fontsize=8,
            color=INK,
        )
    style(axes, title=title, y="cases")
    axes.tick_params(labelbottom=False)


def draw_subset_dots(axes: Axes, subsets: Sequence[str], task: Task) -> None:
    """A column of dots for each subset, filled and joined where it has the modality.

    Args:
        axes: to draw into; row 0, at the top, is the task's first modality.
        subsets: by ``Task.subset_key``, from left to right.
        task: names the modalities.
    """
    names = task.modality_names
    all_rows = range(len(names))
    for column, subset in enumerate(subsets):
        axes.plot([column] * len(all_rows), all_rows, "o", color=RULE, markersize=8)
        # The key of the empty subset is the empty text.
        rows = [names.index(name) for name in subset.split("+") if name]
        axes.plot([column] * len(rows), rows, "o-", color=INK, markersize=8, linewidth=2)
    axes.set_xlim(-0.6, len(subsets) - 0.4)
    axes.set_ylim(len(names) - 0.5, -0.5)
    style(axes, grid="")
    axes.tick_params(labelbottom=False, labelleft=False)


def _draw_totals(axes: Axes, subsets: Mapping[str, int], task: Task) -> None:
    counts = []
    for name in task.modality_names:
        with_modality = [count for key, count in subsets.items() if name in key.split("+")]
        counts.append(sum(with_modality))
    rows = range(len(counts))
    axes.barh(rows, counts, color=PALETTE[1], height=0.5)
    axes.invert_xaxis()
    titles = [modality.title for modality in task.modalities]
    axes.set_yticks(rows, titles)
    axes.yaxis.tick_right()
    style(axes, x="cases with the modality", grid="x")
