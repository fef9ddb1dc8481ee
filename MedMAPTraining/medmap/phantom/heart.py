"""A synthetic heart after an infarct, as in MyoPS 2020: a short-axis stack of thick slices.

The three contrasts complement each other by construction, as they do in patients. bSSFP separates
blood from muscle and shows neither scar nor edema. In LGE normal muscle is nulled and scar is
bright. T2 (black blood, fat suppressed) shows the edema that surrounds the scar. Signals are
plausible, not calibrated; shapes are disks, rings and crescents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medmap.errors import UsageError
from medmap.phantom.fields import Draw, RegularGrid, partial_volume, random_field, upsample

TISSUES = ("air", "lung", "fat", "muscle", "liver", "blood", "myocardium", "edema", "scar")
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

APEX_END = 0.97
"""Position along the axis at which the left ventricle ends; 1 would be a tip of zero radius."""


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
        return len(self.axis), len(self.axis), len(self.slices)


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
    ventricles = _draw_ventricles(draw, len(stack.slices) * stack.thickness)
    thorax = _draw_thorax(Draw(seed, "thorax"))
    signals = _render(seed, ventricles, thorax, stack)
    images = _acquire(Draw(seed, "scanner"), signals, [stack.axis, stack.axis, stack.slices])
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


@dataclass(frozen=True)
class Infarct:
    """A sector of the left ventricle's wall: scar, and edema around it.

    Attributes:
        angle: of the middle of the sector, in radians.
        half_angle: half of its angular width.
        height: offset of its middle along the axis, relative to the middle of the ventricle.
        half_height: half of its extent along the axis; the ventricle has length 1.
        transmurality: how far the scar reaches through the wall; 1 reaches the outer border.
        edema_angle: how much wider the edema is, on either side, in radians.
        edema_height: how much longer the edema is, at either end.
    """

    angle: float
    half_angle: float
    height: float
    half_height: float
    transmurality: float
    edema_angle: float
    edema_height: float


@dataclass(frozen=True)
class RightVentricle:
    """An ellipse beside the septum that narrows toward the apex.

    Attributes:
        size: radius in mm.
        flatness: radius across the septum, relative to ``size``.
        end: position along the axis at which it ends (1 is the apex of the left ventricle).
    """

    size: float
    flatness: float
    end: float


@dataclass(frozen=True)
class Ventricles:
    """One heart. Lengths in mm; angles in radians, 0 points to the patient's left.

    Attributes:
        center: of the left ventricle, at the middle of the stack.
        lean: shift of the center per mm along the stack, along i and j.
        length: of the left ventricle.
        cavity: inner radius at the base.
        wall: thickness of the wall at the base.
        waves: amplitudes (relative to the radius) and phases of the wall's 2nd to 4th harmonic.
        septum: direction of the right ventricle.
        right: the right ventricle.
        papillary: directions and radii of the two papillary muscles.
        infarct: the infarct.
    """

    center: tuple[float, float]
    lean: tuple[float, float]
    length: float
    cavity: float
    wall: float
    waves: tuple[tuple[float, float], ...]
    septum: float
    right: RightVentricle
    papillary: tuple[tuple[float, float], ...]
    infarct: Infarct


def _draw_ventricles(draw: Draw, stack_mm: float) -> Ventricles:
    """Draw a heart for a stack of this length. The order of the draws is part of a seed."""
    cavity = draw.uniform(19.0, 28.0)
    septum = math.pi + draw.uniform(-0.5, 0.5)
    infarct_angle = draw.uniform(-math.pi, math.pi)
    return Ventricles(
        center=(draw.uniform(-14, 14), draw.uniform(-14, 14)),
        lean=(draw.uniform(-0.12, 0.12), draw.uniform(-0.12, 0.12)),
        length=stack_mm * draw.uniform(1.15, 1.6),
        cavity=cavity,
        wall=draw.uniform(8.0, 12.0),
        waves=tuple((draw.uniform(0, 0.05), draw.uniform(-math.pi, math.pi)) for _ in range(3)),
        septum=septum,
        right=RightVentricle(
            size=cavity * draw.uniform(1.15, 1.45),
            flatness=draw.uniform(0.75, 0.95),
            end=draw.uniform(0.7, 0.85),
        ),
        # Papillary muscles lie on the free wall, opposite the septum.
        papillary=tuple(
            (septum + math.pi + sign * draw.uniform(0.7, 1.1), draw.uniform(3.0, 5.0))
            for sign in (-1, 1)
        ),
        infarct=Infarct(
            angle=infarct_angle,
            half_angle=draw.uniform(0.35, 1.0),
            height=draw.uniform(-0.3, 0.3),
            half_height=draw.uniform(0.35, 0.8),
            transmurality=draw.uniform(0.4, 1.1),
            edema_angle=draw.uniform(0.25, 0.6),
            edema_height=draw.uniform(0.1, 0.3),
        ),
    )


@dataclass(frozen=True)
class Ellipse:
    """Center and radii in mm, along i and j."""

    x: float
    y: float
    radius_x: float
    radius_y: float

    def depth(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Approximate distance in mm inside the border, positive inside."""
        radius = torch.hypot((x - self.x) / self.radius_x, (y - self.y) / self.radius_y)
        return (1 - radius) * min(self.radius_x, self.radius_y)


