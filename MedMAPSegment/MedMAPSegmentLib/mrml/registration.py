"""Rigid registration of one scan to another, on request only: a transform node above the volume,
voxels untouched.

Three steps, as for segmenting: ``readPair`` (main thread) copies what is needed; a method (any
thread, for SimpleITK) finds the movement; ``applyMovement`` (main thread) puts a linear transform
between the volume and its present parent. ``registerToReference`` does all three,
``undoRegistration`` takes the transform away again, also in a saved scene.

Methods are injected. ``brainsFit`` wraps Slicer's own BRAINSFit; ``simpleItkRigid`` is the
fallback.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer.util
import vtk

from medmap.checks import affine_problem
from medmap.errors import InputDataError, InternalError, UnavailableError, UsageError
from medmap.foreground import foreground
from medmap.volume import Volume

from .geometry import arrayFromMatrix, parentToWorld
from .scene import volumeFromNode

MADE = "MedMAP.Registration"
"""Attribute of the transform nodes made here: name of the scan registered to."""
FAR_MM = 40.0
"""Brains whose centers are farther apart are first brought together by their centers."""
LARGEST_DEGREES, LARGEST_MM = 45.0, 80.0
"""A movement beyond the start that is larger is a failed registration, not a patient who moved."""


@dataclass(frozen=True)
class Pair:
    """Two scans in the world, copied out of the scene.

    Attributes:
        fixed: the scan that stays.
        moving: the scan that moves.
        fixedNode: its volume node; only for methods that run in the scene.
        movingNode: likewise.
        start: [4, 4] rigid movement in the world to begin with.
    """

    fixed: Volume
    moving: Volume
    fixedNode: Any
    movingNode: Any
    start: np.ndarray


Method = Callable[[Pair], np.ndarray]
"""Finds the [4, 4] rigid movement in world RAS, mm, that puts the moving scan onto the fixed one.
"""


@dataclass(frozen=True)
class Registration:
    """A registration that was applied.

    Attributes:
        movingID: ID of the volume node that was moved.
        transformID: ID of the linear transform node above it.
        movement: [4, 4] movement in world RAS, mm.
        degrees: angle of the rotation.
        shift_mm: how far the center of the moving scan went.
    """

    movingID: str
    transformID: str
    movement: np.ndarray
    degrees: float
    shift_mm: float

    @property
    def text(self) -> str:
        """The movement in words."""
        return f"moved by {self.shift_mm:.1f} mm and turned by {self.degrees:.1f} degrees"


def registerToReference(scene, moving, fixed, method: Method | None = None) -> Registration:
    """Register one volume to another, and wait.

    Args:
        scene: vtkMRMLScene of both.
        moving: volume node that gets a parent transform.
        fixed: volume node that stays as it is.
        method: ``brainsFit(...)``, ``simpleItkRigid`` or another one; None takes
            ``simpleItkRigid``.

    Raises:
        UsageError: both are the same node.
        InputDataError: a volume cannot be used, or the registration failed; the scene is unchanged.
        UnavailableError: the method is not installed.
    """
    pair = readPair(moving, fixed)
    return applyMovement(scene, pair, (method or simpleItkRigid)(pair))


def readPair(moving, fixed) -> Pair:
    """Copy two volumes out of the scene. Raises as ``registerToReference`` does."""
    if moving is fixed:
        raise UsageError(
            f"'{moving.GetName()}' cannot be registered to itself.", "Choose another reference."
        )
    volumes = [volumeFromNode(node) for node in (fixed, moving)]
    for node, volume in zip((fixed, moving), volumes, strict=True):
        problem = affine_problem(volume.affine)
        if problem or min(volume.array.shape) < 4 or volume.array.min() == volume.array.max():
            because = (
                f"its voxel-to-world matrix {problem}"
                if problem
                else "it is too small or has no contrast"
            )
            raise InputDataError(
                f"'{node.GetName()}' cannot be registered: {because}.", "Choose another volume."
            )
    start = np.eye(4)
    apart = _center(volumes[0]) - _center(volumes[1])
    if np.linalg.norm(apart) > FAR_MM:
        start[:3, 3] = apart
    return Pair(volumes[0], volumes[1], fixed, moving, start)


def applyMovement(scene, pair: Pair, movement: np.ndarray) -> Registration:
    """Put a movement into the scene: a new linear transform between the moving volume and its
    present parent.

    Raises:
        InputDataError: the movement is not rigid or impossibly large, or a volume is gone; the
            scene is unchanged.
    """
    movement = np.asarray(movement, dtype=float)
    degrees, shift = _size(movement, _center(pair.moving))
    beyond = (
        _size(movement @ np.linalg.inv(pair.start), _center(pair.fixed))
        if np.isfinite(degrees)
        else (np.inf, 0)
    )
    if not (beyond[0] <= LARGEST_DEGREES and beyond[1] <= LARGEST_MM):
        raise InputDataError(
            f"'{pair.movingNode.GetName()}' could not be registered to "
            f"'{pair.fixedNode.GetName()}'.",
            "Align them by hand (Transforms module) or leave the scan out.",
        )
    moving = scene.GetNodeByID(pair.moving.name)
    if moving is None or scene.GetNodeByID(pair.fixed.name) is None:
        raise InputDataError(
            "A volume was removed during the registration.", "Choose the volumes again."
        )
    previous = moving.GetTransformNodeID()
    toWorld = parentToWorld(moving)
    name = scene.GenerateUniqueName(f"{moving.GetName()} to {pair.fixedNode.GetName()}")
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    # World positions are to become movement @ toWorld @ x; toWorld itself stays the parent, for
    # others use it, too.
    slicer.util.updateTransformMatrixFromArray(
        transform, np.linalg.inv(toWorld) @ movement @ toWorld
    )
    transform.SetAndObserveTransformNodeID(previous)
    transform.SetAttribute(MADE, pair.fixedNode.GetName())
    moving.SetAndObserveTransformNodeID(transform.GetID())
    return Registration(moving.GetID(), transform.GetID(), movement, degrees, shift)


def isRegistered(node) -> bool:
    """True when a volume's parent is a transform that was made here."""
    transform = node.GetParentTransformNode()
    return transform is not None and transform.GetAttribute(MADE) is not None


