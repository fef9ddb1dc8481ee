"""Charts of a report in one style, by Matplotlib without pyplot; equal inputs give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from medmap.evaluation.tables import Statistics, Summary
from medmap.task import Task

INK = "#1d2a33"
QUIET = "#66757f"
RULE = "#d9e0e4"
PALETTE = ("#1f77a4", "#c8553d", "#c2920e", "#5b8c3a", "#7b5aa6", "#3f4f5a")
"""Colors of regions, modalities and lines, in order; they differ in lightness, too, for readers
with red-green color blindness."""

HEAT = LinearSegmentedColormap.from_list(
    "medmap", ["#f4efe6", "#b9d9cf", "#4fa79b", "#12665f", "#083d3a"]
)
"""Dice 0 to 1."""

_DPI = 160
SCALE = 1.6
"""Pixels of a chart to one of a page: sharp on fine screens and in print."""


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure of that size in inches."""
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style(
    axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: Literal["x", "y", ""] = "y"
) -> None:
    """Quiet axes: no box, light grid, title on the left."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=QUIET, labelsize=8, length=0)
    if grid:
        axes.grid(axis=grid, color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=9.5, color=INK, fontweight="bold")
    axes.set_xlabel(x, fontsize=8, color=QUIET)
    axes.set_ylabel(y, fontsize=8, color=QUIET)


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG without time or version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


DOT_SPACING = 0.42
"""Distance of the columns of dots, in widths of a score's column."""


def heat_map(summary: Summary, task: Task, title: str) -> bytes:
    """The subset table as a picture: a row for each subset, a column for each region.

    Dots show the modalities of a subset; every cell is colored by its Dice.

    Args:
        summary: of an evaluation or a bundle's card; averages may be missing.
        task: of the bundle.
        title: above the picture.
    """
    subsets = summary.dice.subsets
    averages = summary.dice.averages
    regions = [region.name for region in task.regions]
    count = len(subsets) + len(averages)
    # In inches: room for averages' names, then dots and cells.
    width = 1.5 + 0.36 * len(task.modalities) + 1.15 * len(regions)
    height = 0.9 + 0.3 * count
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    first_cell_x = len(task.modalities) * DOT_SPACING
    for row, (name, scores) in enumerate(subsets.items()):
        _dots(axes, row, name.split("+"), task)
        mark = summary.mark(name)
        if mark:
            _note(axes, first_cell_x, row, mark)
        _cells(axes, first_cell_x, row, [scores[region] for region in regions])
    for row, (name, scores) in enumerate(averages.items(), len(subsets)):
        # A small gap sets the averages apart from the subsets.
        down = row + 0.35
        _note(axes, first_cell_x, down, f"mean, {name}", ha="right")
        _cells(axes, first_cell_x, down, [scores[region] for region in regions])
    _heat_map_head(axes, first_cell_x, task)
    first_x = -0.3
    if averages:
        # Their names need more room than dots do.
        first_x = -1.35
    axes.set_xlim(first_x, first_cell_x + len(regions))
    axes.set_ylim(count + 0.1, -1.3)
    axes.axis("off")
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    return figure_png(figure)


def _note(axes: Axes, left: float, down: float, text: str, **alignment: Any) -> None:
    """A small text in front of the cells of a row."""
    axes.text(left - 0.12, down, text, va="center", fontsize=8, color=INK, **alignment)


def _heat_map_head(axes: Axes, left: float, task: Task) -> None:
    height = -0.75
    for column, modality in enumerate(task.modalities):
        across = 0.3 + DOT_SPACING * column - 0.3
        axes.text(
            across, height, modality.title, ha="center", fontsize=7.5, color=QUIET, rotation=35
        )
    for column, region in enumerate(task.regions):
        position = left + column + 0.45
        axes.text(
            position, height, region.name, ha="center", fontsize=9, color=INK, fontweight="bold"
        )


def _dots(axes: Axes, down: float, names: Sequence[str], task: Task) -> None:
    for column, modality in enumerate(task.modalities):
        axes.plot(
            DOT_SPACING * column,
            down,
            "o",
            markersize=6,
            color=INK if modality.name in names else "white",
            markeredgecolor=INK,
            mew=0.8,
        )


def _cells(axes: Axes, left: float, down: float, scores: Sequence[Statistics]) -> None:
    for column, score in enumerate(scores):
        _cell(axes, left + column, down, score)


