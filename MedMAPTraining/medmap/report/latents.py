"""The picture of latent spaces: one column a network, its t-SNE colored by modality and by tissue."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

COLORS = ("#3b6fb6", "#d1495b", "#2e8b57", "#e0a030", "#7b4f9d", "#555555")


@dataclass(frozen=True)
class LatentPanel:
    """One network.

    Attributes:
        title: its name.
        points: [P, 2] by title of the modality.
        tumor: [P] bool.
        caption: measures, in words.
    """

    title: str
    points: Mapping[str, np.ndarray]
    tumor: np.ndarray
    caption: str


def draw_latents(panels: Sequence[LatentPanel]) -> bytes:
    """PNG: above, places colored by modality; below, by whether they lie in the tumor."""
    figure = Figure(figsize=(4.4 * len(panels), 8.4), layout="constrained", dpi=110)
    axes = figure.subplots(2, len(panels), squeeze=False)
    for column, panel in enumerate(panels):
        above, below = axes[:, column]
        for color, (name, points) in zip(COLORS, panel.points.items(), strict=False):
            above.scatter(*points.T, s=7, c=color, label=name, alpha=0.7, linewidths=0)
            below.scatter(*points[~panel.tumor].T, s=7, c="#b8bcc2", linewidths=0)
        for n, points in enumerate(panel.points.values()):
            label = "tumor" if n == 0 else None
            below.scatter(*points[panel.tumor].T, s=9, c="#c0392b", linewidths=0, label=label)
        below.scatter([], [], s=9, c="#b8bcc2", label="elsewhere in the brain")
        above.set_title(f"{panel.title}\n{panel.caption}", fontsize=9)
        for axis in (above, below):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, 0),
                ncols=4,
                fontsize=8,
                markerscale=2.5,
                frameon=False,
            )
    figure.supxlabel(
        "t-SNE of the latents of single scans; one point is one place of one patient", fontsize=9
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
