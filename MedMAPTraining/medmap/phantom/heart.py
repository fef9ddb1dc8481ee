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
        waves=_draw_waves(draw),
        septum=septum,
        right=_draw_right_ventricle(draw, cavity),
        papillary=_draw_papillary_muscles(draw, septum),
        infarct=_draw_infarct(draw, infarct_angle),
    )


def _draw_waves(draw: Draw) -> tuple[tuple[float, float], ...]:
    waves = []
    for _ in range(3):
        amplitude = draw.uniform(0, 0.05)
        phase = draw.uniform(-math.pi, math.pi)
        waves.append((amplitude, phase))
    return tuple(waves)


def _draw_right_ventricle(draw: Draw, cavity: float) -> RightVentricle:
    return RightVentricle(
        size=cavity * draw.uniform(1.15, 1.45),
        flatness=draw.uniform(0.75, 0.95),
        end=draw.uniform(0.7, 0.85),
    )


def _draw_papillary_muscles(draw: Draw, septum: float) -> tuple[tuple[float, float], ...]:
    """Two muscles on the free wall, opposite the septum."""
    muscles = []
    for sign in (-1, 1):
        direction = septum + math.pi + sign * draw.uniform(0.7, 1.1)
        radius = draw.uniform(3.0, 5.0)
        muscles.append((direction, radius))
    return tuple(muscles)


