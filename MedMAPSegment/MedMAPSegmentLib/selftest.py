"""A small synthetic case, for the self test inside Slicer and for anyone without data. Not anatomy:
ellipsoids.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk

SHAPE = (40, 48, 36)
SPACING_MM = 4.0

_CONTRAST = {
    "t1": {"brain": 400.0, "edema": 330.0, "core": 300.0, "rim": 320.0},
    "t1ce": {"brain": 400.0, "edema": 340.0, "core": 280.0, "rim": 800.0},
    "t2": {"brain": 300.0, "edema": 520.0, "core": 600.0, "rim": 450.0},
    "flair": {"brain": 300.0, "edema": 620.0, "core": 380.0, "rim": 480.0},
}
"""Mean intensity of each part: bright edema on T2 and FLAIR, bright rim on T1ce, as in enhancing
glioma.
"""


def addSyntheticCase(
    scene: Any, modalities: Sequence[str] = tuple(_CONTRAST), degrees: float = 20.0
) -> dict:
    """Add one volume node per modality: a skull-stripped ellipsoid of a brain with a round tumor.

    Args:
        scene: vtkMRMLScene that takes the nodes.
        modalities: which of t1, t1ce, t2, flair.
        degrees: rotation of the voxel grid about the superior axis, so that geometry mistakes show.

    Returns:
        Modality name -> vtkMRMLScalarVolumeNode.
    """
    nodes = {}
    for name in modalities:
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"synthetic {name}")
        node.SetIJKToRASMatrix(_placement(degrees))
        slicer.util.updateVolumeFromArray(
            node, np.ascontiguousarray(_intensities(name).transpose(2, 1, 0))
        )
        node.CreateDefaultDisplayNodes()
        nodes[name] = node
    return nodes


def _intensities(name: str) -> np.ndarray:
    """[I, J, K] float32."""
    half = (np.array(SHAPE) - 1) / 2
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    fromCenter = np.linalg.norm((ijk - half) / (half - 3), axis=-1)
    fromTumor = np.linalg.norm(ijk - (half + np.array([6, 4, 2])), axis=-1) * SPACING_MM
    image = np.zeros(SHAPE, np.float32)
    for part, where in (
        ("brain", fromCenter <= 1),
        ("edema", (fromCenter <= 1) & (fromTumor <= 28)),
        ("rim", fromTumor <= 18),
        ("core", fromTumor <= 10),
    ):
        image[where] = _CONTRAST[name][part]
    noise = np.random.default_rng(sum(map(ord, name))).normal(0, 12, SHAPE).astype(np.float32)
    return np.where(image > 0, np.maximum(image + noise, 1), 0).astype(np.float32)


def _placement(degrees: float) -> Any:
    """IJKToRAS: axes left, posterior, superior as in BraTS, rotated, with the center near the
    origin.
    """
    c, s = (
        math.cos(math.radians(degrees)) * SPACING_MM,
        math.sin(math.radians(degrees)) * SPACING_MM,
    )
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, :3] = [[-c, s, 0.0], [-s, -c, 0.0], [0.0, 0.0, SPACING_MM]]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            matrix.SetElement(row, column, affine[row, column])
    return matrix
