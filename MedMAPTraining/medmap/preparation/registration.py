"""Rigid registration of one scan of a patient to another, by mutual information, with SimpleITK.

Voxels are never interpolated: a registration is a motion of the scanner coordinates, and whoever
applies it multiplies the moving scan's affine with it. The scan that stays is not touched at all.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from medmap.errors import UnavailableError
from medmap.preparation.motion import Motion, mask_points
from medmap.volume import Grid, Volume, apply_affine

LEVELS_MM = (8.0, 4.0, 2.0)
"""Voxel size of each level, coarse to fine. On real pairs of 3 to 4 mm slices a run repeats within
0.2 mm at 2 mm already (docs/experiments/preparation.md)."""

MARGIN_MM = 6.0
"""The metric sees so much around the brain: its border carries most of the contrast between
sequences."""

BINS = 32
SAMPLES = 12_000
"""Voxels of a level that the metric is computed from; coarse levels have fewer."""

ITERATIONS = 200
FIRST_STEP_MM = (4.0, 1.0, 0.5)
"""Length of the optimizer's first step at each level: about half a voxel, so that it leaves flat
regions but stays in the basin that the coarser level found."""
LAST_STEP_MM = 0.02

OPTIMIZED_STARTS = 3
"""The most promising starts are optimized at the coarsest level."""

START_DEGREES = 14.0
"""Second starts are turned by so much about each axis: a patient who turned the head between two
scans."""

REPEAT_SHIFT_MM = 4.0
REPEAT_DEGREES = 4.0
"""Displacement from which the result is sought once more; how far apart both end is the
confidence."""

MAX_REPEAT_MM = 2.0
"""Two runs that end farther apart than this show no clear optimum: the scan stays where it was."""

MAX_DEGREES = 45.0
MAX_SHIFT_MM = 80.0
"""Larger motions about the brain's center, beyond a common start, are failures, not patients who
moved."""

MIN_FIT = 0.85
"""Brains of one patient cover each other better; below, the scans may be of two patients."""

UNCHANGED_MM = 1.0
"""A rejected motion of less than this says that the scan was aligned before."""

MIN_GAIN = 1e-3
"""Mutual information (nats) that a registration has to gain to be worth a motion."""


@dataclass(frozen=True)
class Registration:
    """Outcome of registering one scan to another.

    Attributes:
        movement: [4, 4] rigid motion in world RAS, mm, of the moving scan; the identity if
            rejected.
        proposed: [4, 4] what the optimizer proposed.
        is_accepted: whether it is better than leaving the scan where it was, plausible and
            repeatable.
        reason: why it was rejected, as the end of a sentence; empty if it was accepted.
        is_unchanged: whether the scan agrees best where it is, to a fraction of a voxel.
        metric_before, metric_after: mutual information in nats, without and with the proposed
            motion.
        repeat_mm: mean distance in the brain between two runs from different starts.
        fit: share of each brain that lies in the other one after the motion, the smaller of both;
            voxels outside the other field of view do not count.
        displacement_mm: mean displacement of the brain by the proposed motion.
        degrees, shift_mm: its angle, and how far it moves the center of the brain.
        seconds: run time.
    """

    movement: np.ndarray
    proposed: np.ndarray
    is_accepted: bool
    reason: str
    is_unchanged: bool
    metric_before: float
    metric_after: float
    repeat_mm: float
    fit: float
    displacement_mm: float
    degrees: float
    shift_mm: float
    seconds: float

    def figures(self) -> dict[str, float]:
        """Rounded numbers for a report."""
        return {
            "displacement_mm": round(self.displacement_mm, 2),
            "rotation_degrees": round(self.degrees, 2),
            "shift_mm": round(self.shift_mm, 2),
            "mutual_information_before": round(self.metric_before, 4),
            "mutual_information_after": round(self.metric_after, 4),
            "repeat_mm": round(self.repeat_mm, 2),
            "brain_fit": round(self.fit, 3),
        }


def register(
    fixed: Volume,
    moving: Volume,
    fixed_mask: np.ndarray,
    moving_mask: np.ndarray | None,
    *,
    threads: int = 0,
) -> Registration:
    """Find the rigid motion that puts one scan of a patient onto another.

    Mutual information after Mattes et al. (IEEE TMI 2003, 22:120-128) over the brain and a margin
    of ``MARGIN_MM``, maximized by gradient descent on three angles and three shifts at 8, 4 and 2
    mm, from the scanner's coordinates, from equal brain centers, and turned about each axis. The
    best end at 8 mm goes on. A second run from a displaced start measures how repeatable the result
    is.

    Args:
        fixed: the scan that stays.
        moving: the scan that moves; any grid.
        fixed_mask: [I, J, K] bool brain of the fixed scan.
        moving_mask: [I, J, K] bool brain of the moving scan; None if it is not known: then the
            search begins at the scanner's coordinates only, and how well the brains fit is not
            checked.
        threads: of SimpleITK; 0 takes its default.

    Raises:
        UnavailableError: SimpleITK is not installed.
    """
    sitk = _simple_itk()
    started = time.perf_counter()
    brain = mask_points(fixed_mask, fixed.affine)
    center = brain.mean(axis=0)
    moving_brain = None
    offset = np.zeros(3)
    if moving_mask is not None:
        moving_brain = mask_points(moving_mask, moving.affine)
        offset = moving_brain.mean(axis=0) - center
    pyramid = []
    for number in range(len(LEVELS_MM)):
        pyramid.append(_Level.build(sitk, fixed, moving, fixed_mask, number, threads))
    best, repeated = _search(pyramid, center, offset)
    finest = pyramid[-1]
    identity = Motion.identity(center)
    metric_before = finest.metric(identity)
    metric_after = finest.metric(best)
    gain = metric_after - metric_before
    repeat_mm = best.distance_mm(repeated, brain)
    displacement_mm = best.distance_mm(identity, brain)
    degrees = best.degrees()
    shift = best.apply(center[None])[0] - center
    beyond_start_mm = float(np.linalg.norm(shift - offset))
    # ITK's transforms lead from fixed to moving points; the moving scan goes the other way.
    proposed = np.linalg.inv(best.matrix)
    fit = 1.0
    if moving_brain is not None and moving_mask is not None:
        back = Motion(proposed, center)
        fit = min(
            _share_inside(best.apply(brain), moving_mask, moving.affine),
            _share_inside(back.apply(moving_brain), fixed_mask, fixed.affine),
        )
    reason = _rejection(gain, repeat_mm, degrees, beyond_start_mm, fit)
    return Registration(
        movement=np.eye(4) if reason else proposed,
        proposed=proposed,
        is_accepted=not reason,
        reason=reason,
        is_unchanged=gain < MIN_GAIN and displacement_mm < UNCHANGED_MM,
        metric_before=metric_before,
        metric_after=metric_after,
        repeat_mm=repeat_mm,
        fit=fit,
        displacement_mm=displacement_mm,
        degrees=degrees,
        shift_mm=float(np.linalg.norm(shift)),
        seconds=time.perf_counter() - started,
    )


def _search(
    pyramid: Sequence[_Level], center: np.ndarray, offset: np.ndarray
) -> tuple[Motion, Motion]:
    """The best motion, and where a second run from a displaced start ends.

    Args:
        pyramid: the pair of scans from coarse to fine.
        center: [3] of the fixed brain, world mm.
        offset: [3] from there to the center of the moving brain.
    """
    coarsest, *finer_levels = pyramid
    starts = sorted(_starts(center, offset), key=coarsest.metric, reverse=True)
    # Only the most promising starts: an optimization takes as long as hundreds of comparisons.
    ends = [coarsest.optimize(start) for start in starts[:OPTIMIZED_STARTS]]
    best = max(ends, key=coarsest.metric)
    for level in finer_levels:
        best = level.optimize(best)
    # Once more from a displaced start: results that differ are no certain optimum.
    displacement = _repeat_displacement(center)
    repeated = best.then(displacement)
    for level in finer_levels:
        repeated = level.optimize(repeated)
    return best, repeated


def _share_inside(points: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> float:
    """Share of [N, 3] world points that lie in a mask, of those within its field of view."""
    to_voxels = np.linalg.inv(affine)
    positions = apply_affine(to_voxels, points)
    index = np.rint(positions).astype(int)
    coordinate_within = (index >= 0) & (index < mask.shape)
    is_within = coordinate_within.all(axis=1)
    if not is_within.any():
        return 0.0
    i, j, k = index[is_within].T
    is_in_mask = mask[i, j, k]
    return float(is_in_mask.mean())


def _rejection(
    gain: float, repeat_mm: float, degrees: float, beyond_start_mm: float, fit: float
) -> str:
    """Why a registration is not applied; empty if it is."""
    if degrees > MAX_DEGREES or beyond_start_mm > MAX_SHIFT_MM:
        return f"the motion is implausible ({degrees:.0f} degrees, {beyond_start_mm:.0f} mm)"
    if gain < MIN_GAIN:
        return "no motion makes the scans agree better"
    if repeat_mm > MAX_REPEAT_MM:
        return f"two runs ended {repeat_mm:.1f} mm apart"
    if fit < MIN_FIT:
        return f"only {fit:.0%} of one brain lie in the other"
    return ""


def _starts(center: np.ndarray, offset: np.ndarray) -> list[Motion]:
    """Scanner coordinates, equal brain centers, and equal centers turned about each axis."""
    centered = Motion.identity(center).shifted(offset)
    starts = [Motion.identity(center), centered]
    # A search from one start may end in a local optimum of a strongly turned head.
    for axis in range(3):
        for sign in (-1, 1):
            turned = centered.turned(axis, sign * START_DEGREES)
            starts.append(turned)
    return starts


def _repeat_displacement(center: np.ndarray) -> Motion:
    motion = Motion.identity(center).shifted(np.array([1.0, -1.0, 1.0]) * REPEAT_SHIFT_MM / 3**0.5)
    return motion.turned(0, REPEAT_DEGREES)


def unavailable(title: str, onto: str, misalignment_mm: float) -> UnavailableError:
    """The error where an alignment is needed and SimpleITK is not installed."""
    return UnavailableError(
        f"{title} lies {misalignment_mm:.0f} mm away from {onto}, and SimpleITK, which aligns "
        "scans, is not installed.",
        "Install the extra medmap[clinic], align the scans yourself, or leave one of them out.",
    )


def _simple_itk() -> ModuleType:
    try:
        return importlib.import_module("SimpleITK")
    except ImportError:
        raise UnavailableError(
            "SimpleITK, which aligns scans, is not installed.",
            "Install the extra medmap[clinic], or align the scans yourself.",
        ) from None


_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""World RAS, as NIfTI and MedMAP have it, to world LPS, as ITK has it, and back."""


