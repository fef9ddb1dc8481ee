"""Augmentation of labeled cases by geometry and acquisition, one pass for the geometry.

Everything is drawn from the generator of one sample, so a sample stays a pure function of seed,
step and number. Voxels that are exactly 0 in a scan (background, absent modalities) stay exactly 0.

Transforms and their ranges follow Isensee et al., nnU-Net, Nature Methods 2021, Supplementary
Note 2; thick slices along one axis and the bias field follow Billot et al., SynthSeg, Medical Image
Analysis 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

BACKGROUND_Z = (3.0, 6.0)
"""Distance of the mean of a brain from zero intensity, in its standard deviations: a bias field
multiplies intensities, and z-scores no longer show where zero was."""

CONTROL_SPACING = 24
"""Voxels between the control points of an elastic deformation."""


@dataclass(frozen=True)
class StandardAugmentation:
    """Strength of each transform.

    Chances are per patch for geometry, per modality for everything else.

    Attributes:
        geometry: chance of rotation and scaling together.
        rotation: largest angle about each axis in degrees.
        scaling: largest logarithm of the scale.
        elastic: chance of an elastic deformation.
        displacement: standard deviation of the control points in voxels.
        blur: chance of a Gaussian blur.
        blur_sigma: its range in voxels.
        thick: chance of thick slices along one random axis.
        thickness: their range in voxels.
        gamma: chance of a gamma curve, which keeps mean and standard deviation.
        gamma_log: largest logarithm of the exponent.
        inverted: share of the gamma curves that act on the inverted scan.
        bias: chance of a bias field.
        bias_log: standard deviation of the logarithm of its control points.
        cut: chance of a shortened field of view; never of all present modalities.
        cut_share: largest share of the patch that a shortened field of view lacks.
        renewed: chance that a scan gets its z-score anew, instead of a changed contrast and
            brightness.
    """

    geometry: float = 0.8
    rotation: float = 20.0
    scaling: float = 0.2
    elastic: float = 0.3
    displacement: float = 2.5
    blur: float = 0.15
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    thick: float = 0.2
    thickness: tuple[float, float] = (2.0, 4.0)
    gamma: float = 0.5
    gamma_log: float = 0.5
    inverted: float = 0.1
    bias: float = 0.5
    bias_log: float = 0.1
    cut: float = 0.05
    cut_share: float = 0.25
    renewed: float = 0.5


def deformed(
    images: Sequence[np.ndarray | None],
    label: np.ndarray,
    brain: np.ndarray,
    corner: Sequence[int],
    patch: Sequence[int],
    spec: StandardAugmentation,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """A rotated, scaled and elastically deformed patch, interpolated once from the whole case.

    Args:
        images: M scans [D, H, W] of one case, None where the patch does not show the modality.
        label: [D, H, W] class indices.
        brain: [D, H, W] mask.
        corner: lower corner of the undeformed patch in the case; may be negative.
        patch: [3] voxels; an axis of one voxel (a slice) is left as it is.
        spec: strength.
        rng: of this sample.

    Returns:
        [M, *patch] float32 images (trilinear), [*patch] int64 label and [*patch] bool brain
        (nearest neighbor); None where the draw deforms nothing.
    """
    position = positions(corner, patch, spec, rng)
    if position is None:
        return None
    box, grid = _sampling_grid(position, label.shape)
    label_and_brain = np.stack([label[box], brain[box]])
    classes = torch.from_numpy(label_and_brain.astype(np.float32))
    nearest = grid_sample(classes[None], grid, mode="nearest", align_corners=True)[0]
    patch_label = nearest[0].long()
    patch_brain = nearest[1] > 0.5
    patch_images = torch.zeros((len(images), *patch))
    for m, image in enumerate(images):
        if image is None:
            continue
        scan = torch.from_numpy(image[box].astype(np.float32))
        sampled = grid_sample(scan[None, None], grid, align_corners=True)
        patch_images[m] = sampled[0, 0]
        # Interpolation blurs the brain's border into the background, which inference has as 0.
        patch_images[m] *= patch_brain
    return patch_images, patch_label, patch_brain


def positions(
    corner: Sequence[int],
    patch: Sequence[int],
    spec: StandardAugmentation,
    rng: np.random.Generator,
) -> Tensor | None:
    """[D, H, W, 3] positions in the case, in voxels, of a patch's voxels; None: no deformation."""
    is_moved = rng.random() < spec.geometry
    is_bent = rng.random() < spec.elastic
    angles = np.radians(spec.rotation) * rng.uniform(-1, 1, 3)
    zoom = math.exp(spec.scaling * rng.uniform(-1, 1))
    control_shape = [max(2, round(size / CONTROL_SPACING) + 1) for size in patch]
    control = rng.standard_normal((3, *control_shape)).astype(np.float32) * spec.displacement
    # Everything is drawn before it is known whether it is used: later draws must not depend on it.
    if not is_moved and not is_bent:
        return None
    matrix = np.eye(3)
    if is_moved:
        matrix = _matrix(angles, zoom, patch)
    position = _moved_positions(matrix, corner, patch)
    if is_bent:
        fields = interpolate(
            torch.from_numpy(control)[None],
            size=tuple(patch),
            mode="trilinear",
            align_corners=True,
        )[0]
        for axis in range(3):
            if patch[axis] > 1:
                position[..., axis] += fields[axis]
    return position


