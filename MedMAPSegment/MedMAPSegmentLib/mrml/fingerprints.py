"""What a segmentation or label volume held when something was computed from it.

A person may change a segmentation at any time, and Apply may fill it anew. Tables that were made
from it before then show figures of labels that are gone; fingerprints tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from .geometry import arrayFromMatrix

_cache: dict[str, tuple[int, str]] = {}
"""ID of a node -> time of its last change and its fingerprint."""


def changeTime(node: Any) -> int:
    """Time at which the labels of a node were changed last; quick, for every click."""
    times = [image.GetMTime() for image in _images(node)]
    if node.IsA("vtkMRMLSegmentationNode"):
        # Segments may also come and go.
        times.append(node.GetSegmentation().GetMTime())
    return max(times, default=0)


def fingerprint(node: Any) -> str:
    """A text that changes with the labels of a node, but not with saving and loading it.

    Args:
        node: vtkMRMLSegmentationNode, label volume node, or None.
    """
    if node is None:
        return ""
    time = changeTime(node)
    known = _cache.get(node.GetID())
    if known is None or known[0] != time:
        parts = _segments(node) if node.IsA("vtkMRMLSegmentationNode") else _voxels(node)
        digest = hashlib.blake2b("|".join(parts).encode(), digest_size=8)
        known = (time, digest.hexdigest())
        _cache[node.GetID()] = known
    return known[1]


def _binaryName() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _images(node: Any) -> list[Any]:
    """The images that hold the labels of a node."""
    if not node.IsA("vtkMRMLSegmentationNode"):
        return [node.GetImageData()] if node.GetImageData() is not None else []
    images = []
    segmentation = node.GetSegmentation()
    for key in segmentation.GetSegmentIDs():
        image = segmentation.GetSegment(key).GetRepresentation(_binaryName())
        if image is not None:
            images.append(image)
    return images


def _segments(node: Any) -> Iterable[str]:
    """Volume and center of every segment: files may cut an image to another extent."""
    segmentation = node.GetSegmentation()
    for key in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(key)
        image = segment.GetRepresentation(_binaryName())
        if image is None or image.GetPointData().GetScalars() is None:
            yield key
            continue
        values = vtk_to_numpy(image.GetPointData().GetScalars())
        mask = values.reshape(image.GetDimensions()[::-1]) == segment.GetLabelValue()
        count = int(np.count_nonzero(mask))
        yield f"{key} {count} {_center(mask, image) if count else ''}"


def _center(mask: np.ndarray, image: Any) -> str:
    """Center of mass of a mask [K, J, I] in mm, before the parent transform."""
    first = image.GetExtent()[::2]
    index = np.ones(4)
    for axis in range(3):
        position = 2 - axis
        otherAxes = tuple(other for other in range(3) if other != position)
        weights = np.count_nonzero(mask, axis=otherAxes)
        index[axis] = first[axis] + np.average(np.arange(mask.shape[position]), weights=weights)
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    right, anterior, superior, _ = arrayFromMatrix(matrix) @ index
    return f"{right:.3f} {anterior:.3f} {superior:.3f}"


def _voxels(node: Any) -> Iterable[str]:
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        return
    values = np.ascontiguousarray(vtk_to_numpy(image.GetPointData().GetScalars()))
    yield hashlib.blake2b(values.data, digest_size=8).hexdigest()