@dataclass(frozen=True)
class _Level:
    """One resolution: both images, the mask, and SimpleITK's registration method on them."""

    sitk: ModuleType
    fixed: Any
    moving: Any
    method: Any

    @staticmethod
    def build(
        sitk: ModuleType,
        fixed: Volume,
        moving: Volume,
        fixed_mask: np.ndarray,
        number: int,
        threads: int,
    ) -> _Level:
        voxel_mm = LEVELS_MM[number]
        fixed_image = _image(sitk, fixed.array, fixed, voxel_mm)
        moving_image = _image(sitk, moving.array, moving, voxel_mm)
        brain = _image(sitk, fixed_mask.astype(np.float32), fixed, voxel_mm) > 0.5
        radius = [max(1, round(MARGIN_MM / size)) for size in brain.GetSpacing()]
        region = sitk.BinaryDilate(brain, radius)
        method = sitk.ImageRegistrationMethod()
        _set_metric(sitk, method, region)
        # The gradient of mutual information is small by nature: the step length decides when to
        # stop.
        method.SetOptimizerAsRegularStepGradientDescent(
            learningRate=FIRST_STEP_MM[number],
            minStep=LAST_STEP_MM,
            numberOfIterations=ITERATIONS,
            relaxationFactor=0.6,
            gradientMagnitudeTolerance=1e-9,
        )
        # One step of an angle and one of a shift move the brain by the same distance.
        method.SetOptimizerScalesFromPhysicalShift()
        if threads:
            method.SetNumberOfThreads(threads)
        return _Level(sitk, fixed_image, moving_image, method)

    def optimize(self, start: Motion) -> Motion:
        """The best motion near a start; the start itself where the images do not overlap."""
        transform = self._transform(start)
        self.method.SetInitialTransform(transform, inPlace=True)
        try:
            self.method.Execute(self.fixed, self.moving)
        except RuntimeError:
            return start
        center = np.array(transform.GetCenter())
        translation = np.array(transform.GetTranslation())
        matrix = np.eye(4)
        matrix[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
        rotation = matrix[:3, :3]
        # ITK turns about a center: x -> R (x - c) + c + t.
        matrix[:3, 3] = center + translation - rotation @ center
        return Motion(_LPS @ matrix @ _LPS, start.center)

    def metric(self, motion: Motion) -> float:
        """Mutual information in nats; minus infinity where the images do not overlap."""
        self.method.SetInitialTransform(self._transform(motion), inPlace=True)
        try:
            return -float(self.method.MetricEvaluate(self.fixed, self.moving))
        except RuntimeError:
            return -np.inf

    def _transform(self, motion: Motion) -> Any:
        """The motion as ITK writes it: in LPS, as a rotation about the center and a translation."""
        matrix = _LPS @ motion.matrix @ _LPS
        center = _LPS[:3, :3] @ motion.center
        rotation = matrix[:3, :3]
        translation = rotation @ center + matrix[:3, 3] - center
        transform = self.sitk.Euler3DTransform()
        transform.SetCenter(center.tolist())
        transform.SetMatrix(_orthonormal(rotation).ravel().tolist())
        transform.SetTranslation(translation.tolist())
        return transform


def _set_metric(sitk: ModuleType, method: Any, region: Any) -> None:
    """Mutual information of linearly interpolated images in a region, without gradient filters."""
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(region)
    method.SetInterpolator(sitk.sitkLinear)
    # ITK's default, smoothed gradient images, misleads the optimizer on oblique grids: on a pair
    # that the scanner had aligned (patient01_s1 of open_ms_data) it walked 32 mm away, to lower
    # values.
    method.MetricUseFixedImageGradientFilterOff()
    method.MetricUseMovingImageGradientFilterOff()
    voxels = max(1, int(sitk.GetArrayViewFromImage(region).sum()))
    share = min(1.0, SAMPLES / voxels)
    # Regular, not random: the same pair of scans always gives the same motion.
    strategy = method.REGULAR if share < 1 else method.NONE
    method.SetMetricSamplingStrategy(strategy)
    method.SetMetricSamplingPercentage(share, 1)


def _orthonormal(rotation: np.ndarray) -> np.ndarray:
    """The closest exact rotation: ITK refuses matrices that are orthogonal to a few digits only."""
    left_vectors, _, right_vectors = np.linalg.svd(rotation)
    return left_vectors @ right_vectors


def _image(sitk: ModuleType, array: np.ndarray, volume: Volume, voxel_mm: float) -> Any:
    """SimpleITK image in the world, averaged to voxels of about ``voxel_mm`` along each axis."""
    grid = volume.grid
    # SimpleITK's arrays have the axes in reverse order.
    reversed_axes = array.transpose(2, 1, 0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(reversed_axes, np.float32))
    to_lps = _LPS[:3, :3]
    edges = to_lps @ volume.affine[:3, :3]
    # ITK keeps directions, of length 1, and spacing apart.
    axes = edges / grid.spacing
    origin = to_lps @ volume.affine[:3, 3]
    image.SetSpacing(grid.spacing.tolist())
    image.SetDirection(axes.ravel().tolist())
    image.SetOrigin(origin.tolist())
    return sitk.BinShrink(image, _shrink_factors(grid, voxel_mm))


def _shrink_factors(grid: Grid, voxel_mm: float) -> list[int]:
    factors = []
    for size, spacing in zip(grid.shape, grid.spacing, strict=True):
        # Two voxels along each axis have to remain, or nothing can be interpolated.
        factor = min(round(voxel_mm / spacing), size // 2)
        factors.append(max(1, factor))
    return factors


def transform_text(movement: np.ndarray) -> str:
    """A motion as an ITK transform file, which 3D Slicer, ANTs and SimpleITK read.

    Args:
        movement: [4, 4] motion in world RAS, mm, of the moving scan.

    Returns:
        The file's text. By ITK's convention it holds the inverse motion, in LPS: resampling the
        moving scan onto the fixed one asks for each fixed point where it lies in the moving scan.
    """
    inverse = _LPS @ np.linalg.inv(movement) @ _LPS
    numbers: Sequence[float] = [*inverse[:3, :3].ravel(), *inverse[:3, 3]]
    parameters = " ".join(repr(float(number)) for number in numbers)
    return (
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: AffineTransform_double_3_3\n"
        f"Parameters: {parameters}\nFixedParameters: 0 0 0\n"
    )
