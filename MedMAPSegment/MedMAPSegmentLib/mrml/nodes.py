"""What results, review and uncertainty share: the voxel grid of a segmentation, tables, and nodes
that are found again.

Every node that is derived from a segmentation carries its role as an attribute and a reference to
the segmentation. Doing the same again refreshes it instead of adding another; the reference
survives saving the scene.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from medmap.errors import InputDataError
from medmap.io.atomic import write_bytes
from medmap.volume import Grid

from .geometry import arrayFromMatrix, matrixFromArray
from .output_files import outputFile
from .scene import placeBeside, removeWithDisplay

ROLE = "MedMAP.Role"
SEGMENTATION = "MedMAP.Segmentation"
ROLE_EDITED = "edited"
"""Role of the copy of a result that a person edits."""
ROLE_FOLDER = "prepared scans"
"""Role of a folder of prepared scans, which is no node but an item of the subject hierarchy."""


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a segmentation lie.

    Attributes:
        shape: voxels along i, j, k.
        local: [4, 4] array index -> RAS before the parent transform.
        toWorld: [4, 4] parent transform to world; identity without one.
        transformID: ID of the parent transform node, or None.
        text: the geometry as Slicer serializes it.
    """

    shape: tuple[int, int, int]
    local: np.ndarray
    toWorld: np.ndarray
    transformID: str | None
    text: str

    @property
    def grid(self) -> Grid:
        """The voxels in the world."""
        return Grid(self.shape, self.toWorld @ self.local)


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: by which code, scripts and CSV files find it; unique in the table, never translated.
        values: texts, or numbers (nan is an empty-looking cell).
        unit: unit of the numbers.
        description: what it is, for the tool tip.
        title: heading in the user's language; empty for the name.
    """

    name: str
    values: Sequence = field(default_factory=tuple)
    unit: str = ""
    description: str = ""
    title: str = ""


def geometryOf(segmentationNode: Any) -> Geometry:
    """The reference geometry that a segmentation node carries.

    Raises:
        InputDataError: it carries none, or lies under a non-linear transform.
    """
    converter = slicer.vtkSegmentationConverter
    name = converter.GetReferenceImageGeometryParameterName()
    text = segmentationNode.GetSegmentation().GetConversionParameter(name)
    image = slicer.vtkOrientedImageData()
    if (
        not text
        or not converter.DeserializeImageGeometry(text, image, False)
        or min(image.GetDimensions()) < 1
    ):
        raise InputDataError(
            f"The segmentation '{segmentationNode.GetName()}' has no reference geometry.",
            "Choose a segmentation made by MedMAP, or set the source geometry in the Segment "
            "Editor.",
        )
    matrix, first = vtk.vtkMatrix4x4(), np.eye(4)
    image.GetImageToWorldMatrix(matrix)
    first[:3, 3] = image.GetExtent()[::2]
    transform = segmentationNode.GetParentTransformNode()
    toWorld = vtk.vtkMatrix4x4()
    if transform is not None and not transform.GetMatrixTransformToWorld(toWorld):
        raise InputDataError(
            f"The segmentation '{segmentationNode.GetName()}' is under the non-linear transform "
            f"'{transform.GetName()}'.",
            "Harden the transform (Data module, right-click on the segmentation).",
        )
    width, height, depth = image.GetDimensions()
    return Geometry(
        (int(width), int(height), int(depth)),
        arrayFromMatrix(matrix) @ first,
        arrayFromMatrix(toWorld),
        segmentationNode.GetTransformNodeID(),
        text,
    )


def resampledNearest(
    image: Any, imageToLocal: np.ndarray, parent: Any, geometry: Geometry, geometryParent: Any
) -> np.ndarray:
    """Nearest voxel of an image at each voxel of a geometry; 0 outside.

    Args:
        image: vtkImageData; its origin, spacing and directions are not used, its extent is.
        imageToLocal: [4, 4] voxel index (as in the extent) -> RAS before the parent transform.
        parent: parent transform node of the image's node, of any kind, or None.
        geometry: where values are wanted.
        geometryParent: parent transform node that belongs to ``geometry``, or None.

    Returns:
        [I, J, K] of the image's scalar type.
    """
    between = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(geometryParent, parent, between)
    plain = vtk.vtkImageData()
    plain.ShallowCopy(image)
    plain.SetOrigin(0, 0, 0)
    plain.SetSpacing(1, 1, 1)
    plain.SetDirectionMatrix(1, 0, 0, 0, 1, 0, 0, 0, 1)
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(plain)
    reslice.SetResliceTransform(_chain(geometry.local, between, np.linalg.inv(imageToLocal)))
    reslice.SetInterpolationModeToNearestNeighbor()
    reslice.SetBackgroundLevel(0)
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetOutputExtent(*(v for n in geometry.shape for v in (0, n - 1)))
    reslice.Update()
    values = vtk_to_numpy(reslice.GetOutput().GetPointData().GetScalars())
    return values.reshape(geometry.shape[::-1]).transpose(2, 1, 0).copy()


def _chain(before: np.ndarray, between: Any, after: np.ndarray) -> Any:
    """One transform out of three; a plain matrix where it can be, because reslicing is much faster
    then.
    """
    linear = linearPart(between)
    if linear is not None:
        result = vtk.vtkTransform()
        # Rounding errors of matrix inversion must not decide between two voxels.
        result.SetMatrix(matrixFromArray(np.round(after @ linear @ before, 9)))
        return result
    result = vtk.vtkGeneralTransform()
    result.PostMultiply()
    for part in (matrixFromArray(before), between, matrixFromArray(after)):
        result.Concatenate(part)
    return result


def linearPart(transform: Any) -> np.ndarray | None:
    """[4, 4] of a vtkGeneralTransform that is linear; None for one that bends."""
    linear = vtk.vtkTransform()
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(transform, linear):
        return None
    return arrayFromMatrix(linear.GetMatrix())


def orientedMask(values: np.ndarray, local: np.ndarray) -> Any:
    """[I, J, K] uint8 or bool as vtkOrientedImageData.

    Args:
        values: one per voxel.
        local: [4, 4] array index -> RAS before the parent transform.
    """
    image = slicer.vtkOrientedImageData()
    image.SetExtent(*(v for n in values.shape for v in (0, n - 1)))
    image.SetImageToWorldMatrix(matrixFromArray(local))
    kji = np.ascontiguousarray(values.transpose(2, 1, 0), dtype=np.uint8)
    scalars = numpy_to_vtk(kji.ravel(), deep=True, array_type=vtk.VTK_UNSIGNED_CHAR)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def derivedNode(scene: Any, className: str, role: str, segmentationNode: Any) -> Any:
    """The node of that role that belongs to a segmentation; None when there is none yet."""
    for number in range(scene.GetNumberOfNodesByClass(className)):
        node = scene.GetNthNodeByClass(number, className)
        if node.GetAttribute(ROLE) == role and belongsTo(node, segmentationNode):
            return node
    return None


def belongsTo(node: Any, segmentationNode: Any) -> bool:
    """Whether a node was derived from a segmentation, maybe from others as well."""
    return segmentationNode.GetID() in _ownersOf(node)


def share(node: Any, segmentationNode: Any) -> None:
    """Let a derived node belong to one more segmentation."""
    if not belongsTo(node, segmentationNode):
        node.AddNodeReferenceID(SEGMENTATION, segmentationNode.GetID())


def _ownersOf(node: Any) -> list[str]:
    """IDs of the segmentations that a node was derived from."""
    count = node.GetNumberOfNodeReferences(SEGMENTATION)
    return [node.GetNthNodeReferenceID(SEGMENTATION, number) for number in range(count)]


def derive(scene: Any, className: str, role: str, segmentationNode: Any, name: str) -> Any:
    """The node of that role that belongs to a segmentation, made if there is none yet."""
    node = derivedNode(scene, className, role, segmentationNode)
    if node is None:
        node = scene.AddNewNodeByClass(className, scene.GenerateUniqueName(name))
        node.SetAttribute(ROLE, role)
        node.SetNodeReferenceID(SEGMENTATION, segmentationNode.GetID())
        placeBeside(scene, node, segmentationNode)
    return node


def hideDerived(scene: Any, segmentationNode: Any) -> None:
    """Hide the segmentations that were derived from one: its errors, and what a person edited."""
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(number, "vtkMRMLSegmentationNode")
        isDerived = node.GetAttribute(ROLE) and belongsTo(node, segmentationNode)
        if isDerived and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(False)


def removeDerived(scene: Any, segmentationNode: Any) -> None:
    """Remove everything that was derived from a segmentation: tables, plots, errors, uncertainty,
    prepared scans.

    What a person has edited stays, although it began as a copy of the segmentation.
    """
    nodes = [scene.GetNthNode(number) for number in range(scene.GetNumberOfNodes())]
    derived = []
    for node in nodes:
        role = node.GetAttribute(ROLE)
        if role and role != ROLE_EDITED and belongsTo(node, segmentationNode):
            derived.append(node)
    release(scene, derived, segmentationNode)


def release(scene: Any, nodes: Sequence, segmentationNode: Any) -> None:
    """Remove derived nodes of a segmentation; those that others share with it stay theirs."""
    unshared = []
    for node in nodes:
        owners = _ownersOf(node)
        if len(owners) > 1:
            node.RemoveNthNodeReferenceID(SEGMENTATION, owners.index(segmentationNode.GetID()))
        else:
            unshared.append(node)
    removeNodes(scene, unshared)


def removeNodes(scene: Any, nodes: Sequence) -> None:
    """Remove nodes with their display nodes, and the folders of ours that are empty then."""
    hierarchy = scene.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    for node in nodes:
        if hierarchy is not None and hierarchy.GetItemByDataNode(node):
            # Before its node: an item without one stays in its folder.
            hierarchy.RemoveItem(hierarchy.GetItemByDataNode(node), False, False)
        removeWithDisplay(scene, node)
    if hierarchy is None or not nodes:
        return
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    for number in range(items.GetNumberOfIds()):
        item = items.GetId(number)
        isOurs = hierarchy.GetItemAttribute(item, ROLE) == ROLE_FOLDER
        if isOurs and hierarchy.GetNumberOfItemChildren(item) == 0:
            hierarchy.RemoveItem(item)


def inScene(scene: Any, node: Any) -> Any:
    """The node; None for none, and for one that is no longer in the scene."""
    if node is None or not scene.IsNodePresent(node):
        return None
    return node


@contextmanager
def allOrNothing(scene: Any) -> Iterator[None]:
    """Remove every node that was added inside the block when the block raises."""
    before = {scene.GetNthNode(n).GetID() for n in range(scene.GetNumberOfNodes())}
    try:
        yield
    except Exception:
        nodes = [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
        for node in [node for node in nodes if node.GetID() not in before]:
            scene.RemoveNode(node)
        raise


def fillTable(node: Any, columns: Sequence[Column]) -> None:
    """Replace everything that a table node holds."""
    table = vtk.vtkTable()
    for column in columns:
        table.AddColumn(_array(column))
    wasModified = node.StartModify()
    try:
        for n in range(node.GetNumberOfColumns()):
            node.RemoveAllColumnProperties(node.GetColumnName(n))
        node.SetAndObserveTable(table)
        node.SetUseColumnTitleAsColumnHeader(True)
        node.SetLocked(True)
        for column in columns:
            if column.unit:
                node.SetColumnUnitLabel(column.name, column.unit)
            if column.description:
                node.SetColumnDescription(column.name, column.description)
            node.SetColumnTitle(column.name, column.title or column.name)
    finally:
        node.EndModify(wasModified)


def _array(column: Column) -> Any:
    if all(isinstance(value, str) for value in column.values):
        result = vtk.vtkStringArray()
        for value in column.values:
            result.InsertNextValue(value)
    else:
        values = np.asarray(column.values)
        isInteger = np.issubdtype(values.dtype, np.integer)
        result = numpy_to_vtk(values.astype(np.int32 if isInteger else np.float64), deep=True)
    result.SetName(column.name)
    return result


def columnOf(node: Any, name: str) -> list:
    """Values of one column of a table node."""
    array = node.GetTable().GetColumnByName(name)
    return [array.GetValue(n) for n in range(array.GetNumberOfValues())]


def saveCsv(node: Any, path: str | Path) -> Path:
    """Write a table node as CSV (RFC 4180): headings with units, numbers in full, empty where they
    are not defined.

    Args:
        node: vtkMRMLTableNode.
        path: file to write or replace; ``.csv`` is added to a name without this ending, which then
            replaces nothing.

    Returns:
        The file.

    Raises:
        OutputError: the folder is missing or cannot be written.
        IOFailure: writing broke off; a file that was there is as it was.
    """
    path = outputFile(path, (".csv",))
    names = [node.GetColumnName(number) for number in range(node.GetNumberOfColumns())]
    # The mark tells spreadsheets that it is UTF-8.
    write_bytes(path, _tableText(node, names, ",").encode("utf-8-sig"))
    return path


def clipboardText(node: Any) -> str:
    """A table node as text for a spreadsheet or a document: tab-separated, with the headings in the
    user's language.
    """
    titles = []
    for number in range(node.GetNumberOfColumns()):
        name = node.GetColumnName(number)
        titles.append(node.GetColumnTitle(name) or name)
    return _tableText(node, titles, "\t")


def _tableText(node: Any, titles: Sequence[str], delimiter: str) -> str:
    """A table node, one line per row: headings with units, numbers in full, and nothing where they
    are not defined.
    """
    headings = []
    columns = []
    for number, title in enumerate(titles):
        name = node.GetColumnName(number)
        unit = node.GetColumnUnitLabel(name)
        headings.append(f"{title} ({unit})" if unit else title)
        columns.append(columnOf(node, name))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(headings)
    for row in zip(*columns, strict=True):
        writer.writerow([_cell(value) for value in row])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return ""
    return value
