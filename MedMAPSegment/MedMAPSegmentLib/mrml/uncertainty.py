"""Modality comparison and uncertainty maps as a table and overlays in the scene.

``whatIfWork`` gives the computation for a runner; ``apply`` puts its result into the scene. PyTorch
is imported by the worker only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

from ..devices import computing
from ..i18n import translator
from ..i18n.sentences import sentence
from ..request import Request, preparedRequest
from ..runner import Progress, Work
from .geometry import matrixFromArray
from .nodes import (
    Column,
    Geometry,
    allOrNothing,
    derive,
    derivedNode,
    fillTable,
    geometryOf,
)
from .scene import PROVENANCE, provenanceOf

if TYPE_CHECKING:
    from medmap.subset_comparison import WhatIf


_ = translator(__file__)

ROLE_TABLE = "what if"
MADE_FROM = "MedMAP.MadeFrom"
"""Attribute of the table: provenance of the result that was compared."""
UNCERTAINTY = "MedMAP.Uncertainty"
"""Attribute of an uncertainty volume: the name of the map."""

DESCRIPTIONS = {
    ENTROPY: "Entropy of the class probabilities, 0 (certain) to 1 (all classes alike)",
    DISAGREEMENT: (
        "Fraction of the other modality subsets that give the voxel another label, 0 to 1"
    ),
    REGION_DISAGREEMENT: (
        "Fraction of the other modality subsets that differ about the model's first region, 0 to 1"
    ),
}
# Values of a table of the scene, by which a loaded scene is read: not translated.
KINDS = {
    CURRENT: "Current",
    LEAVE_ONE_OUT: "One less",
    ADD_BACK: "One more",
    OTHER: "Other",
}

# Two equally likely classes of four give 0.5: a wider window would hide what matters.
_WINDOWS = {ENTROPY: (0.0, 0.5)}
_COLORS = ("vtkMRMLColorTableNodeFileInferno.txt", "vtkMRMLColorTableNodeIron")


@dataclass(frozen=True)
class WhatIfNodes:
    """Nodes of a modality comparison.

    Attributes:
        table: vtkMRMLTableNode, one row per modality subset.
        volumes: name of the map -> vtkMRMLScalarVolumeNode.
    """

    table: Any
    volumes: dict[str, Any]


@dataclass(frozen=True)
class UncertainSlice:
    """One slice with high uncertainty.

    Attributes:
        index: along the slice axis of the array, from 0.
        share: this slice's fraction of all uncertainty, 0..1.
        ras: world position in mm of the middle of the uncertain voxels, to jump to.
        rank: 0 is the most uncertain.
        count: number of slices with any uncertainty.
    """

    index: int
    share: float
    ras: tuple[float, float, float]
    rank: int
    count: int


def whatIfWork(
    request: Request,
    loadBundle: Callable[[], Any],
    reference: str,
    current: Sequence[str] | None = None,
    subsets: Sequence[Sequence[str]] | None = None,
) -> Work:
    """The computation for a runner; it touches neither MRML nor VTK nor Qt.

    Args:
        request: with every volume that may take part.
        loadBundle: called on the worker; returns the loaded bundle.
        reference: modality on whose grid the current result lies (``Segmentation.reference``).
        current: modalities that the current result was made from; None for all of the request.
        subsets: modality subsets to compute; None for every non-empty one.
    """

    def work(progress: Progress, cancelled: Callable[[], bool]) -> WhatIf:
        from medmap.subset_comparison import what_if  # imports torch

        bundle = loadBundle()
        with computing():
            prepared = preparedRequest(request, bundle.task, progress, cancelled)
            return what_if(
                prepared.request.volumes,
                bundle,
                current=current,
                subsets=subsets,
                reference=reference,
                device=request.device,
                progress=prepared.progress,
                cancel=cancelled,
            )

    return work


def apply(
    scene: Any,
    segmentationNode: Any,
    comparison: WhatIf,
    maps: Sequence[str] = (ENTROPY, DISAGREEMENT),
) -> WhatIfNodes:
    """Put the table and the uncertainty overlays into the scene, or refresh existing ones.

    Args:
        scene: vtkMRMLScene that takes the nodes.
        segmentationNode: the current result.
        comparison: ``medmap.subset_comparison.WhatIf``.
        maps: which maps to show; those that were not computed are skipped.

    Raises:
        InputDataError: the segmentation is gone or lies on another grid. No node has been added
            then, nor after any other exception.
    """
    geometry = _checkedGeometry(scene, segmentationNode, comparison)
    segmentationName = segmentationNode.GetName()
    with allOrNothing(scene):
        title = _("{name} - modality comparison").format(name=segmentationName)
        table = derive(scene, "vtkMRMLTableNode", ROLE_TABLE, segmentationNode, title)
        fillTable(table, _columns(comparison))
        currentTitle = comparison.task.subset_title(comparison.current)
        text = _("Compared with {modalities} in the same run.")
        table.SetDescription(text.format(modalities=currentTitle))
        table.SetAttribute(MADE_FROM, segmentationNode.GetAttribute(PROVENANCE))
        volumes = {}
        for name in maps:
            if name in comparison.maps:
                values = comparison.maps[name]
                volumes[name] = _addVolume(scene, segmentationNode, geometry, name, values)
    return WhatIfNodes(table, volumes)


def nodesOf(scene: Any, segmentationNode: Any) -> WhatIfNodes | None:
    """Nodes of a segmentation in the scene (also after loading a scene); None without a table."""
    table = derivedNode(scene, "vtkMRMLTableNode", ROLE_TABLE, segmentationNode)
    if table is None or _isOfAnotherResult(table, segmentationNode):
        return None
    volumes = {}
    for name in DESCRIPTIONS:
        node = derivedNode(scene, "vtkMRMLScalarVolumeNode", _role(name), segmentationNode)
        if node is not None:
            volumes[name] = node
    return WhatIfNodes(table, volumes)


def _isOfAnotherResult(table: Any, segmentationNode: Any) -> bool:
    """Whether the node has been filled with another result since."""
    before = json.loads(table.GetAttribute(MADE_FROM) or "{}")
    if not before:
        return False
    present = provenanceOf(segmentationNode) or {}
    return any(before.get(key) != present.get(key) for key in ("modalities", "bundle", "run"))


def uncertainSlice(
    comparison: WhatIf, name: str = ENTROPY, rank: int = 0, plane: str = "axial"
) -> UncertainSlice | None:
    """The slice of that rank by its sum of uncertainty; past the last it starts again.

    Args:
        comparison: ``medmap.subset_comparison.WhatIf``.
        name: which map.
        rank: 0 for the most uncertain.
        plane: ``axial``, ``coronal`` or ``sagittal``.

    Returns:
        None when nothing is uncertain, or the map was not computed.
    """
    values = comparison.maps.get(name)
    if values is None:
        return None
    axis = slice_axis(comparison.grid, plane)
    order = heaviest_slices(values, axis)
    if not order:
        return None
    rank %= len(order)
    index = order[rank]
    sliceSum = np.take(values, index, axis).sum(dtype=np.float64)
    share = float(sliceSum / values.sum(dtype=np.float64))
    right, anterior, superior = focus(values, comparison.grid, axis, index)
    ras = (float(right), float(anterior), float(superior))
    return UncertainSlice(index, share, ras, rank, len(order))


def _checkedGeometry(scene: Any, segmentationNode: Any, comparison: WhatIf) -> Geometry:
    """Where the segmentation lies. Raises InputDataError if it is gone or was moved."""
    removed = segmentationNode is None
    if not removed:
        removed = scene.GetNodeByID(segmentationNode.GetID()) is not segmentationNode
    if removed:
        raise InputDataError(
            "The segmentation was removed during the computation.", "Press Apply again."
        )
    geometry = geometryOf(segmentationNode)
    if geometry.grid.distance(comparison.grid) > 0.1 * geometry.grid.spacing.min():
        raise InputDataError(
            f"The segmentation '{segmentationNode.GetName()}' lies on another grid or was moved "
            "since.",
            "Press Apply again, then repeat the comparison.",
        )
    return geometry


def _columns(comparison: WhatIf) -> list[Column]:
    """Columns of the table, one row per variant."""
    rows = comparison.variants
    titles = [comparison.task.subset_title(row.modalities) for row in rows]
    kinds = [KINDS[row.kind] for row in rows]
    columns = [
        Column("Scans", titles, title=_("Modalities")),
        Column("Kind", kinds, title=_("Kind")),
    ]
    for region in comparison.task.regions:
        name = region.name
        volumes = [row.volumes_ml[name] for row in rows]
        changes = [row.change_ml[name] for row in rows]
        dice = [row.dice[name] for row in rows]
        title = sentence(region.title)
        changeTip = _("{region}: volume minus the current volume").format(region=title)
        diceTip = _("{region}: agreement with the current result").format(region=title)
        heads = [_("{region} volume"), _("{region} change"), _("{region} Dice")]
        volumeHead, changeHead, diceHead = [head.format(region=name) for head in heads]
        columns += [
            Column(f"{name} volume", volumes, "ml", title, volumeHead),
            Column(f"{name} change", changes, "ml", changeTip, changeHead),
            Column(f"{name} Dice", dice, "", diceTip, diceHead),
        ]
    return columns


def _mapTitle(name: str) -> str:
    """Name of the node of a map; ``{name}`` stands for the segmentation's."""
    titles = {
        ENTROPY: _("{name} - entropy"),
        DISAGREEMENT: _("{name} - disagreement"),
        REGION_DISAGREEMENT: _("{name} - disagreement about the first region"),
    }
    return titles[name]