def _moved_positions(matrix: np.ndarray, corner: Sequence[int], patch: Sequence[int]) -> Tensor:
    """[D, H, W, 3] positions of a patch that is transformed about its center.

    A sum of three lines along the axes: no coordinates of all voxels have to be multiplied.
    """
    center = [(size - 1) / 2 for size in patch]
    lines = []
    for size, middle in zip(patch, center, strict=True):
        indices = torch.arange(size, dtype=torch.float32)
        lines.append(indices - middle)
    position = torch.empty((*patch, 3))
    for axis in range(3):
        # Row of the matrix times the coordinates: one term for each array axis.
        d_factor, h_factor, w_factor = matrix[axis].tolist()
        d = d_factor * lines[0]
        h = h_factor * lines[1]
        w = w_factor * lines[2]
        middle = corner[axis] + center[axis]
        plane = d[:, None] + h[None, :] + middle
        # Written in place: the result has three numbers for each voxel of the patch.
        torch.add(plane[:, :, None], w, out=position[..., axis])
    return position


def _matrix(angles: np.ndarray, zoom: float, patch: Sequence[int]) -> np.ndarray:
    """[3, 3] rotation about the three axes, over the scale.

    A slice turns and scales within its own plane only.
    """
    matrix = np.eye(3)
    flat_axes = [axis for axis in range(3) if patch[axis] == 1]
    for axis in range(3):
        if flat_axes and axis not in flat_axes:
            continue
        first, second = (n for n in range(3) if n != axis)
        cosine = math.cos(angles[axis])
        sine = math.sin(angles[axis])
        rotation = np.eye(3)
        rotation[first, first] = cosine
        rotation[second, second] = cosine
        rotation[first, second] = -sine
        rotation[second, first] = sine
        matrix = rotation @ matrix
    scale = np.full(3, 1.0 / zoom)
    scale[flat_axes] = 1.0
    return matrix * scale[:, None]


def _sampling_grid(position: Tensor, shape: Sequence[int]) -> tuple[tuple[slice, ...], Tensor]:
    """The box of a case that the positions touch, and the positions within it.

    Returns:
        The box, and [1, D, H, W, 3] positions as ``grid_sample`` takes them: -1 to 1, last axis
        first. Only the box is converted to float32.
    """
    box = _touched_box(position, shape)
    grid = torch.empty_like(position)
    for axis, part in enumerate(box):
        # Voxel start becomes -1, voxel stop - 1 becomes 1 (align_corners).
        width = max(part.stop - part.start - 1, 1)
        scale = 2 / width
        offset = 2 * part.start / width + 1
        target = grid[..., 2 - axis]
        torch.mul(position[..., axis], scale, out=target)
        target -= offset
    return box, grid[None]


def _touched_box(position: Tensor, shape: Sequence[int]) -> tuple[slice, ...]:
    """The box of an array around [..., 3] positions, which may lie beyond it."""
    flat = position.reshape(-1, 3)
    lowest = flat.amin(0).floor().long().tolist()
    highest = flat.amax(0).ceil().long().tolist()
    box = []
    for axis, size in enumerate(shape):
        # At least one voxel, also where the patch lies beside the case.
        start = min(max(lowest[axis], 0), size - 1)
        stop = max(min(highest[axis] + 1, size), start + 1)
        box.append(slice(start, stop))
    return tuple(box)


def acquired(
    image: Tensor, present: np.ndarray, spec: StandardAugmentation, rng: np.random.Generator
) -> np.ndarray:
    """Vary how each present modality was acquired, in place.

    Args:
        image: [M, D, H, W] z-scores of one patch; background 0.
        present: [M] bool.
        spec: strength.
        rng: of this sample.

    Returns:
        [M] bool: the modalities whose z-score was renewed, which should keep their contrast and
        brightness.
    """
    positions_present = np.flatnonzero(present)
    complete = len(positions_present)
    renewed = np.zeros(len(present), bool)
    for m in positions_present:
        scan = image[m]
        # One modality keeps its field of view: the tumor must be visible in some scan.
        if rng.random() < spec.cut and complete > 1:
            _shorten(scan, spec, rng)
            complete -= 1
        mask = (scan != 0).float()
        count = float(mask.sum())
        if count:
            renewed[m] = _vary_scan(scan, mask, count, spec, rng)
    return renewed


