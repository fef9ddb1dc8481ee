"""Pictures of a case for a report: three planes through the tumor, labels in color."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from medmap.agreement import PLANES, slice_axis
from medmap.task import Task
from medmap.volume import Grid

OPACITY = 0.45
WINDOW_PERCENTILES = (1.0, 99.5)
HEIGHT = 300
"""Pixels of a picture."""
MARGIN = 3
"""Voxels that are left around the brain."""


def planePictures(
    image: np.ndarray, labels: np.ndarray, grid: Grid, task: Task
) -> dict[str, np.ndarray]:
    """The slice with most tumor in each plane, in the radiological convention.

    Args:
        image: [I, J, K] of any numeric type, on the grid of the labels.
        labels: [I, J, K] label values; where they are all zero the middle slices are shown.
        grid: where the voxels lie in the world.
        task: colors of the labels.

    Returns:
        Plane -> [H, W, 3] uint8.
    """
    low, high = _window(image)
    box = _brainBox(image, labels)
    pictures = {}
    for plane in ("axial", "coronal", "sagittal"):
        axis = slice_axis(grid, plane)
        planeAxes = tuple(other for other in range(3) if other != axis)
        areas = (labels > 0).sum(axis=planeAxes)
        index = labels.shape[axis] // 2
        if areas.any():
            index = int(np.argmax(areas))
        part = list(box)
        part[axis] = slice(index, index + 1)
        gray = image[tuple(part)].squeeze(axis).astype(np.float32)
        gray = np.clip((gray - low) / max(high - low, 1e-6), 0, 1)
        colored = _colored(gray, labels[tuple(part)].squeeze(axis), task)
        pictures[plane] = _oriented(colored, grid, axis, PLANES[plane])
    return pictures


def _brainBox(image: np.ndarray, labels: np.ndarray) -> tuple[slice, slice, slice]:
    """The box around everything that is not empty: a margin of air would make the brain small."""
    visible = (image != 0) | (labels != 0)
    sides = []
    for axis in range(3):
        otherAxes = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(visible.any(axis=otherAxes))
        first = 0
        last = visible.shape[axis]
        if occupied.size:
            first = max(0, int(occupied[0]) - MARGIN)
            last = min(last, int(occupied[-1]) + 1 + MARGIN)
        sides.append(slice(first, last))
    return sides[0], sides[1], sides[2]


def pngBytes(pixels: np.ndarray) -> bytes:
    """A picture [H, W, 3] uint8 as PNG."""
    height, width = pixels.shape[:2]
    image = vtk.vtkImageData()
    image.SetDimensions(width, height, 1)
    # VTK counts rows from the bottom.
    rows = np.ascontiguousarray(pixels[::-1]).reshape(-1, 3)
    image.GetPointData().SetScalars(numpy_to_vtk(rows, deep=True))
    writer = vtk.vtkPNGWriter()
    writer.SetInputData(image)
    writer.WriteToMemoryOn()
    writer.Write()
    return vtk_to_numpy(writer.GetResult()).tobytes()


def _window(image: np.ndarray) -> tuple[float, float]:
    """Darkest and brightest intensity of the gray scale, from the voxels that are not empty."""
    visible = image[image != 0]
    if not visible.size:
        return 0.0, 1.0
    low, high = np.percentile(visible[:: max(1, visible.size // 200_000)], WINDOW_PERCENTILES)
    return float(min(low, 0.0)), float(high)


def _colored(gray: np.ndarray, labels: np.ndarray, task: Task) -> np.ndarray:
    """[H, W, 3] uint8: gray values with the labels' colors over them."""
    pixels = np.repeat(gray[..., None] * 255.0, 3, axis=2)
    for label in task.labels:
        mask = labels == label.value
        color = np.array(label.color, np.float32)
        pixels[mask] = (1 - OPACITY) * pixels[mask] + OPACITY * color
    return np.round(pixels).astype(np.uint8)


def _oriented(pixels: np.ndarray, grid: Grid, axis: int, normal: int) -> np.ndarray:
    """Rows from superior (or anterior) to inferior, columns from the patient's right to left, with
    square pixels.

    Args:
        pixels: [A, B, 3], A and B the array axes besides ``axis`` in their order.
        grid: of the volume.
        axis: array axis that was cut.
        normal: world axis (R, A, S) that the plane is stacked along.
    """
    directions: Sequence[np.ndarray] = [grid.affine[:3, other] for other in range(3)]
    arrayAxes = [other for other in range(3) if other != axis]
    down = 2 if normal != 2 else 1
    first, second = arrayAxes
    firstIsRows = abs(directions[first][down]) >= abs(directions[second][down])
    rows, columns = (first, second) if firstIsRows else (second, first)
    if not firstIsRows:
        pixels = pixels.transpose(1, 0, 2)
    # Superior and anterior are up: the world coordinate must fall from row to row.
    if directions[rows][down] > 0:
        pixels = pixels[::-1]
    across = 0 if normal != 0 else 1
    # The patient's right, and anterior in a sagittal slice, is at the left of the picture.
    if directions[columns][across] > 0:
        pixels = pixels[:, ::-1]
    rowMm, columnMm = float(grid.spacing[rows]), float(grid.spacing[columns])
    return _scaled(pixels, rowMm, columnMm)


def _scaled(pixels: np.ndarray, rowMm: float, columnMm: float) -> np.ndarray:
    """Nearest neighbor to ``HEIGHT`` rows of square pixels."""
    height = pixels.shape[0] * rowMm
    width = pixels.shape[1] * columnMm
    columns = max(1, round(HEIGHT * width / height))
    rowIndex = (np.arange(HEIGHT) * pixels.shape[0]) // HEIGHT
    columnIndex = (np.arange(columns) * pixels.shape[1]) // columns
    return pixels[rowIndex][:, columnIndex]
