"""Matrices of MRML nodes as numpy arrays, in mm and RAS."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk

from medmap.errors import InputDataError


def parentToWorld(node: Any) -> np.ndarray:
    """Transform of a node's parent chain to the world.

    Returns:
        [4, 4] float64; the identity without a parent transform.

    Raises:
        InputDataError: a transform of the chain is not linear.
    """
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise InputDataError(
            f"The volume '{node.GetName()}' is under the non-linear transform "
            f"'{transform.GetName()}'.",
            "Harden the transform (Data module, right-click on the volume) or choose the volume "
            "without it.",
        )
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToWorld(matrix)
    return arrayFromMatrix(matrix)


def ijkToRAS(node: Any) -> np.ndarray:
    """[4, 4] from array index to the RAS of a volume node, that is before its parent transform."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    # An array begins with index 0; the first voxel of an image need not: its extent says which it
    # is.
    first = np.eye(4)
    first[:3, 3] = node.GetImageData().GetExtent()[::2]
    return arrayFromMatrix(matrix) @ first


def arrayFromMatrix(matrix: Any) -> np.ndarray:
    """[4, 4] float64 of a vtkMatrix4x4."""
    array = np.empty((4, 4), dtype=np.float64)
    for row, column in np.ndindex(4, 4):
        array[row, column] = matrix.GetElement(row, column)
    return array


def matrixFromArray(array: np.ndarray) -> Any:
    """vtkMatrix4x4 of a [4, 4] array."""
    matrix = vtk.vtkMatrix4x4()
    for row, column in np.ndindex(4, 4):
        matrix.SetElement(row, column, float(array[row, column]))
    return matrix
