"""Picture of latent spaces: a column for each network, its t-SNE colored by modality and tissue."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#3b6fb6", "#d1495b", "#2e8b57", "#e0a030", "#7b4f9d", "#555555")
BRAIN_COLOR = "#b8bcc2"
TUMOR_COLOR = "#c0392b"


@dataclass(frozen=True)
class LatentPanel:
    """One network.

    Attributes:
        title: its name.
        points: [P, 2] positions on the map by title of the modality.
        tumor: [P] bool, whether a point lies in the tumor.
        caption: its measures.
    """

    title: str
    points: Mapping[str, np.ndarray]
    tumor: np.ndarray
    caption: str


def draw_latents(panels: Sequence[LatentPanel]) -> bytes:
    """PNG: points colored by modality above, by whether they lie in the tumor below."""
    figure = Figure(figsize=(4.4 * len(panels), 8.4), layout="constrained", dpi=110)
    axes = figure.subplots(2, len(panels), squeeze=False)
    for column, panel in enumerate(panels):
        by_modality, by_tissue = axes[:, column]
        by_modality.set_title(f"{panel.title}\n{panel.caption}", fontsize=9)
        for color, (name, points) in zip(COLORS, panel.points.items(), strict=False):
            by_modality.scatter(*points.T, s=7, c=color, label=name, alpha=0.7, linewidths=0)
        _draw_tissue(by_tissue, panel)
        for axis in (by_modality, by_tissue):
            _frame(axis)
    text = (
        "t-SNE of the latents of single modalities; a point is one voxel of one patient's latents"
    )
    figure.supxlabel(text, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_tissue(axes: Axes, panel: LatentPanel) -> None:
    # The tumor comes second, so that it lies on top.
    elsewhere = ~panel.tumor
    for points in panel.points.values():
        across, down = points[elsewhere].T
        axes.scatter(across, down, s=7, c=BRAIN_COLOR, linewidths=0)
    for number, points in enumerate(panel.points.values()):
        # One entry in the legend, not one for each modality.
        label = None
        if number == 0:
            label = "tumor"
        across, down = points[panel.tumor].T
        axes.scatter(across, down, s=9, c=TUMOR_COLOR, linewidths=0, label=label)
    axes.scatter([], [], s=9, c=BRAIN_COLOR, label="elsewhere in the brain")


def _frame(axes: Axes) -> None:
    """No ticks, for a map has no units; the legend below it."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=4,
        fontsize=8,
        markerscale=2.5,
        frameon=False,
    )