def undoRegistration(scene, node) -> bool:
    """Put a volume back under the parent that it had before, and remove the transform unless other
    nodes use it.

    Returns:
        False, and changes nothing, when the volume's parent is no transform that was made here.
    """
    if not isRegistered(node):
        return False
    transform = node.GetParentTransformNode()
    node.SetAndObserveTransformNodeID(transform.GetTransformNodeID())
    count = scene.GetNumberOfNodesByClass("vtkMRMLTransformableNode")
    transformables = (scene.GetNthNodeByClass(n, "vtkMRMLTransformableNode") for n in range(count))
    if not any(other.GetTransformNodeID() == transform.GetID() for other in transformables):
        scene.RemoveNode(transform)
    return True


def brainsFit(scene, runCli: Callable[[dict], Any]) -> Method:
    """Slicer's BRAINSFit as a method; main thread only.

    Args:
        scene: vtkMRMLScene for temporary nodes.
        runCli: runs BRAINSFit to its end with these parameters and returns its command line module
            node, as ``lambda parameters: slicer.cli.runSync(slicer.modules.brainsfit, None,
            parameters)`` does.
    """

    def method(pair: Pair) -> np.ndarray:
        temporary = []
        try:
            # Command line modules see volumes without their parents, so they get stand-ins that lie
            # in the world.
            volumes = [_standIn(scene, node) for node in (pair.fixedNode, pair.movingNode)]
            start, resultTransform = (
                scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "MedMAP temporary")
                for _ in "ab"
            )
            temporary += [*volumes, start, resultTransform]
            slicer.util.updateTransformMatrixFromArray(start, pair.start)
            cli = runCli(
                {
                    "fixedVolume": volumes[0].GetID(),
                    "movingVolume": volumes[1].GetID(),
                    "initialTransform": start.GetID(),
                    "linearTransform": resultTransform.GetID(),
                    "useRigid": True,
                    "samplingPercentage": 0.05,
                }
            )
            temporary += [cli] if cli is not None else []
            if cli is not None and cli.GetStatus() & cli.ErrorsMask:
                raise InternalError(
                    f"BRAINSFit failed: {cli.GetErrorText()}", "Check that both scans show a brain."
                )
            return slicer.util.arrayFromTransformMatrix(resultTransform)
        finally:
            for node in temporary:
                scene.RemoveNode(node)

    return method


def _standIn(scene, node):
    """A hidden volume node with the same voxels (shared, not copied) and without a parent, at the
    same place.
    """
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    toWorld = parentToWorld(node) @ arrayFromMatrix(matrix)
    for row, column in np.ndindex(4, 4):
        matrix.SetElement(row, column, float(toWorld[row, column]))
    result = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "MedMAP temporary")
    result.SetHideFromEditors(True)
    result.SetAndObserveImageData(node.GetImageData())
    result.SetIJKToRASMatrix(matrix)
    return result


