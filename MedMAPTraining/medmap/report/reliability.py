"""The reliability diagram: how often the reference has what was predicted with a probability."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from medmap.report.figures import INK, PALETTE, figure_png, new_figure, style


class Bins(Protocol):
    """What is drawn of each region (``medmap.evaluation.calibration.Reliability``)."""

    @property
    def voxels(self) -> np.ndarray:
        """[B] number of voxels by bin."""

    @property
    def probability(self) -> np.ndarray:
        """[B] mean probability."""

    @property
    def frequency(self) -> np.ndarray:
        """[B] share that the reference has."""

    @property
    def expected_calibration_error(self) -> float:
        """0 is perfect."""


def reliability_diagram(regions: Mapping[str, Bins]) -> bytes:
    """A PNG with one panel for each region; points on the diagonal are perfectly calibrated.

    The area of a point grows with the number of its voxels.

    Args:
        regions: bins by name of the region.
    """
    figure = new_figure(2.6 * len(regions) + 0.4, 3.0)
    panels = figure.subplots(1, len(regions), sharey=True, squeeze=False)[0]
    for number, (region, bins) in enumerate(regions.items()):
        axes = panels[number]
        color = PALETTE[number % 6]
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
        filled = bins.voxels > 0
        probability = bins.probability[filled]
        frequency = bins.frequency[filled]
        # Of logarithms: most voxels are certain background, and would hide all other points.
        sizes = 12 * np.log10(1 + bins.voxels[filled])
        axes.plot(probability, frequency, color=color)
        axes.scatter(probability, frequency, s=sizes, color=color)
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
        title = f"{region}, ECE {bins.expected_calibration_error:.3f}"
        y_title = ""
        if number == 0:
            y_title = "share in the reference"
        style(axes, title=title, x="probability", y=y_title)
    return figure_png(figure)
