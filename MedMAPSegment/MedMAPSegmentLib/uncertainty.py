"""What if a scan had been missing, and where is the result uncertain: as a table and as overlays.

``whatIfWork`` gives the computation for a runner; ``apply`` puts its result into the scene. PyTorch is imported by the
worker only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import slicer.util

from medmap.agreement import focus, heaviest_slices, slice_axis
from medmap.comparison_names import (
    ADD_BACK,
    CURRENT,
    DISAGREEMENT,
    ENTROPY,
    LEAVE_ONE_OUT,
    OTHER,
    REGION_DISAGREEMENT,
)
from medmap.errors import InputDataError

from .logic import computing
from .mrml.geometry import matrixFromArray
from .nodes import (
    Column,
    Geometry,
    allOrNothing,
    derive,
    derivedNode,
    fillTable,
    geometryOf,
)
from .runner import Work

ROLE_TABLE = "what if"
UNCERTAINTY = "MedMAP.Uncertainty"
"""Attribute of an uncertainty volume: the name of the map."""

DESCRIPTIONS = {
    ENTROPY: "Entropy of the class probabilities, 0 (certain) to 1 (all classes alike)",
    DISAGREEMENT: "Share of the other combinations of scans that give the voxel another label, 0 to 1",
    REGION_DISAGREEMENT: "Share of the other combinations of scans that differ about the model's first region, 0 to 1",
}
KINDS = {
    CURRENT: "Current",
    LEAVE_ONE_OUT: "One less",
    ADD_BACK: "One more",
    OTHER: "Other",
}

# Two classes that are equally likely give 0.5 with four classes, so a wider window would hide what matters.
_WINDOWS = {ENTROPY: (0.0, 0.5)}
_COLORS = ("vtkMRMLColorTableNodeFileInferno.txt", "vtkMRMLColorTableNodeIron")


@dataclass(frozen=True)
class WhatIfNodes:
    """What was put into the scene.

    Attributes:
        table: vtkMRMLTableNode, one row a combination of scans.
        volumes: name of the map -> vtkMRMLScalarVolumeNode.
    """

    table: Any
    volumes: dict[str, Any]


@dataclass(frozen=True)
class UncertainSlice:
    """One slice worth looking at.

    Attributes:
        index: along the slice axis of the array, from 0.
        share: this slice's part of all uncertainty, 0..1.
        ras: world position in mm of the middle of what is uncertain, to jump to.
        rank: 0 is the most uncertain.
        count: number of slices with any uncertainty.
    """

    index: int
    share: float
    ras: tuple[float, float, float]
    rank: int
    count: int


def whatIfWork(
    request,
    loadBundle: Callable[[], Any],
    reference: str,
    current: Sequence[str] | None = None,
    subsets: Sequence[Sequence[str]] | None = None,
) -> Work:
    """The computation as a piece of work for a runner; it touches neither MRML nor VTK nor Qt.

    Args:
        request: ``logic.Request`` with every scan that may take part.
        loadBundle: called on the worker; returns the loaded bundle.
        reference: modality on whose grid the current result lies (``Segmentation.reference``).
        current: modalities that the current result was made from; None for all of the request.
        subsets: what to try; None for every non-empty subset.
    """

    def work(progress, cancelled):
        from medmap.subset_comparison import what_if  # imports torch

        bundle = loadBundle()
        with computing():
            return what_if(
                request.volumes,
                bundle,
                current=current,
                subsets=subsets,
                reference=reference,
                device=request.device,
                progress=progress,
                cancel=cancelled,
            )

    return work


def apply(
    scene, segmentationNode, found, maps: Sequence[str] = (ENTROPY, DISAGREEMENT)
) -> WhatIfNodes:
    """Put what-if table and uncertainty overlays into the scene, or refresh those of this segmentation.

    Args:
        scene: vtkMRMLScene that takes the nodes.
        segmentationNode: the current result.
        found: ``medmap.subset_comparison.WhatIf``.
        maps: which maps to show; those that were not computed are left out.

    Raises:
        InputDataError: the segmentation is gone or lies on another grid. No node has been added then, nor after any
            other exception.
    """
    geometry = _checked(scene, segmentationNode, found)
    name = segmentationNode.GetName()
    with allOrNothing(scene):
        table = derive(scene, "vtkMRMLTableNode", ROLE_TABLE, segmentationNode, f"{name} - what if")
        fillTable(table, _columns(found))
        table.SetDescription(f"Compared with {_titles(found.current, found.task)} in the same run.")
        shown = {
            m: _volume(scene, segmentationNode, geometry, m, found.maps[m])
            for m in maps
            if m in found.maps
        }
    return WhatIfNodes(table, shown)


def nodesOf(scene, segmentationNode) -> WhatIfNodes | None:
    """What the scene holds for a segmentation (also after loading a scene); None without a table."""
    table = derivedNode(scene, "vtkMRMLTableNode", ROLE_TABLE, segmentationNode)
    if table is None:
        return None
    found = {
        m: derivedNode(scene, "vtkMRMLScalarVolumeNode", _role(m), segmentationNode)
        for m in DESCRIPTIONS
    }
    return WhatIfNodes(table, {m: node for m, node in found.items() if node is not None})


def uncertainSlice(
    found, name: str = ENTROPY, rank: int = 0, plane: str = "axial"
) -> UncertainSlice | None:
    """The slice of that rank, the largest sum of uncertainty first; past the last it starts again.

    Args:
        found: ``medmap.subset_comparison.WhatIf``.
        name: which map.
        rank: 0 for the most uncertain.
        plane: ``axial``, ``coronal`` or ``sagittal``.

    Returns:
        None when nothing is uncertain, or the map was not computed.
    """
    values = found.maps.get(name)
    if values is None:
        return None
    axis = slice_axis(found.grid, plane)
    order = heaviest_slices(values, axis)
    if not order:
        return None
    rank %= len(order)
    ras = focus(values, found.grid, axis, order[rank])
    share = float(
        np.take(values, order[rank], axis).sum(dtype=np.float64) / values.sum(dtype=np.float64)
    )
    return UncertainSlice(order[rank], share, tuple(float(c) for c in ras), rank, len(order))


def _checked(scene, segmentationNode, found) -> Geometry:
    if (
        segmentationNode is None
        or scene.GetNodeByID(segmentationNode.GetID()) is not segmentationNode
    ):
        raise InputDataError(
            "The segmentation was removed during the computation.", "Press Apply again."
        )
    geometry = geometryOf(segmentationNode)
    if geometry.grid.distance(found.grid) > 0.1 * geometry.grid.spacing.min():
        raise InputDataError(
            f"The segmentation '{segmentationNode.GetName()}' lies on another grid or was moved since.",
            "Press Apply again, then repeat this.",
        )
    return geometry


def _columns(found) -> list[Column]:
    rows = found.variants
    columns = [
        Column("Scans", [_titles(v.modalities, found.task) for v in rows]),
        Column("Kind", [KINDS[v.kind] for v in rows]),
    ]
    for region in found.task.regions:
        name, title = region.name, region.title
        columns += [
            Column(f"{name} volume", [v.volumes_ml[name] for v in rows], "ml", title),
            Column(
                f"{name} change",
                [v.change_ml[name] for v in rows],
                "ml",
                f"{title}: minus the current volume",
            ),
            Column(
                f"{name} Dice",
                [v.dice[name] for v in rows],
                "",
                f"{title}: agreement with the current result",
            ),
        ]
    return columns


def _titles(names: Sequence[str], task) -> str:
    return " + ".join(task.modality(name).title for name in names)


def _role(name: str) -> str:
    return f"uncertainty {name}"


def _volume(scene, segmentationNode, geometry: Geometry, name: str, values: np.ndarray):
    title = f"{segmentationNode.GetName()} - {name}"
    node = derive(scene, "vtkMRMLScalarVolumeNode", _role(name), segmentationNode, title)
    kji = np.ascontiguousarray(values.transpose(2, 1, 0), dtype=np.float32)
    slicer.util.updateVolumeFromArray(node, kji)
    node.SetIJKToRASMatrix(matrixFromArray(geometry.local))
    node.SetAndObserveTransformNodeID(geometry.transformID)
    node.SetAttribute(UNCERTAINTY, name)
    node.SetDescription(DESCRIPTIONS[name])
    node.CreateDefaultDisplayNodes()
    _display(scene, node.GetDisplayNode(), *_WINDOWS.get(name, (0.0, 1.0)))
    return node


def _display(scene, display, low: float, high: float) -> None:
    """A heat map over a fixed range, so that two patients can be compared; what is certain stays transparent."""
    if display is None:
        return
    color = next((c for c in _COLORS if scene.GetNodeByID(c) is not None), None)
    if color is not None:
        display.SetAndObserveColorNodeID(color)
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(low, high)
    display.AutoThresholdOff()
    display.SetLowerThreshold(low + 0.02 * (high - low))
    display.SetUpperThreshold(1.0)
    display.ApplyThresholdOn()
