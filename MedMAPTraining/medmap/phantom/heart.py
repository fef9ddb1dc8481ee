"""A synthetic heart after an infarct, as in MyoPS 2020: a short-axis stack of thick slices.

The three contrasts complement each other by construction, as they do in patients. bSSFP separates
blood from muscle and shows neither scar nor edema. In LGE normal muscle is nulled and scar is
bright. T2 (black blood, fat suppressed) shows the edema that surrounds the scar. Signals are
plausible, not calibrated; shapes are disks, rings and crescents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medmap.errors import UsageError
from medmap.phantom.fields import Draw, RegularGrid, random_field, upsample
from medmap.phantom.heart_anatomy import Thorax, Ventricles, draw_thorax, draw_ventricles
from medmap.phantom.heart_tissue import TISSUES, depth_in_right_ventricle, locate, tissue_parts

SIGNALS = {
    "bssfp": (0.03, 0.08, 0.90, 0.33, 0.50, 1.00, 0.42, 0.46, 0.42),
    "lge": (0.03, 0.09, 0.70, 0.22, 0.35, 0.60, 0.13, 0.17, 1.00),
    "t2": (0.03, 0.07, 0.16, 0.36, 0.40, 0.14, 0.46, 0.88, 0.80),
}
"""Modality -> mean signal of every tissue, blood in bSSFP being 1."""

LABELS = ("NMYO", "LVB", "RVB", "ED", "SCAR")
"""Class indices 1 to 5, as in ``medmap.task.MYOPS``."""

FIELD_OF_VIEW_MM = 320.0

SUBSLICES = 3
"""Thin slices whose mean is a thick one."""

CHEST_GRID = RegularGrid((-168.0, -168.0, -80.0), 6.0, (57, 57, 28))
"""Where texture and coil sensitivity are defined."""


@dataclass(frozen=True)
class Heart:
    """A synthetic case.

    Array axes: i toward the patient's left and back, j upward, k from base to apex.

    Attributes:
        images: modality -> [I, J, K] float32, arbitrary units, positive; the background is not
            constant.
        label: [I, J, K] uint8 class indices, see ``LABELS``.
        affine: [4, 4] float64, voxel -> world RAS in mm; oblique, as short-axis slices are.
        facts: JSON-ready: ``seed``, ``volumes_ml`` per label, ``spacing_mm``.
    """

    images: dict[str, torch.Tensor]
    label: torch.Tensor
    affine: np.ndarray
    facts: dict[str, Any]


def generate_heart(seed: int, *, spacing: float = 1.0, device: torch.device | str = "cpu") -> Heart:
    """Generate one case; a seed gives the same heart at any spacing.

    Args:
        seed: any integer.
        spacing: pixel size within slices, in mm; there are 3 to 6 slices of 10 to 14 mm.
        device: where the case is computed and where its tensors are.

    Raises:
        UsageError: the spacing is not that of a cardiac image.
    """
    if not 0.5 <= spacing <= 4.0:
        raise UsageError(
            f"A heart at {spacing} mm cannot be generated.",
            "Choose a spacing between 0.5 and 4 mm.",
        )
    with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
        return _generate(int(seed), float(spacing), torch.device(device))


@dataclass(frozen=True)
class _Stack:
    """The voxel grid: I = J = size.

    Attributes:
        axis: [size] positions along i and j, in mm.
        slices: [K] positions of the slices along the heart's axis, in mm.
        spacing: pixel size in mm.
        thickness: of the slices, in mm.
    """

    axis: torch.Tensor
    slices: torch.Tensor
    spacing: float
    thickness: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """[I, J, K] voxels."""
        size = len(self.axis)
        return size, size, len(self.slices)


def _draw_stack(draw: Draw, spacing: float, device: torch.device) -> _Stack:
    count = int(draw.uniform(3, 6.999))
    thickness = draw.uniform(10.0, 14.0)
    size = round(FIELD_OF_VIEW_MM / spacing)
    return _Stack(
        axis=(torch.arange(size, device=device) - (size - 1) / 2) * spacing,
        slices=(torch.arange(count, device=device) - (count - 1) / 2) * thickness,
        spacing=spacing,
        thickness=thickness,
    )


def _generate(seed: int, spacing: float, device: torch.device) -> Heart:
    draw = Draw(seed, "heart")
    stack = _draw_stack(draw, spacing, device)
    height_mm = len(stack.slices) * stack.thickness
    ventricles = draw_ventricles(draw, height_mm)
    thorax = draw_thorax(Draw(seed, "thorax"))
    signals = _render(seed, ventricles, thorax, stack)
    axes = [stack.axis, stack.axis, stack.slices]
    images = _acquire(Draw(seed, "scanner"), signals, axes)
    label = _label(ventricles, thorax, stack)
    return Heart(
        images=dict(zip(SIGNALS, images, strict=True)),
        label=label,
        affine=_affine(Draw(seed, "placement"), stack),
        facts=_facts(seed, label, stack),
    )


def _facts(seed: int, label: torch.Tensor, stack: _Stack) -> dict[str, Any]:
    voxel_ml = stack.spacing**2 * stack.thickness / 1000.0
    counts = torch.bincount(label.flatten().long(), minlength=len(LABELS) + 1).tolist()
    volumes_ml = {}
    for index, name in enumerate(LABELS, 1):
        volumes_ml[name] = round(counts[index] * voxel_ml, 2)
    return {
        "seed": seed,
        "volumes_ml": volumes_ml,
        "spacing_mm": [stack.spacing, stack.spacing, round(stack.thickness, 3)],
    }


def _render(seed: int, ventricles: Ventricles, thorax: Thorax, stack: _Stack) -> torch.Tensor:
    """[len(SIGNALS), I, J, K] signals without texture and noise."""
    device = stack.axis.device
    means = _draw_means(Draw(seed, "contrast"), device)
    offsets = _draw_offsets(Draw(seed, "shift"))
    signals = torch.zeros(len(SIGNALS), *stack.shape, device=device)
    # A slice of 10 to 14 mm averages what it cuts through.
    for subslice in range(SUBSLICES):
        share = (subslice + 0.5) / SUBSLICES - 0.5
        z = stack.slices + share * stack.thickness
        for row, (dx, dy) in enumerate(offsets):
            points = locate(ventricles, stack.axis + dx, stack.axis + dy, z)
            parts = tissue_parts(ventricles, thorax, points, stack.spacing)
            thin_slice = torch.einsum("t,tijk->ijk", means[row], parts)
            signals[row] += thin_slice / SUBSLICES
    return signals


def _draw_offsets(draw: Draw) -> list[tuple[float, float]]:
    """Misregistration of each modality in mm: breath-hold positions differ."""
    offsets = []
    for _ in SIGNALS:
        dx = draw.uniform(-0.8, 0.8)
        dy = draw.uniform(-0.8, 0.8)
        offsets.append((dx, dy))
    return offsets


def _label(ventricles: Ventricles, thorax: Thorax, stack: _Stack) -> torch.Tensor:
    """[I, J, K] uint8 classes at the centers of the slices.

    As in MyoPS 2020, papillary muscles belong to the blood pool, and the wall of the right
    ventricle has no label.
    """
    points = locate(ventricles, stack.axis, stack.axis, stack.slices)
    # A tiny width gives sharp borders.
    parts = tissue_parts(ventricles, thorax, points, 1e-3)
    is_edema = parts[TISSUES.index("edema")] > 0.5
    is_scar = parts[TISSUES.index("scar")] > 0.5
    is_blood = parts[TISSUES.index("blood")] > 0.5

    is_left = points.radius < points.outer
    is_right = depth_in_right_ventricle(ventricles, points) > 0
    is_cavity = points.radius < points.inner
    label = torch.zeros(is_left.shape, dtype=torch.uint8, device=is_left.device)
    # Later ones replace earlier ones: scar lies within edema, both lie within the wall.
    label[is_right & ~is_left & is_blood] = 3
    label[is_left] = 1
    label[is_left & is_edema] = 4
    label[is_left & is_scar] = 5
    label[is_left & is_cavity] = 2
    return label


def _draw_means(draw: Draw, device: torch.device) -> torch.Tensor:
    """[len(SIGNALS), len(TISSUES)] signals; each varies by about a tenth.

    Contrasts that a modality does not have stay absent, whatever was drawn.
    """
    normal = TISSUES.index("myocardium")
    edema = TISSUES.index("edema")
    scar = TISSUES.index("scar")
    rows = []
    for modality, signals in SIGNALS.items():
        values = [signal * math.exp(draw.normal(0, 0.1)) for signal in signals]
        if modality == "bssfp":
            values[scar] = values[normal]
            values[edema] = values[normal] * 1.05
        elif modality == "lge":
            values[edema] = values[normal] * 1.15
        else:
            values[scar] = values[edema] * draw.uniform(0.85, 1.0)
        rows.append(values)
    return torch.tensor(rows, device=device)


def _acquire(draw: Draw, signals: torch.Tensor, axes: list[torch.Tensor]) -> torch.Tensor:
    """Texture, coil sensitivity, Rician noise and gain, [len(SIGNALS), I, J, K]."""
    images = []
    for signal in signals:
        texture, coil = _draw_texture_and_coil(draw, axes)
        coil_strength = draw.uniform(0.1, 0.35)
        logarithm = 0.06 * texture + coil_strength * coil
        image = signal * torch.exp(logarithm)

        # Rician noise: the magnitude of a complex signal.
        sigma = draw.uniform(0.015, 0.05)
        noise = draw.white(*image.shape, device=image.device)
        real = image + sigma * noise
        noise = draw.white(*image.shape, device=image.device)
        magnitude = torch.hypot(real, sigma * noise)
        # Uniform in the logarithm: no decade of gains is more frequent than another.
        log_gain = draw.uniform(math.log(150.0), math.log(900.0))
        gain = math.exp(log_gain)
        images.append(magnitude * gain)
    return torch.stack(images)


def _draw_texture_and_coil(draw: Draw, axes: list[torch.Tensor]) -> torch.Tensor:
    """[2, I, J, K] unit-variance fields: a fine and a broad one."""
    device = axes[0].device
    wavelength = draw.uniform(14.0, 20.0)
    texture = random_field(draw, CHEST_GRID, wavelength, 0.4, device)
    wavelength = draw.uniform(150.0, 240.0)
    coil = random_field(draw, CHEST_GRID, wavelength, 0.4, device)
    return upsample(torch.stack([texture, coil]), CHEST_GRID, axes)


def _affine(draw: Draw, stack: _Stack) -> np.ndarray:
    """Short-axis slices: their normal is the heart's axis, to the left, to the front and down."""
    jitter = [draw.uniform(-0.08, 0.08) for _ in range(3)]
    normal = np.array([-0.65, 0.55, -0.52]) + jitter
    normal /= np.linalg.norm(normal)
    across = np.cross([0, 0, 1], normal)
    across /= np.linalg.norm(across)
    upward = np.cross(normal, across)

    affine = np.eye(4)
    spacing = (stack.spacing, stack.spacing, stack.thickness)
    affine[:3, :3] = np.stack([across, upward, normal], 1) * spacing
    # The center of the stack is the origin.
    center = (np.array(stack.shape) - 1) / 2
    affine[:3, 3] = -affine[:3, :3] @ center
    return affine
