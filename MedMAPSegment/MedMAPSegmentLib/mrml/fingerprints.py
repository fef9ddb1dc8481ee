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

_cache: dict[str, tuple[tuple, str]] = {}
"""ID of a node -> key of its last change and its fingerprint."""


def changeKey(node: Any) -> tuple:
    """Changes whenever the labels of a node do; quick, for every click. Surfaces do not matter."""
    times = tuple(image.GetMTime() for image in _images(node))
    if not node.IsA("vtkMRMLSegmentationNode"):
        return times
    segmentation = node.GetSegmentation()
    # Segments may come and go, and those of a reference are recognized by their names.
    segments = [(key, segmentation.GetSegment(key).GetName()) for key in _segmentIDs(node)]
    return (*times, *segments)


def fingerprint(node: Any) -> str:
    """A text that changes with the labels of a node, but not with saving and loading it.

    Args:
        node: vtkMRMLSegmentationNode, label volume node, or None.
    """
    if node is None:
        return ""
    key = changeKey(node)
    cached = _cache.get(node.GetID())
    if cached is None or cached[0] != key:
        parts = _segments(node) if node.IsA("vtkMRMLSegmentationNode") else _voxels(node)
        digest = hashlib.blake2b("|".join(parts).encode(), digest_size=8)
        cached = (key, digest.hexdigest())
        _cache[node.GetID()] = cached
    return cached[1]


def _segmentIDs(node: Any) -> list[str]:
    return list(node.GetSegmentation().GetSegmentIDs())


def _binaryName() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _images(node: Any) -> list[Any]:
    """The images that hold the labels of a node."""
    if not node.IsA("vtkMRMLSegmentationNode"):
        return [node.GetImageData()] if node.GetImageData() is not None else []
    images = []
    segmentation = node.GetSegmentation()
    for key in _segmentIDs(node):
        image = segmentation.GetSegment(key).GetRepresentation(_binaryName())
        if image is not None:
            images.append(image)
    return images


def _segments(node: Any) -> Iterable[str]:
    """Volume and center of every segment: files may cut an image to another extent."""
    segmentation = node.GetSegmentation()
    for key in _segmentIDs(node):
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
