"""How a result is drawn on the slices: filled, as an outline, or as its difference from another."""

from __future__ import annotations

from typing import Any

FILL = "fill"
OUTLINE = "outline"
DIFFERENCE = "difference"
MODES = (FILL, OUTLINE, DIFFERENCE)
OVERLAY = "overlay"
"""Parameter of the scene: the chosen mode."""


def overlayOf(parameterNode: Any) -> str:
    """The chosen mode of a scene; filled where nothing was chosen."""
    mode = parameterNode.GetParameter(OVERLAY)
    return mode if mode in MODES else FILL


def setOverlay(parameterNode: Any, mode: str) -> None:
    """Choose a mode."""
    parameterNode.SetParameter(OVERLAY, mode)


def showOverlay(mode: str, segmentationNode: Any, differenceNode: Any) -> None:
    """Draw a result.

    Args:
        mode: one of ``MODES``; without a difference node, ``DIFFERENCE`` draws the result filled.
        segmentationNode: vtkMRMLSegmentationNode of the result.
        differenceNode: vtkMRMLSegmentationNode with agreement and differences, or None.
    """
    showsDifference = mode == DIFFERENCE and differenceNode is not None
    display = segmentationNode.GetDisplayNode()
    if display is not None:
        display.SetVisibility(not showsDifference)
        display.SetVisibility2DFill(mode != OUTLINE)
        display.SetVisibility2DOutline(True)
    if differenceNode is not None and differenceNode.GetDisplayNode() is not None:
        differenceNode.GetDisplayNode().SetVisibility(showsDifference)
