"""Corrections by hand: a copy of a result that a person edits; the result stays as it was made."""

from __future__ import annotations

from typing import Any

import slicer

from ..i18n import translator
from .fingerprints import fingerprint
from .nodes import ROLE, ROLE_EDITED, derive, derivedNode, inScene
from .scene import MADE_BY, MADE_LABELS, PROVENANCE, madeLabelsOf

_ = translator(__file__)


def editedCopy(scene: Any, segmentationNode: Any) -> Any:
    """The copy of a result that is edited; made if there is none yet.

    Its segments carry no mark of this module any more, so that it is never overwritten, and the
    provenance of the result that it began with.

    Args:
        scene: vtkMRMLScene that takes the copy.
        segmentationNode: vtkMRMLSegmentationNode of the result.

    Returns:
        The vtkMRMLSegmentationNode, on the same grid and under the same transform.
    """
    existing = derivedNode(scene, "vtkMRMLSegmentationNode", ROLE_EDITED, segmentationNode)
    if existing is not None:
        return existing
    name = _("{name} - edited").format(name=segmentationNode.GetName())
    copy = derive(scene, "vtkMRMLSegmentationNode", ROLE_EDITED, segmentationNode, name)
    copy.CreateDefaultDisplayNodes()
    copy.SetAndObserveTransformNodeID(segmentationNode.GetTransformNodeID())
    segmentation = copy.GetSegmentation()
    segmentation.DeepCopy(segmentationNode.GetSegmentation())
    for number in range(segmentation.GetNumberOfSegments()):
        segmentation.GetNthSegment(number).RemoveTag(MADE_BY)
    role = segmentationNode.GetReferenceImageGeometryReferenceRole()
    copy.SetNodeReferenceID(role, segmentationNode.GetNodeReferenceID(role))
    for name in (PROVENANCE, MADE_LABELS):
        copy.SetAttribute(name, segmentationNode.GetAttribute(name))
    return copy


def isEditedByHand(segmentationNode: Any) -> bool:
    """Whether a person may have changed the labels of a result, in an edited copy or in itself.

    Nobody is kept from painting on the result itself: its labels are compared with those that the
    model made.
    """
    if segmentationNode.GetAttribute(ROLE) == ROLE_EDITED:
        return True
    original = madeLabelsOf(segmentationNode)
    return bool(original) and original != fingerprint(segmentationNode)


def separateEditedCopy(scene: Any, segmentationNode: Any) -> Any:
    """Make the edited copy of a result a segmentation of its own, which stays in the scene.

    Returns the copy, or None without one.
    """
    copy = derivedNode(scene, "vtkMRMLSegmentationNode", ROLE_EDITED, segmentationNode)
    if copy is not None:
        copy.RemoveAttribute(ROLE)
    return copy


def rejoinEditedCopy(scene: Any, copy: Any) -> None:
    """Undo ``separateEditedCopy``, if the copy is still there."""
    if inScene(scene, copy) is not None:
        copy.SetAttribute(ROLE, ROLE_EDITED)


def sourceVolumeOf(segmentationNode: Any) -> Any:
    """The volume on whose grid a segmentation lies; None if it is gone."""
    return segmentationNode.GetNodeReference(
        slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    )