def _cell(axes: Axes, across: float, down: float, score: Statistics) -> None:
    """A colored cell with mean and standard deviation; nothing where there is no mean."""
    if score.mean is None or score.sd is None:
        return
    edges = [across, across + 0.94]
    top = down - 0.46
    bottom = down + 0.46
    fill = HEAT(score.mean)
    axes.fill_between(edges, top, bottom, color=fill, linewidth=0)
    color = INK
    if score.mean > 0.5:
        # White on the dark half of the scale.
        color = "white"
    common: dict[str, Any] = {"va": "center", "color": color}
    middle = across + 0.45
    mean = f"{score.mean:.3f}"
    deviation = f"± {score.sd:.2f}"
    axes.text(middle, down, mean, ha="right", fontsize=8.5, fontweight="bold", **common)
    axes.text(across + 0.49, down, deviation, ha="left", fontsize=7, **common)


def by_missing(
    values: Mapping[int, Mapping[str, Sequence[float]]], regions: Sequence[str]
) -> bytes:
    """Dice against the number of missing modalities, one panel for each region.

    A dot for each case, a line at their median, a bar from the lower to the upper quartile.

    Args:
        values: number of missing modalities -> region -> one value for each case.
        regions: in the order of the panels.
    """
    figure = new_figure(2.6 * len(regions) + 0.4, 2.7)
    rng = np.random.default_rng(0)
    panels = figure.subplots(1, len(regions), sharey=True, squeeze=False)[0]
    for axes, region, color in zip(panels, regions, PALETTE, strict=False):
        for missing, scores in values.items():
            points = np.asarray(scores[region], float)
            count = len(points)
            # Random shifts keep equal values from hiding each other.
            shifts = rng.uniform(-0.16, 0.16, count)
            _draw_distribution(axes, missing, shifts, points, color)
        axes.set_xticks(list(values))
        # A little more than 0 to 1, so that dots at the ends are not cut.
        axes.set_ylim(-0.02, 1.02)
        y_title = ""
        if region == regions[0]:
            y_title = "Dice"
        style(axes, title=region, x="modalities missing", y=y_title)
    return figure_png(figure)


def _draw_distribution(
    axes: Axes, across: int, shifts: np.ndarray, points: np.ndarray, color: str
) -> None:
    """Dots, a bar between the quartiles, and a line at the median."""
    axes.plot(across + shifts, points, "o", ms=3.2, color=color, alpha=0.45, mew=0)
    low, median, high = np.percentile(points, (25, 50, 75))
    axes.plot(
        [across, across],
        [low, high],
        color=color,
        linewidth=5,
        alpha=0.35,
        solid_capstyle="butt",
    )
    ends = [across - 0.26, across + 0.26]
    axes.plot(ends, [median, median], color=color, linewidth=2)


def forest(
    tests: Sequence[Mapping],
    titles: Mapping[str, str],
    regions: Sequence[str],
    ours: str,
    theirs: str,
) -> bytes:
    """Differences with confidence intervals, one panel for each region.

    Dots are filled where Holm's correction leaves p < 0.05.

    Args:
        tests: of one kind, as ``PairedTest.to_dict`` gives them.
        titles: unit -> its title.
        regions: in the order of the panels.
        ours, theirs: names of A and B.
    """
    units = list(dict.fromkeys(test["unit"] for test in tests))
    unit_titles = [titles.get(unit, unit) for unit in units]
    width = 2.5 * len(regions) + 1.8
    height = 0.9 + 0.24 * len(units)
    figure = new_figure(width, height)
    panels = figure.subplots(1, len(regions), sharey=True, squeeze=False)[0]
    # The axis title stands once, below the panel in the middle.
    middle_region = regions[len(regions) // 2]
    for axes, region, color in zip(panels, regions, PALETTE, strict=False):
        axes.axvline(0, color=INK, linewidth=0.8)
        for test in tests:
            if test["region"] != region:
                continue
            row = units.index(test["unit"])
            _forest_row(axes, test, row, color)
        x_title = ""
        if region == middle_region:
            x_title = f"Dice of {ours} minus {theirs}"
        style(axes, title=region, x=x_title, grid="x")
        axes.margins(x=0.12)
    panels[0].set_yticks(range(len(units)), unit_titles)
    panels[0].set_ylim(len(units) - 0.4, -0.6)
    return figure_png(figure)


def _forest_row(axes: Axes, test: Mapping, down: int, color: str) -> None:
    """One difference with its interval; filled where it is significant."""
    if test["low"] is not None:
        interval = [test["low"], test["high"]]
        axes.plot(interval, [down, down], color=color, linewidth=1.6)
    face = "white"
    if test["p_holm"] < 0.05:
        face = color
    axes.plot(
        test["difference"],
        down,
        "o",
        ms=5,
        color=face,
        markeredgecolor=color,
        mew=1.4,
    )