@dataclass(frozen=True)
class Thorax:
    """What surrounds the heart; lengths in mm.

    Attributes:
        body: the outline.
        fat: thickness of subcutaneous fat.
        lungs: right and left lung.
        liver: the liver.
        aorta: a circle: the descending aorta.
    """

    body: Ellipse
    fat: float
    lungs: tuple[Ellipse, ...]
    liver: Ellipse
    aorta: tuple[float, float, float]


def _draw_thorax(draw: Draw) -> Thorax:
    """Draw a thorax. The order of the draws is part of a seed."""
    body = Ellipse(0, 0, draw.uniform(150, 185), draw.uniform(105, 125))
    fat = draw.uniform(8, 22)
    lungs = []
    for sign in (-1, 1):
        lungs.append(
            Ellipse(
                x=sign * draw.uniform(75, 90),
                y=draw.uniform(0, 20),
                radius_x=draw.uniform(48, 60),
                radius_y=draw.uniform(55, 75),
            )
        )
    liver = Ellipse(
        x=draw.uniform(-70, -40),
        y=draw.uniform(-85, -70),
        radius_x=draw.uniform(60, 80),
        radius_y=draw.uniform(25, 35),
    )
    aorta = (draw.uniform(45, 65), draw.uniform(-45, -20), draw.uniform(10, 14))
    return Thorax(body, fat, tuple(lungs), liver, aorta)


@dataclass(frozen=True)
class _Points:
    """Positions of voxels in the coordinates of one heart; all fields are [I, J, K].

    Attributes:
        x, y: world positions in mm.
        z: [K] positions along the stack in mm.
        radius: mm from the axis of the left ventricle.
        angle: about that axis, in radians.
        along: position along that axis: 0 at the base, 1 at the apex.
        inner: radius of the inner border of the left ventricle's wall, in mm.
        outer: radius of its outer border.
    """

    x: torch.Tensor
    y: torch.Tensor
    z: torch.Tensor
    radius: torch.Tensor
    angle: torch.Tensor
    along: torch.Tensor
    inner: torch.Tensor
    outer: torch.Tensor


