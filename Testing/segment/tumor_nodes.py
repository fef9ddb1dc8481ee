"""A small tumor as label map, as label volume and as segmentation, on an oblique grid."""

from __future__ import annotations

import numpy as np
import slicer

from MedMAPSegmentLib.mrml import nodes

SHAPE = (20, 22, 18)
AFFINE = np.array([[-0.94, 0.34, 0, 12], [-0.34, -0.94, 0, 15], [0, 0, 2.0, -8], [0, 0, 0, 1.0]])
REGIONS = ["WT", "TC", "ET"]


def tumor(center, radius, shape=SHAPE):
    ijk = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    r = np.linalg.norm(ijk - center, axis=-1) / radius
    return np.select([r < 0.4, r < 0.7, r < 1], [1, 4, 2], 0).astype(np.uint8)


def split(labels):
    return {"NCR": labels == 1, "ED": labels == 2, "ET": labels == 4}


def labelVolume(scene, mrml, labels, affine, className="vtkMRMLLabelMapVolumeNode"):
    node = scene.AddNewNodeByClass(className, "reference")
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(labels.transpose(2, 1, 0)))
    node.SetIJKToRASMatrix(mrml.matrix(affine))
    return node


def drawSegmentation(scene, masks, affine=AFFINE, codes=(), name="manual"):
    """A segmentation node as a person would make it: masks and terminology codes by name."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.GetSegmentation().SetSourceRepresentationName("Binary labelmap")
    for title, mask in masks.items():
        geometry = nodes.Geometry(mask.shape, np.array(affine), np.eye(4), None, "")
        segment = slicer.vtkSegment()
        segment.SetName(title)
        segment.SetLabelValue(1)
        if title in dict(codes):
            segment.SetTag(
                "TerminologyEntry", f"context~SCT^1^x~{dict(codes)[title]}~^^~other~^^~^^"
            )
        segment.AddRepresentation(
            "Binary labelmap", nodes.orientedMask(mask.astype(np.uint8), geometry.local)
        )
        node.GetSegmentation().AddSegment(segment, f"id {title}")
    return node
