"""Charts of a report: one look, drawn by Matplotlib without pyplot, the same input giving the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from medmap.task import Task

INK, QUIET, RULE = "#1d2a33", "#66757f", "#d9e0e4"
PALETTE = ("#1f77a4", "#c8553d", "#c2920e", "#5b8c3a", "#7b5aa6", "#3f4f5a")
"""Colors of regions, modalities and lines, in order; told apart under red-green color blindness by lightness, too."""

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


def style(axes, *, title: str = "", x: str = "", y: str = "", grid: str = "y") -> None:
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


def heat_map(summary: Mapping, task: Task, title: str) -> bytes:
    """The subset table as a picture: a row a subset with dots for its scans, a column a region, Dice in every cell.

    Args:
        summary: as ``medmap.evaluation.summarize`` makes it; a bundle card's older tables without averages will do.
        task: of the bundle.
        title: above the picture.
    """
    subsets, averages = summary["subsets"], summary.get("averages", {})
    regions, scans = [r.name for r in task.regions], task.modalities
    rows = [*subsets.items(), *averages.items()]
    figure = new_figure(1.5 + 0.36 * len(scans) + 1.15 * len(regions), 0.9 + 0.3 * len(rows))
    axes = figure.add_subplot()
    left = len(scans) * 0.42
    for n, (name, scores) in enumerate(rows):
        down = n + (0.35 if n >= len(subsets) else 0)
        if n < len(subsets):
            _dots(axes, down, name.split("+"), task)
        else:
            axes.text(
                left - 0.12, down, f"mean, {name}", ha="right", va="center", fontsize=8, color=INK
            )
        for column, region in enumerate(regions):
            _cell(axes, left + column, down, scores[region])
    for n, modality in enumerate(scans):
        axes.text(
            0.3 + 0.42 * n - 0.3,
            -0.75,
            modality.title,
            ha="center",
            fontsize=7.5,
            color=QUIET,
            rotation=35,
        )
    for column, region in enumerate(regions):
        axes.text(
            left + column + 0.45,
            -0.75,
            region,
            ha="center",
            fontsize=9,
            color=INK,
            fontweight="bold",
        )
    axes.set_xlim(-1.35 if averages else -0.3, left + len(regions))
    axes.set_ylim(len(rows) + 0.1, -1.3)
    axes.axis("off")
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    return figure_png(figure)


def _dots(axes, down: float, names: Sequence[str], task: Task) -> None:
    for n, modality in enumerate(task.modalities):
        there = modality.name in names
        axes.plot(
            0.42 * n,
            down,
            "o",
            markersize=6,
            color=INK if there else "white",
            markeredgecolor=INK,
            mew=0.8,
        )


def _cell(axes, across: float, down: float, score: Mapping) -> None:
    mean = score["mean"]
    axes.fill_between(
        [across, across + 0.94], down - 0.46, down + 0.46, color=HEAT(mean), linewidth=0
    )
    color = "white" if mean > 0.5 else INK
    axes.text(
        across + 0.45,
        down,
        f"{mean:.3f}",
        ha="right",
        va="center",
        fontsize=8.5,
        color=color,
        fontweight="bold",
    )
    axes.text(
        across + 0.49, down, f"± {score['sd']:.2f}", ha="left", va="center", fontsize=7, color=color
    )


def by_missing(
    values: Mapping[int, Mapping[str, Sequence[float]]], regions: Sequence[str]
) -> bytes:
    """Dice against the number of missing scans: one panel a region, a dot a case and its median, quartiles as a bar.

    Args:
        values: number of missing scans -> region -> one value a case.
        regions: in the order of the panels.
    """
    figure = new_figure(2.6 * len(regions) + 0.4, 2.7)
    rng = np.random.default_rng(0)
    panels = figure.subplots(1, len(regions), sharey=True, squeeze=False)[0]
    for axes, region, color in zip(panels, regions, PALETTE, strict=False):
        for missing, found in values.items():
            points = np.asarray(found[region], float)
            axes.plot(
                missing + rng.uniform(-0.16, 0.16, len(points)),
                points,
                "o",
                ms=3.2,
                color=color,
                alpha=0.45,
                mew=0,
            )
            low, middle, high = np.percentile(points, (25, 50, 75))
            axes.plot(
                [missing, missing],
                [low, high],
                color=color,
                linewidth=5,
                alpha=0.35,
                solid_capstyle="butt",
            )
            axes.plot([missing - 0.26, missing + 0.26], [middle, middle], color=color, linewidth=2)
        axes.set_xticks(list(values))
        axes.set_ylim(-0.02, 1.02)
        style(axes, title=region, x="scans missing", y="Dice" if region == regions[0] else "")
    return figure_png(figure)


def forest(
    tests: Sequence[Mapping],
    labels: Mapping[str, str],
    regions: Sequence[str],
    ours: str,
    theirs: str,
) -> bytes:
    """Differences with confidence intervals, a panel a region; filled where Holm's correction leaves p < 0.05.

    Args:
        tests: of one kind, as ``PairedTest.to_dict`` gives them.
        labels: unit -> words.
        regions: in the order of the panels.
        ours, theirs: names of A and B.
    """
    units = list(dict.fromkeys(test["unit"] for test in tests))
    figure = new_figure(2.5 * len(regions) + 1.8, 0.9 + 0.24 * len(units))
    panels = figure.subplots(1, len(regions), sharey=True, squeeze=False)[0]
    for axes, region, color in zip(panels, regions, PALETTE, strict=False):
        axes.axvline(0, color=INK, linewidth=0.8)
        for test in (test for test in tests if test["region"] == region):
            down, found = units.index(test["unit"]), test["p_holm"] < 0.05
            if test["low"] is not None:
                axes.plot([test["low"], test["high"]], [down, down], color=color, linewidth=1.6)
            face = color if found else "white"
            axes.plot(
                test["difference"], down, "o", ms=5, color=face, markeredgecolor=color, mew=1.4
            )
        style(
            axes,
            title=region,
            x=f"Dice of {ours} minus {theirs}" if region == regions[len(regions) // 2] else "",
            grid="x",
        )
        axes.margins(x=0.12)
    panels[0].set_yticks(range(len(units)), [labels.get(unit, unit) for unit in units])
    panels[0].set_ylim(len(units) - 0.4, -0.6)
    return figure_png(figure)