def simpleItkRigid(pair: Pair) -> np.ndarray:
    """Rigid registration by mutual information with SimpleITK, coarse to fine; any thread.

    Mattes mutual information (IEEE TMI 2003, 22:120) suits different contrasts; regular-step
    gradient descent on the three angles and shifts, at 8, 4 and 2 mm.

    Raises:
        UnavailableError: SimpleITK is not installed.
        InputDataError: the optimizer found nothing.
    """
    try:
        sitk = importlib.import_module("SimpleITK")
    except ImportError as error:
        raise UnavailableError(
            "SimpleITK, which registers the scans, is not installed.",
            "Use Slicer's General Registration (BRAINS).",
        ) from error
    fixed, moving = (_image(sitk, volume) for volume in (pair.fixed, pair.moving))
    # ITK's transform leads from fixed to moving points, in LPS.
    transform = sitk.Euler3DTransform()
    transform.SetCenter([float(x) for x in _LPS[:3, :3] @ _center(pair.fixed)])
    backwards = _LPS @ np.linalg.inv(pair.start) @ _LPS
    transform.SetTranslation([float(x) for x in backwards[:3, 3]])
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel([1.0, 0.8, 0.3], 7)
    method.SetMetricFixedMask(_aroundBrain(sitk, fixed))
    method.SetInterpolator(sitk.sitkLinear)
    # The gradient of mutual information is small by nature, so the step decides when to stop, not
    # the gradient.
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.001, 300, 0.75, 1e-9)
    method.SetOptimizerScalesFromPhysicalShift()
    coarsest = min(fixed.GetSpacing())
    method.SetShrinkFactorsPerLevel(
        [max(1, int(level / coarsest + 0.5)) for level in (8.0, 4.0, 2.0)]
    )
    method.SetSmoothingSigmasPerLevel([4.0, 2.0, 1.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError as error:
        raise InputDataError(
            "The scans could not be registered: they hardly overlap.",
            "Align them by hand first (Transforms module).",
        ) from error
    backwards = np.eye(4)
    backwards[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    center = np.array(transform.GetCenter())
    backwards[:3, 3] = center + np.array(transform.GetTranslation()) - backwards[:3, :3] @ center
    return _LPS @ np.linalg.inv(backwards) @ _LPS


_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""RAS to LPS and back."""


def _image(sitk, volume: Volume, size_mm: float = 2.0):
    """SimpleITK image of a volume in the world, averaged down to voxels of about ``size_mm``."""
    factors = np.maximum(1, np.floor(size_mm / volume.grid.spacing + 0.01)).astype(int)
    factors = np.minimum(factors, np.maximum(1, np.array(volume.array.shape) // 4))
    axes = _LPS[:3, :3] @ volume.affine[:3, :3]
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    image.SetSpacing([float(x) for x in volume.grid.spacing])
    image.SetDirection([float(x) for x in (axes / volume.grid.spacing).ravel()])
    image.SetOrigin([float(x) for x in _LPS[:3, :3] @ volume.affine[:3, 3]])
    return sitk.BinShrink(image, [int(n) for n in factors])


def _aroundBrain(sitk, image, margin_mm: float = 12.0):
    """Mask of the brain and some background about it: the border is what a brain is aligned by."""
    array = sitk.GetArrayFromImage(image)
    mask = sitk.GetImageFromArray(foreground(array)[0].astype(np.uint8))
    mask.CopyInformation(image)
    return sitk.BinaryDilate(
        mask, [max(1, int(margin_mm / size + 0.5)) for size in image.GetSpacing()]
    )


def _center(volume: Volume) -> np.ndarray:
    """World position of the middle of the brain: the mean over its voxels."""
    brain, _ = foreground(volume.array)
    step = tuple(slice(None, None, max(1, n // 48)) for n in brain.shape)
    inside = np.argwhere(brain[step]) * [s.step for s in step]
    middle = inside.mean(axis=0) if len(inside) else (np.array(brain.shape) - 1) / 2
    return volume.affine[:3, :3] @ middle + volume.affine[:3, 3]


def _size(movement: np.ndarray, at: np.ndarray) -> tuple[float, float]:
    """Angle in degrees and shift in mm of a point; infinite if the matrix is no rigid movement."""
    rotation = movement[:3, :3]
    rigid = np.isfinite(movement).all() and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
    if not rigid or np.linalg.det(rotation) < 0 or not np.allclose(movement[3], [0, 0, 0, 1]):
        return float("inf"), float("inf")
    degrees = np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    return float(degrees), float(np.linalg.norm(rotation @ at + movement[:3, 3] - at))