def _vary_scan(
    scan: Tensor, mask: Tensor, count: float, spec: StandardAugmentation, rng: np.random.Generator
) -> bool:
    """Resolution, bias field, gamma and z-score of one scan, in place.

    Args:
        scan: [D, H, W] z-scores.
        mask: [D, H, W] 1 where the scan shows something.
        count: voxels of the mask.
        spec: strength.
        rng: of this sample.

    Returns:
        Whether the z-score was renewed.
    """
    # Blurred values are divided by the blurred mask: the background must not darken the rim.
    if rng.random() < spec.blur:
        sigma = rng.uniform(*spec.blur_sigma)
        scan.copy_(_blurred(scan, sigma) / _blurred(mask, sigma).clamp_(min=1e-3))
    if rng.random() < spec.thick:
        axis = int(rng.integers(3))
        thickness = rng.uniform(*spec.thickness)
        slice_mask = _thick(mask, axis, thickness).clamp_(min=1e-3)
        scan.copy_(_thick(scan, axis, thickness) / slice_mask)
    if rng.random() < spec.bias:
        _apply_bias_field(scan, spec.bias_log, rng)
    scan.mul_(mask)
    if rng.random() < spec.gamma:
        exponent = math.exp(spec.gamma_log * rng.uniform(-1, 1))
        is_inverted = rng.random() < spec.inverted
        _apply_gamma(scan, mask, count, exponent, is_inverted)
    is_renewed = rng.random() < spec.renewed
    if is_renewed:
        mean, deviation = _moments(scan, count)
        scan.sub_(mean).div_(deviation).mul_(mask)
    return is_renewed


def _shorten(scan: Tensor, spec: StandardAugmentation, rng: np.random.Generator) -> None:
    """Zero one end of the scan along a random axis: a limited field of view."""
    axis = int(rng.integers(3))
    is_at_end = rng.random() < 0.5
    size = scan.shape[axis]
    missing = int(size * spec.cut_share * rng.random())
    start = 0
    if is_at_end:
        start = size - missing
    scan.narrow(axis, start, missing).zero_()


def _blurred(scan: Tensor, sigma: float) -> Tensor:
    """Gaussian blur by shifted sums, zeros from outside.

    One channel is too few for a convolution to be fast.
    """
    # Two standard deviations hold 95 % of the kernel; the weights are normalized below.
    radius = max(1, math.ceil(2 * sigma))
    weights = [math.exp(-0.5 * (n / sigma) ** 2) for n in range(radius + 1)]
    # The kernel is symmetric: all weights but the middle one count twice.
    total = weights[0] + 2 * sum(weights[1:])
    for axis in range(scan.ndim):
        size = scan.shape[axis]
        if size <= radius:
            continue
        middle_share = weights[0] / total
        result = scan * middle_share
        for n in range(1, radius + 1):
            share = weights[n] / total
            length = size - n
            result.narrow(axis, n, length).add_(scan.narrow(axis, 0, length), alpha=share)
            result.narrow(axis, 0, length).add_(scan.narrow(axis, n, length), alpha=share)
        scan = result
    return scan


def _thick(scan: Tensor, axis: int, thickness: float) -> Tensor:
    """Means over slices of this thickness in voxels, interpolated back to the grid."""
    size = list(scan.shape)
    size[axis] = max(1, round(size[axis] / thickness))
    slices = interpolate(scan[None, None], size=tuple(size), mode="area")
    shape = tuple(scan.shape)
    restored = interpolate(slices, size=shape, mode="trilinear", align_corners=False)
    return restored[0, 0]


def _apply_bias_field(scan: Tensor, deviation: float, rng: np.random.Generator) -> None:
    """Multiply the intensities behind the z-scores with a smooth field."""
    noise = rng.standard_normal((4, 4, 4)).astype(np.float32)
    control = torch.from_numpy(noise * deviation)
    shape = tuple(scan.shape)
    log_field = interpolate(control[None, None], size=shape, mode="trilinear", align_corners=True)
    field = log_field[0, 0].exp_()
    # A field multiplies intensities, whose zero lies at a negative z-score.
    offset = rng.uniform(*BACKGROUND_Z)
    scan.add_(offset).mul_(field).sub_(offset)


def _apply_gamma(
    scan: Tensor, mask: Tensor, count: float, exponent: float, is_inverted: bool
) -> None:
    """A gamma curve between the smallest and the largest value.

    Mean and standard deviation of the brain stay: only the shape of the contrast changes.
    """
    low = float(scan.min())
    high = float(scan.max())
    extent = max(high - low, 1e-6)
    mean, deviation = _moments(scan, count)
    scan.sub_(low).div_(extent)
    if is_inverted:
        scan.neg_().add_(1)
    scan.clamp_(min=1e-6).pow_(exponent)
    if is_inverted:
        scan.neg_().add_(1)
    scan.mul_(mask)
    # Mean and spread are restored: only the shape of the histogram is to change.
    curved_mean, curved_deviation = _moments(scan, count)
    scale = deviation / curved_deviation
    scan.sub_(curved_mean).mul_(scale).add_(mean).mul_(mask)


def _moments(scan: Tensor, count: float) -> tuple[float, float]:
    """Mean and standard deviation over the brain of a scan that is 0 elsewhere."""
    mean = float(scan.sum()) / count
    square = float(scan.square().sum()) / count
    # Rounding may make the variance of a constant scan negative.
    variance = max(square - mean**2, 1e-6)
    return mean, math.sqrt(variance)
