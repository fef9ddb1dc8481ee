"""Where a brain lies in the world: rotation, shear, scale, shift, and a smooth warp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medmap.phantom.anatomy import BROAD_GRID, WORLD_GRID
from medmap.phantom.fields import Draw, random_field, upsample
from medmap.phantom.style import Style


@dataclass(frozen=True)
class Warp:
    """How far the placement may deform an anatomy.

    Attributes:
        largest_mm: largest amplitude of the smooth warp.
        size: range of the overall scale.
    """

    largest_mm: float
    size: tuple[float, float]


PROCEDURAL_WARP = Warp(2.6, (0.89, 0.985))


def place(draw: Draw, device: torch.device | str, style: Style, warp: Warp) -> torch.Tensor:
    """Place an anatomy in the world: rotation, shear, scale, shift, smooth warp.

    Args:
        draw: random stream. The order of the draws is part of a seed.
        device: where the result is computed.
        style: largest rotation and shift.
        warp: largest deformation.

    Returns:
        [3, *WORLD_GRID.shape] template position of every point of the coarse world grid.
    """
    matrix = _draw_matrix(draw, style, warp).to(device, torch.float32)

    shifts = [draw.normal(0.0, style.head_shift_mm / 2) for _ in range(3)]
    shift = torch.tensor(shifts, device=device, dtype=torch.float32)
    # The commissures, where z = 0, lie below the middle of the brain's extent.
    shift[2] -= 8.0

    world = WORLD_GRID.points(device)
    centered = world - shift.view(3, 1, 1, 1)
    moved = matrix @ centered.reshape(3, -1)
    return moved.reshape(world.shape) + _smooth_warp(draw, device, warp)


def _draw_matrix(draw: Draw, style: Style, warp: Warp) -> torch.Tensor:
    """[3, 3] float64: rotation and shear, then scale."""
    largest = style.angle_deg
    angles = [math.radians(draw.uniform(-largest, largest)) for _ in range(3)]
    rotation = _rotation(angles)
    shear = _shear(draw).double()
    scale = _scale(draw, warp)
    return scale @ (rotation + shear)


def _scale(draw: Draw, warp: Warp) -> torch.Tensor:
    """[3, 3] float64: the inverse scale along each axis, on the diagonal."""
    size = draw.uniform(*warp.size)
    scales = []
    for _ in range(3):
        # Axes differ by a few percent.
        axis_size = size * (1.0 + draw.normal(0.0, 0.02))
        scales.append(1.0 / axis_size)
    return torch.diag(torch.tensor(scales)).double()


def _smooth_warp(draw: Draw, device: torch.device | str, warp: Warp) -> torch.Tensor:
    """[3, *WORLD_GRID.shape] displacements in mm."""
    amplitude = draw.uniform(0.4 * warp.largest_mm, warp.largest_mm)
    fields = []
    for _ in range(3):
        wavelength = draw.uniform(60.0, 110.0)
        fields.append(random_field(draw, BROAD_GRID, wavelength, device=device))
    axes = WORLD_GRID.axes(device)
    return amplitude * upsample(torch.stack(fields), BROAD_GRID, axes)


def _rotation(angles: Sequence[float]) -> torch.Tensor:
    """[3, 3] float64: rotations about x, then y, then z by angles in radians."""
    rotation = torch.eye(3, dtype=torch.float64)
    for axis, angle in enumerate(angles):
        cos = math.cos(angle)
        sin = math.sin(angle)
        first = (axis + 1) % 3
        second = (axis + 2) % 3
        about_axis = torch.eye(3, dtype=torch.float64)
        about_axis[first, first] = cos
        about_axis[second, second] = cos
        about_axis[first, second] = -sin
        about_axis[second, first] = sin
        rotation = about_axis @ rotation
    return rotation


def _shear(draw: Draw) -> torch.Tensor:
    """[3, 3] float32: a small random shear, zero on the diagonal."""
    shear = torch.zeros(3, 3)
    for row in range(3):
        for column in range(3):
            if row != column:
                shear[row, column] = draw.normal(0.0, 0.012)
    return shear


def template_at(coarse: torch.Tensor, axes: list[torch.Tensor]) -> torch.Tensor:
    """[3, I, J, K] template positions on a regular world grid, from the coarse placement."""
    return upsample(coarse, WORLD_GRID, axes)