def _draw_infarct(draw: Draw, angle: float) -> Infarct:
    return Infarct(
        angle=angle,
        half_angle=draw.uniform(0.35, 1.0),
        height=draw.uniform(-0.3, 0.3),
        half_height=draw.uniform(0.35, 0.8),
        transmurality=draw.uniform(0.4, 1.1),
        edema_angle=draw.uniform(0.25, 0.6),
        edema_height=draw.uniform(0.1, 0.3),
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
        dx = (x - self.x) / self.radius_x
        dy = (y - self.y) / self.radius_y
        radius = torch.hypot(dx, dy)
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
    x = x[:, None, None]
    y = y[None, :, None]
    dx = x - ventricles.center[0] - ventricles.lean[0] * z
    dy = y - ventricles.center[1] - ventricles.lean[1] * z
    angle = torch.atan2(dy, dx)

    # 0.42: basal slices start a little below the valve plane.
    along = (z / ventricles.length + 0.42).expand(shape)
    inner, outer = _wall_radii(ventricles, angle, along)
    return _Points(
        x=x.expand(shape),
        y=y.expand(shape),
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
    taper = 1 - along.clamp(0, APEX_END) ** 2.2
    wave: torch.Tensor | float = 0
    for harmonic, (amplitude, phase) in enumerate(ventricles.waves, 2):
        wave = wave + amplitude * torch.cos(harmonic * angle + phase)
    inner = ventricles.cavity * taper.sqrt() * (1 + wave)
    inner = inner - 2 * along

    # The wall thins toward the apex.
    wall = ventricles.wall * (1 - 0.25 * along)
    outer = inner.clamp(min=0) + wall
    outer = torch.where(along > APEX_END, -1.0, outer)
    return inner, outer


def _render(seed: int, ventricles: Ventricles, thorax: Thorax, stack: _Stack) -> torch.Tensor:
    """[len(SIGNALS), I, J, K] signals without texture and noise."""
    device = stack.axis.device
    means = _draw_means(Draw(seed, "contrast"), device)
    offsets = _draw_offsets(Draw(seed, "shift"))
    signals = torch.zeros(len(SIGNALS), *stack.shape, device=device)
    for subslice in range(SUBSLICES):
        share = (subslice + 0.5) / SUBSLICES - 0.5
        z = stack.slices + share * stack.thickness
        for row, (dx, dy) in enumerate(offsets):
            points = _locate(ventricles, stack.axis + dx, stack.axis + dy, z)
            parts = _tissue_parts(ventricles, thorax, points, stack.spacing)
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


def _tissue_parts(
    ventricles: Ventricles, thorax: Thorax, points: _Points, width: float
) -> torch.Tensor:
    """Fraction of every tissue in every voxel, [len(TISSUES), I, J, K].

    ``width`` is the extent in mm over which borders are blurred (partial volume).
    """
    shape = points.radius.shape
    parts = torch.zeros(len(TISSUES), *shape, device=points.radius.device)
    parts[TISSUES.index("air")] = 1
    _paint_thorax(parts, thorax, points, width)

    right_depth = _depth_in_right_ventricle(ventricles, points)
    left_depth = points.outer - points.radius
    epicardial_fat = torch.maximum(left_depth + 5, right_depth + 6)
    _paint(parts, "fat", partial_volume(epicardial_fat, width))
    _paint(parts, "myocardium", partial_volume(right_depth + 3, width))
    right_blood = torch.minimum(right_depth, points.radius - points.outer)
    _paint(parts, "blood", partial_volume(right_blood, width))

    _paint(parts, "myocardium", partial_volume(left_depth, width))
    _paint_infarct(parts, ventricles.infarct, points, width)
    left_blood = points.inner - points.radius
    _paint(parts, "blood", partial_volume(left_blood, width))
    _paint_papillary_muscles(parts, ventricles, points, width)
    return parts


def _paint(parts: torch.Tensor, name: str, weight: torch.Tensor) -> None:
    """Paint a tissue over the others, in place; fractions keep summing to one."""
    row = TISSUES.index(name)
    parts.mul_(1 - weight)
    parts[row] += weight


def _paint_thorax(parts: torch.Tensor, thorax: Thorax, points: _Points, width: float) -> None:
    x = points.x
    y = points.y
    body = thorax.body.depth(x, y)
    _paint(parts, "fat", partial_volume(body, width))
    _paint(parts, "muscle", partial_volume(body - thorax.fat, width))

    for ellipse in thorax.lungs:
        lung = ellipse.depth(x, y)
        _paint(parts, "lung", partial_volume(lung, width))
    liver = thorax.liver.depth(x, y)
    _paint(parts, "liver", partial_volume(liver, width))

    center_x, center_y, radius = thorax.aorta
    from_center = torch.hypot(x - center_x, y - center_y)
    aorta = radius - from_center
    _paint(parts, "blood", partial_volume(aorta, width))


def _paint_papillary_muscles(
    parts: torch.Tensor, ventricles: Ventricles, points: _Points, width: float
) -> None:
    x = points.radius * torch.cos(points.angle)
    y = points.radius * torch.sin(points.angle)
    in_cavity = points.inner - points.radius
    for direction, size in ventricles.papillary:
        muscle_x = 0.6 * points.inner * math.cos(direction)
        muscle_y = 0.6 * points.inner * math.sin(direction)
        distance = torch.hypot(x - muscle_x, y - muscle_y)
        # Papillary muscles taper toward the apex.
        in_muscle = size * (1 - points.along) - distance
        depth = torch.minimum(in_muscle, in_cavity)
        _paint(parts, "myocardium", 0.9 * partial_volume(depth, width))


def _depth_in_right_ventricle(ventricles: Ventricles, points: _Points) -> torch.Tensor:
    """mm inside the right ventricle, [I, J, K]; the left ventricle is painted over it later."""
    right = ventricles.right
    share = (points.along / right.end).clamp(0, 1)
    # The square root of an ellipsoid's cross section; a floor keeps the divisions finite.
    scale = (1 - share**2).clamp(min=1e-4).sqrt()
    across, along = _septal_coordinates(ventricles, points)
    radius = torch.hypot(
        across / (right.size * right.flatness * scale),
        along / (right.size * 1.25 * scale),
    )
    depth = (1 - radius) * right.size * right.flatness * scale
    return torch.where(scale > 0.02, depth, -9.0)


def _septal_coordinates(
    ventricles: Ventricles, points: _Points
) -> tuple[torch.Tensor, torch.Tensor]:
    """mm from the center of the right ventricle: across and along the septum, [I, J, K]."""
    distance = (ventricles.cavity + ventricles.wall) * 0.95
    cos = math.cos(ventricles.septum)
    sin = math.sin(ventricles.septum)
    lean_x, lean_y = ventricles.lean
    dx = points.x - ventricles.center[0] - lean_x * points.z - distance * cos
    dy = points.y - ventricles.center[1] - lean_y * points.z - distance * sin
    across = dx * cos + dy * sin
    along = -dx * sin + dy * cos
    return across, along


def _paint_infarct(parts: torch.Tensor, infarct: Infarct, points: _Points, width: float) -> None:
    """Paint edema and scar, in place. Both are sectors of the wall."""
    edema = _depth_in_sector(
        points,
        infarct,
        infarct.half_angle + infarct.edema_angle,
        infarct.half_height + infarct.edema_height,
    )
    scar = _depth_in_sector(points, infarct, infarct.half_angle, infarct.half_height)
    scar = torch.minimum(scar, _depth_in_wavefront(points, infarct))

    to_outer = points.outer - points.radius
    to_inner = points.radius - points.inner
    wall = partial_volume(torch.minimum(to_outer, to_inner), width)
    _paint(parts, "edema", wall * partial_volume(edema, width))
    _paint(parts, "scar", wall * partial_volume(scar, width))


def _depth_in_sector(
    points: _Points, infarct: Infarct, half_angle: float, half_height: float
) -> torch.Tensor:
    """mm inside a sector of the wall around the middle of the infarct, [I, J, K]."""
    difference = points.angle - infarct.angle
    wrapped = torch.remainder(difference + math.pi, 2 * math.pi) - math.pi
    arc_radius = 0.5 * (points.inner + points.outer).clamp(min=1)
    in_angle = (half_angle - wrapped.abs()) * arc_radius

    # 0.45: the middle of the stack, see _locate. 60 mm is about the half length of a ventricle.
    offset = points.along - 0.45 - infarct.height
    in_height = (half_height - offset.abs()) * 60
    return torch.minimum(in_angle, in_height)


def _depth_in_wavefront(points: _Points, infarct: Infarct) -> torch.Tensor:
    """mm inside the outer border of the scar, [I, J, K].

    Ischemia spreads outward from the endocardium (the wavefront of Reimer and Jennings, 1979).
    """
    ragged = 0.12 * torch.cos(5 * points.angle + 3 * infarct.angle)
    transmurality = infarct.transmurality + ragged
    wall_mm = (points.outer - points.inner).clamp(min=0)
    return points.inner + transmurality * wall_mm - points.radius


def _label(ventricles: Ventricles, thorax: Thorax, stack: _Stack) -> torch.Tensor:
    """[I, J, K] uint8 classes at the centers of the slices.

    As in MyoPS 2020, papillary muscles belong to the blood pool, and the wall of the right
    ventricle has no label.
    """
    points = _locate(ventricles, stack.axis, stack.axis, stack.slices)
    # A tiny width gives sharp borders.
    parts = _tissue_parts(ventricles, thorax, points, 1e-3)
    is_edema = parts[TISSUES.index("edema")] > 0.5
    is_scar = parts[TISSUES.index("scar")] > 0.5
    is_blood = parts[TISSUES.index("blood")] > 0.5

    is_left = points.radius < points.outer
    is_right = _depth_in_right_ventricle(ventricles, points) > 0
    label = torch.zeros(is_left.shape, dtype=torch.uint8, device=is_left.device)
    label[is_right & ~is_left & is_blood] = 3
    label[is_left] = 1
    label[is_left & is_edema] = 4
    label[is_left & is_scar] = 5
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


def _acquire(draw: Draw, signals: torch.Tensor, axes: list[torch.Tensor]) -> torch.Tensor:
    """Texture, coil sensitivity, Rician noise and gain, [len(SIGNALS), I, J, K]."""
    images = []
    for signal in signals:
        texture, coil = _draw_texture_and_coil(draw, axes)
        logarithm = 0.06 * texture + draw.uniform(0.1, 0.35) * coil
        image = signal * torch.exp(logarithm)

        # Rician noise: the magnitude of a complex signal.
        sigma = draw.uniform(0.015, 0.05)
        noise = draw.white(*image.shape, device=image.device)
        real = image + sigma * noise
        noise = draw.white(*image.shape, device=image.device)
        magnitude = torch.hypot(real, sigma * noise)
        gain = math.exp(draw.uniform(math.log(150.0), math.log(900.0)))
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
