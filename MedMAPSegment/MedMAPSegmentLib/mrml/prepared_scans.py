"""Prepared scans in the scene: copies in a folder, beside a result that was made from them.

The scans of the user stay as they are. Everything here belongs to the result and goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import slicer.util

from medmap.errors import MedMAPError
from medmap.task import Task

from ..i18n import translator
from ..request import Request
from .geometry import ijkToRAS, matrixFromArray, parentToWorld
from .nodes import (
    ROLE,
    ROLE_FOLDER,
    SEGMENTATION,
    allOrNothing,
    belongsTo,
    derive,
    derivedNode,
    orientedMask,
    release,
    share,
)
from .sampling import gridOf

if TYPE_CHECKING:
    from medmap.preparation.workflow import Preparation

_ = translator(__file__)

SOURCE = "MedMAP.Source"
"""Reference of a prepared scan to the volume that it is a copy of."""
BRAIN = "Brain"
"""ID of the segment of a brain mask."""
BRAIN_COLOR = (0.9, 0.8, 0.4)
SAME_PLACE_MM = 1e-3
"""Rounding of matrices that were saved with a scene stays below."""


def addPreparedScans(
    scene: Any, segmentationNode: Any, request: Request, preparation: Preparation, task: Task
) -> dict[str, Any]:
    """Put the prepared scans of a result into the scene, and what an earlier run left away.

    A scan that was moved lies under a linear transform of its own; the brain mask is a segmentation
    that can be edited and chosen for another run. Scans that another result has in the same form
    are shared with it.

    Args:
        scene: vtkMRMLScene that takes the nodes.
        segmentationNode: vtkMRMLSegmentationNode of the result.
        request: the scans as they were chosen.
        preparation: what was done to them.
        task: names of the modalities.

    Returns:
        Modality name -> vtkMRMLScalarVolumeNode, of the scans that the preparation changed.
    """
    added = []
    nodes = {}
    with allOrNothing(scene):
        for name, volume in preparation.volumes.items():
            if volume is request.volumes[name]:
                continue
            scan = _PreparedScan(scene, segmentationNode, request, preparation, name)
            existing = scan.existing()
            if existing is None or not belongsTo(existing, segmentationNode):
                removeScan(scene, segmentationNode, name)
            if existing is None:
                nodes[name] = scan.addVolume()
                added += scan.nodes
            else:
                scan.shareWith(existing)
                nodes[name] = existing
        if added:
            _group(scene, segmentationNode, added)
    for name in task.modality_names:
        if name not in nodes:
            removeScan(scene, segmentationNode, name)
    return nodes


def preparedScans(
    scene: Any, segmentationNode: Any, scans: Mapping[str, Any], task: Task
) -> dict[str, Any]:
    """The scans, with the prepared copies of a result in the place of those that it was made from.

    Args:
        scene: vtkMRMLScene, possibly a loaded one.
        segmentationNode: vtkMRMLSegmentationNode of the result.
        scans: modality name -> volume node, or None.
        task: names of the modalities.
    """
    prepared = dict(scans)
    for name in task.modality_names:
        node = derivedNode(scene, "vtkMRMLScalarVolumeNode", _role(name), segmentationNode)
        if node is not None and node.GetNodeReference(SOURCE) is scans.get(name):
            prepared[name] = node
    return prepared


def removeScan(scene: Any, segmentationNode: Any, name: str) -> None:
    """Remove the prepared scan of a result with its mask and transform; what other results share
    with it stays theirs.
    """
    nodes = []
    for className, role in _classes(name).items():
        node = derivedNode(scene, className, role, segmentationNode)
        if node is not None:
            nodes.append(node)
    release(scene, nodes, segmentationNode)


def _role(modality: str) -> str:
    return f"prepared {modality}"


def _classes(modality: str) -> dict[str, str]:
    """Class and role of the nodes of one scan."""
    return {
        "vtkMRMLScalarVolumeNode": _role(modality),
        "vtkMRMLSegmentationNode": f"brain mask {modality}",
        "vtkMRMLLinearTransformNode": f"alignment {modality}",
    }


class _PreparedScan:
    """Adds the nodes of one scan.

    Attributes:
        nodes: what was added.
    """

    def __init__(
        self,
        scene: Any,
        segmentationNode: Any,
        request: Request,
        preparation: Preparation,
        name: str,
    ):
        self.scene = scene
        self.segmentationNode = segmentationNode
        self.name = name
        self.volume = preparation.volumes[name]
        self.mask = preparation.masks.get(name)
        self.movement = preparation.movements.get(name)
        self.source = scene.GetNodeByID(request.nodeIDs[name])
        self.sourceName = request.nodeNames[name]
        self.nodes: list = []

    def addVolume(self) -> Any:
        """The prepared scan, with its mask and its transform where there are such."""
        node = self._derive("vtkMRMLScalarVolumeNode", _("{name} - prepared"))
        kji = np.ascontiguousarray(self.volume.array.transpose(2, 1, 0), dtype=np.float32)
        slicer.util.updateVolumeFromArray(node, kji)
        node.SetIJKToRASMatrix(matrixFromArray(self._local()))
        node.SetNodeReferenceID(SOURCE, self.source.GetID() if self.source is not None else None)
        node.CreateDefaultDisplayNodes()
        node.SetAndObserveTransformNodeID(self._parentID())
        if self.mask is not None:
            self._addMask(node, self.mask)
        return node

    def existing(self) -> Any:
        """A prepared scan of any result with these very voxels at this very place, or None."""
        count = self.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
        for number in range(count):
            node = self.scene.GetNthNodeByClass(number, "vtkMRMLScalarVolumeNode")
            if node.GetAttribute(ROLE) != _role(self.name):
                continue
            isOfSource = node.GetNodeReference(SOURCE) is self.source
            hasOwner = node.GetNodeReference(SEGMENTATION) is not None
            if isOfSource and hasOwner and self._equals(node):
                return node
        return None

    def _equals(self, node: Any) -> bool:
        """Whether nobody has changed a prepared scan into another one."""
        try:
            grid = gridOf(node)
        except MedMAPError:
            return False
        if grid.shape != self.volume.grid.shape:
            return False
        if grid.distance(self.volume.grid) > SAME_PLACE_MM:
            return False
        kji = slicer.util.arrayFromVolume(node)
        return bool(np.array_equal(kji.transpose(2, 1, 0), self.volume.array))

    def shareWith(self, node: Any) -> None:
        """Let an existing scan, its mask and its transform belong to this result, too."""
        owner = node.GetNodeReference(SEGMENTATION)
        for className, role in _classes(self.name).items():
            companion = derivedNode(self.scene, className, role, owner)
            if companion is not None:
                share(companion, self.segmentationNode)

    def _derive(self, className: str, title: str) -> Any:
        """A node of this scan; ``{name}`` in its title stands for the name of the user's scan."""
        role = _classes(self.name)[className]
        name = title.format(name=self.sourceName)
        node = derive(self.scene, className, role, self.segmentationNode, name)
        self.nodes.append(node)
        return node

    def _local(self) -> np.ndarray:
        """[4, 4] from index to RAS before the parent transform."""
        if self.source is None or self.source.GetImageData() is None:
            return self.volume.affine
        return ijkToRAS(self.source)

    def _parentID(self) -> str | None:
        """ID of the parent transform: that of the user's scan, below a new one where it moved."""
        if self.source is None:
            return None
        parentID = self.source.GetTransformNodeID()
        if self.movement is None:
            return parentID
        toWorld = parentToWorld(self.source)
        node = self._derive("vtkMRMLLinearTransformNode", _("{name} - alignment"))
        # World positions are to become movement @ toWorld @ x; others use the parent, too.
        toParent = np.linalg.inv(toWorld) @ self.movement @ toWorld
        slicer.util.updateTransformMatrixFromArray(node, toParent)
        node.SetAndObserveTransformNodeID(parentID)
        return node.GetID()

    def _addMask(self, volumeNode: Any, mask: np.ndarray) -> None:
        node = self._derive("vtkMRMLSegmentationNode", _("{name} - brain"))
        node.CreateDefaultDisplayNodes()
        node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        # The mask lies on the user's scan, too: another run takes it for that one.
        if self.source is not None and self.movement is None:
            role = node.GetReferenceImageGeometryReferenceRole()
            node.SetNodeReferenceID(role, self.source.GetID())
        segment = slicer.vtkSegment()
        segment.SetName(_("Brain"))
        segment.SetColor(*BRAIN_COLOR)
        converter = slicer.vtkSegmentationConverter
        representation = converter.GetSegmentationBinaryLabelmapRepresentationName()
        node.GetSegmentation().SetSourceRepresentationName(representation)
        segment.AddRepresentation(representation, orientedMask(mask, self._local()))
        node.GetSegmentation().AddSegment(segment, BRAIN)
        # It covers the tumor; whoever wants to see it shows it in the Data module.
        node.GetDisplayNode().SetVisibility(False)


def _group(scene: Any, segmentationNode: Any, nodes: list) -> None:
    """Put nodes into a folder beside the result."""
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    if hierarchy is None:
        return
    parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(segmentationNode))
    title = _("{name} - prepared scans").format(name=segmentationNode.GetName())
    folder = hierarchy.CreateFolderItem(parent or hierarchy.GetSceneItemID(), title)
    hierarchy.SetItemAttribute(folder, ROLE, ROLE_FOLDER)
    for node in nodes:
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, folder)
        else:
            hierarchy.CreateItem(folder, node)
