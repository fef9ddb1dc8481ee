"""The numbers of a result, as a table node: volumes and longest diameters of every region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medmap.diameters import region_diameters
from medmap.metrics import region_volumes_ml
from medmap.task import Region, Task
from medmap.volume import Grid

from ..i18n import translator
from ..i18n.sentences import sentence
from .nodes import Column, allOrNothing, derive, fillTable
from .reference import labelsOn
from .scene import PROVENANCE

_ = translator(__file__)

ROLE_RESULTS = "results"


def resultsTable(scene: Any, segmentationNode: Any, task: Task) -> Any:
    """Make or refresh the table of a segmentation: one row per region with volume (ml) and longest
    diameters (mm).

    Volumes are counted from voxels of the segmentation's own grid, in the world, as ``medmap
    segment`` does; they follow what a person has edited since. The provenance of the segmentation
    is repeated as an attribute.

    Args:
        scene: vtkMRMLScene that takes the node.
        segmentationNode: vtkMRMLSegmentationNode made by this module.
        task: labels and regions.

    Returns:
        The vtkMRMLTableNode, named after the segmentation. Columns ``Region``, ``Name``,
        ``Volume``, ``Axial diameter``, ``Diameter``.

    Raises:
        InputDataError: the segmentation cannot be read; the scene is unchanged then.
    """
    onGrid = labelsOn(segmentationNode, segmentationNode, task)
    volumes = region_volumes_ml(onGrid.labels, task, onGrid.geometry.grid.voxel_ml)
    diameters = region_diameters(onGrid.labels, task, onGrid.geometry.grid)
    columns = [
        *regionColumns(task.regions),
        Column(
            "Volume",
            [volumes[r.name] for r in task.regions],
            "ml",
            _("Number of voxels times the volume of a voxel"),
            _("Volume"),
        ),
        Column(
            "Axial diameter",
            [diameters[r.name].axial_mm for r in task.regions],
            "mm",
            _("Longest diameter within one axial slice of a connected component"),
            _("Axial diameter"),
        ),
        Column(
            "Diameter",
            [diameters[r.name].longest_mm for r in task.regions],
            "mm",
            _("Longest diameter of a connected component in any direction"),
            _("Diameter"),
        ),
    ]
    with allOrNothing(scene):
        name = _("{name} - volumes").format(name=segmentationNode.GetName())
        node = derive(scene, "vtkMRMLTableNode", ROLE_RESULTS, segmentationNode, name)
        fillTable(node, columns)
        if segmentationNode.GetAttribute(PROVENANCE) is not None:
            node.SetAttribute(PROVENANCE, segmentationNode.GetAttribute(PROVENANCE))
    return node


def regionColumns(regions: Sequence[Region]) -> list[Column]:
    """The columns that every table of regions begins with: short names, and titles."""
    titles = [sentence(region.title) for region in regions]
    return [
        Column("Region", [region.name for region in regions], title=_("Region")),
        Column("Name", titles, title=_("Name")),
    ]


def centerOfSegments(segmentationNode: Any, task: Task) -> tuple[float, float, float] | None:
    """World RAS position in mm of the middle of all labels, to jump to; None where there is none.

    Raises:
        InputDataError: the segmentation cannot be read.
    """
    onGrid = labelsOn(segmentationNode, segmentationNode, task)
    return centerOf(onGrid.labels, onGrid.geometry.grid) if onGrid.labels.any() else None


def centerOf(labels: np.ndarray, grid: Grid) -> tuple[float, float, float]:
    """World RAS position in mm of the middle of everything that is labeled, to jump to.

    Args:
        labels: [I, J, K], not all zero.
        grid: where the voxels lie in the world.
    """
    middle = [
        np.average(np.arange(n), weights=np.count_nonzero(labels, axis=otherAxes))
        for n, otherAxes in _axes(labels)
    ]
    right, anterior, superior = grid.affine[:3, :3] @ middle + grid.affine[:3, 3]
    return float(right), float(anterior), float(superior)


def _axes(labels: np.ndarray) -> list[tuple[int, tuple[int, int]]]:
    """(length, the two other axes) of each axis."""
    otherAxes = ((1, 2), (0, 2), (0, 1))
    return list(zip(labels.shape, otherAxes, strict=True))