def _role(name: str) -> str:
    return f"uncertainty {name}"


def _addVolume(
    scene: Any, segmentationNode: Any, geometry: Geometry, name: str, values: np.ndarray
) -> Any:
    """Volume node of one map; values [I, J, K] on the segmentation's grid."""
    title = _mapTitle(name).format(name=segmentationNode.GetName())
    node = derive(scene, "vtkMRMLScalarVolumeNode", _role(name), segmentationNode, title)
    kji = np.ascontiguousarray(values.transpose(2, 1, 0), dtype=np.float32)
    slicer.util.updateVolumeFromArray(node, kji)
    node.SetIJKToRASMatrix(matrixFromArray(geometry.local))
    node.SetAndObserveTransformNodeID(geometry.transformID)
    node.SetAttribute(UNCERTAINTY, name)
    node.SetDescription(sentence(DESCRIPTIONS[name]))
    node.CreateDefaultDisplayNodes()
    low, high = _WINDOWS.get(name, (0.0, 1.0))
    _display(scene, node.GetDisplayNode(), low, high)
    return node


def _display(scene: Any, display: Any, low: float, high: float) -> None:
    """A heat map over a fixed range, so that two patients can be compared.

    Certain voxels stay transparent.
    """
    if display is None:
        return
    for color in _COLORS:
        if scene.GetNodeByID(color) is not None:
            display.SetAndObserveColorNodeID(color)
            break
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(low, high)
    display.AutoThresholdOff()
    display.SetLowerThreshold(low + 0.02 * (high - low))
    display.SetUpperThreshold(1.0)
    display.ApplyThresholdOn()
