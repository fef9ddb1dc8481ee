"""A brain mask that somebody made: a segmentation or a label volume of the scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import slicer.util

from medmap.checks import SAME_GRID_VOXELS
from medmap.errors import InputDataError, MedMAPError
from medmap.volume import Volume

from .editing import sourceVolumeOf
from .reference_parts import isLabelVolume
from .sampling import gridOf
from .scene import volumeFromNode


def scansOfMask(node: Any, scans: Mapping[str, Any], reference: str) -> tuple[str, ...]:
    """Modalities whose brain a mask shows: the scans that it lies on, else the reference scan.

    Args:
        node: vtkMRMLSegmentationNode or label volume, or None for no mask.
        scans: modality name -> volume node.
        reference: modality of the reference scan.
    """
    if node is None:
        return ()
    names = []
    if isLabelVolume(node):
        names = [name for name, scan in scans.items() if _shareGrid(node, scan)]
    else:
        source = sourceVolumeOf(node)
        names = [name for name, scan in scans.items() if scan is source]
    return tuple(names) or (reference,)


def brainMasks(node: Any, scans: Mapping[str, Any], reference: str) -> dict[str, Volume]:
    """Modality name -> mask, for the scans that a mask belongs to; positive is brain.

    Args:
        node, scans, reference: as for ``scansOfMask``.

    Raises:
        InputDataError: the mask is empty or cannot be read.
    """
    masks = {}
    for name in scansOfMask(node, scans, reference):
        mask = volumeFromNode(node) if isLabelVolume(node) else _segmentsOn(node, scans[name])
        if not (mask.array > 0).any():
            raise InputDataError(
                f"The brain mask '{node.GetName()}' is empty.", "Choose another brain mask."
            )
        masks[name] = mask
    return masks


def _shareGrid(mask: Any, scan: Any) -> bool:
    try:
        maskGrid = gridOf(mask)
        grid = gridOf(scan)
    except MedMAPError:  # what cannot be read is refused on Apply
        return False
    return maskGrid.distance(grid) <= SAME_GRID_VOXELS * float(grid.spacing.min())


def _segmentsOn(node: Any, scan: Any) -> Volume:
    """All segments together on the voxels of a scan."""
    grid = gridOf(scan)
    mask = np.zeros(grid.shape, np.float32)
    for key in node.GetSegmentation().GetSegmentIDs():
        kji = slicer.util.arrayFromSegmentBinaryLabelmap(node, key, scan)
        if kji is not None:
            mask[kji.transpose(2, 1, 0) > 0] = 1
    return Volume(mask, grid.affine, node.GetName())