def _locate(ventricles: Ventricles, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> _Points:
    """Coordinates on the grid that three axes span (mm; lengths I, J, K)."""
    shape = (len(x), len(y), len(z))
    # 0.42: basal slices start a little below the valve plane.
    along = (z / ventricles.length + 0.42)[None, None, :].expand(shape)
    depth = z[None, None, :]
    dx = x[:, None, None] - ventricles.center[0] - ventricles.lean[0] * depth
    dy = y[None, :, None] - ventricles.center[1] - ventricles.lean[1] * depth
    angle = torch.atan2(dy, dx)
    inner, outer = _wall_radii(ventricles, angle, along)
    return _Points(
        x=x[:, None, None].expand(shape),
        y=y[None, :, None].expand(shape),
        z=z,
        radius=torch.hypot(dx, dy),
        angle=angle,
        along=along,
        inner=inner,
        outer=outer,
    )


def _wall_radii(
    ventricles: Ventricles, angle: torch.Tensor, along: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Radius of the inner and of the outer border of the left ventricle's wall, in mm."""
    taper = (1 - along.clamp(0, APEX_END) ** 2.2).sqrt()
    wave: torch.Tensor | float = 0
    for harmonic, (amplitude, phase) in enumerate(ventricles.waves, 2):
        wave = wave + amplitude * torch.cos(harmonic * angle + phase)
    inner = ventricles.cavity * taper * (1 + wave) - 2 * along
    # The wall thins toward the apex.
    outer = inner.clamp(min=0) + ventricles.wall * (1 - 0.25 * along)
    return inner, torch.where(along > APEX_END, -1.0, outer)


def _render(seed: int, ventricles: Ventricles, thorax: Thorax, stack: _Stack) -> torch.Tensor:
    """[len(SIGNALS), I, J, K] signals without texture and noise."""
    device = stack.axis.device
    means = _draw_means(Draw(seed, "contrast"), device)
    shifts = Draw(seed, "shift")
    # Breath-hold positions differ: modalities are misregistered by up to 0.8 mm.
    offsets = []
    for _ in SIGNALS:
        offsets.append((shifts.uniform(-0.8, 0.8), shifts.uniform(-0.8, 0.8)))
    signals = torch.zeros(len(SIGNALS), *stack.shape, device=device)
    for subslice in range(SUBSLICES):
        offset_mm = ((subslice + 0.5) / SUBSLICES - 0.5) * stack.thickness
        z = stack.slices + offset_mm
        for row, (dx, dy) in enumerate(offsets):
            points = _locate(ventricles, stack.axis + dx, stack.axis + dy, z)
            parts = _tissue_parts(ventricles, thorax, points, stack.spacing)
            signals[row] += torch.einsum("t,tijk->ijk", means[row], parts) / SUBSLICES
    return signals


def _tissue_parts(
    ventricles: Ventricles, thorax: Thorax, points: _Points, width: float
) -> torch.Tensor:
    """Fraction of every tissue in every voxel, [len(TISSUES), I, J, K].

    ``width`` is the extent in mm over which borders are blurred (partial volume).
    """
    parts = torch.zeros(len(TISSUES), *points.radius.shape, device=points.radius.device)
    parts[TISSUES.index("air")] = 1
    _paint_thorax(parts, thorax, points, width)
    right = _depth_in_right_ventricle(ventricles, points)
    epicardial_fat = torch.maximum(points.outer - points.radius + 5, right + 6)
    _paint(parts, "fat", partial_volume(epicardial_fat, width))
    _paint(parts, "myocardium", partial_volume(right + 3, width))
    right_blood = torch.minimum(right, points.radius - points.outer)
    _paint(parts, "blood", partial_volume(right_blood, width))
    _paint(parts, "myocardium", partial_volume(points.outer - points.radius, width))
    _paint_infarct(parts, ventricles.infarct, points, width)
    _paint(parts, "blood", partial_volume(points.inner - points.radius, width))
    _paint_papillary_muscles(parts, ventricles, points, width)
    return parts


def _paint(parts: torch.Tensor, name: str, weight: torch.Tensor) -> None:
    """Paint a tissue over the others, in place; fractions keep summing to one."""
    parts.mul_(1 - weight)
    parts[TISSUES.index(name)] += weight


def _paint_thorax(parts: torch.Tensor, thorax: Thorax, points: _Points, width: float) -> None:
    x = points.x
    y = points.y
    body = thorax.body.depth(x, y)
    _paint(parts, "fat", partial_volume(body, width))
    _paint(parts, "muscle", partial_volume(body - thorax.fat, width))
    for lung in thorax.lungs:
        _paint(parts, "lung", partial_volume(lung.depth(x, y), width))
    _paint(parts, "liver", partial_volume(thorax.liver.depth(x, y), width))
    aorta_x, aorta_y, aorta_radius = thorax.aorta
    aorta = aorta_radius - torch.hypot(x - aorta_x, y - aorta_y)
    _paint(parts, "blood", partial_volume(aorta, width))


def _paint_papillary_muscles(
    parts: torch.Tensor, ventricles: Ventricles, points: _Points, width: float
) -> None:
    x = points.radius * torch.cos(points.angle)
    y = points.radius * torch.sin(points.angle)
    for direction, size in ventricles.papillary:
        muscle_x = 0.6 * points.inner * math.cos(direction)
        muscle_y = 0.6 * points.inner * math.sin(direction)
        distance = torch.hypot(x - muscle_x, y - muscle_y)
        depth = torch.minimum(size * (1 - points.along) - distance, points.inner - points.radius)
        _paint(parts, "myocardium", 0.9 * partial_volume(depth, width))


def _depth_in_right_ventricle(ventricles: Ventricles, points: _Points) -> torch.Tensor:
    """mm inside the right ventricle, [I, J, K]; the left ventricle is painted over it later."""
    right = ventricles.right
    scale = (1 - (points.along / right.end).clamp(0, 1) ** 2).clamp(min=1e-4).sqrt()
    distance = (ventricles.cavity + ventricles.wall) * 0.95
    cos = math.cos(ventricles.septum)
    sin = math.sin(ventricles.septum)
    dx = points.x - ventricles.center[0] - ventricles.lean[0] * points.z - distance * cos
    dy = points.y - ventricles.center[1] - ventricles.lean[1] * points.z - distance * sin
    across_septum = dx * cos + dy * sin
    along_septum = -dx * sin + dy * cos
    radius = torch.hypot(
        across_septum / (right.size * right.flatness * scale),
        along_septum / (right.size * 1.25 * scale),
    )
    depth = (1 - radius) * right.size * right.flatness * scale
    return torch.where(scale > 0.02, depth, -9.0)


def _paint_infarct(parts: torch.Tensor, infarct: Infarct, points: _Points, width: float) -> None:
    """Paint edema and scar, in place.

    Both are sectors of the wall. The scar starts at the inner border: ischemia spreads outward from
    the endocardium (the wavefront of Reimer and Jennings, 1979).
    """
    difference = points.angle - infarct.angle
    from_middle = (torch.remainder(difference + math.pi, 2 * math.pi) - math.pi).abs()
    arc_radius = 0.5 * (points.inner + points.outer).clamp(min=1)
    # 0.45: the middle of the stack; see _locate.
    from_height = (points.along - 0.45 - infarct.height).abs()
    # 60 mm is about the half length of a ventricle: it turns the relative height into mm.
    edema = torch.minimum(
        (infarct.half_angle + infarct.edema_angle - from_middle) * arc_radius,
        (infarct.half_height + infarct.edema_height - from_height) * 60,
    )
    scar = torch.minimum(
        (infarct.half_angle - from_middle) * arc_radius,
        (infarct.half_height - from_height) * 60,
    )
    ragged = 0.12 * torch.cos(5 * points.angle + 3 * infarct.angle)
    wall_mm = (points.outer - points.inner).clamp(min=0)
    depth = points.inner + (infarct.transmurality + ragged) * wall_mm - points.radius
    scar = torch.minimum(scar, depth)
    wall = torch.minimum(points.outer - points.radius, points.radius - points.inner)
    wall_part = partial_volume(wall, width)
    _paint(parts, "edema", wall_part * partial_volume(edema, width))
    _paint(parts, "scar", wall_part * partial_volume(scar, width))


def _label(ventricles: Ventricles, thorax: Thorax, stack: _Stack) -> torch.Tensor:
    """[I, J, K] uint8 classes at the centers of the slices.

    As in MyoPS 2020, papillary muscles belong to the blood pool, and the wall of the right
    ventricle has no label.
    """
    points = _locate(ventricles, stack.axis, stack.axis, stack.slices)
    # A tiny width gives sharp borders.
    parts = _tissue_parts(ventricles, thorax, points, 1e-3)
    is_left = points.radius < points.outer
    is_blood = parts[TISSUES.index("blood")] > 0.5
    is_right = (_depth_in_right_ventricle(ventricles, points) > 0) & ~is_left & is_blood
    label = torch.zeros(points.radius.shape, dtype=torch.uint8, device=points.radius.device)
    label[is_right] = 3
    label[is_left] = 1
    label[is_left & (parts[TISSUES.index("edema")] > 0.5)] = 4
    label[is_left & (parts[TISSUES.index("scar")] > 0.5)] = 5
    label[is_left & (points.radius < points.inner)] = 2
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


def _acquire(draw: Draw, signals: torch.Tensor, axes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Texture, coil sensitivity, Rician noise and gain, [len(SIGNALS), I, J, K]."""
    images = []
    for signal in signals:
        device = signal.device
        fine = random_field(draw, CHEST_GRID, draw.uniform(14.0, 20.0), 0.4, device)
        broad = random_field(draw, CHEST_GRID, draw.uniform(150.0, 240.0), 0.4, device)
        texture, coil = upsample(torch.stack([fine, broad]), CHEST_GRID, list(axes))
        image = signal * torch.exp(0.06 * texture + draw.uniform(0.1, 0.35) * coil)
        sigma = draw.uniform(0.015, 0.05)
        real = image + sigma * draw.white(*image.shape, device=device)
        imaginary = sigma * draw.white(*image.shape, device=device)
        magnitude = torch.hypot(real, imaginary)
        images.append(magnitude * math.exp(draw.uniform(math.log(150.0), math.log(900.0))))
    return torch.stack(images)


def _affine(draw: Draw, stack: _Stack) -> np.ndarray:
    """Short-axis slices: their normal is the heart's axis, to the left, to the front and down."""
    normal = np.array([-0.65, 0.55, -0.52]) + [draw.uniform(-0.08, 0.08) for _ in range(3)]
    normal /= np.linalg.norm(normal)
    across = np.cross([0, 0, 1], normal)
    across /= np.linalg.norm(across)
    directions = np.stack([across, np.cross(normal, across), normal], 1)
    affine = np.eye(4)
    affine[:3, :3] = directions * (stack.spacing, stack.spacing, stack.thickness)
    # The center of the stack is the origin.
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(stack.shape) - 1) / 2)
    return affine
