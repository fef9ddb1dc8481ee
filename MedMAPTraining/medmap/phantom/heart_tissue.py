"""Which tissue fills which part of a voxel: the heart's and the thorax's shapes on a grid.

Tissues are painted one over the other, from the outside in, so that later ones win.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from medmap.phantom.fields import partial_volume
from medmap.phantom.heart_anatomy import Infarct, Thorax, Ventricles

TISSUES = ("air", "lung", "fat", "muscle", "liver", "blood", "myocardium", "edema", "scar")

APEX_END = 0.97
"""Position along the axis at which the left ventricle ends; 1 would be a tip of zero radius."""


@dataclass(frozen=True)
class HeartPoints:
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


def locate(
    ventricles: Ventricles, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor
) -> HeartPoints:
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
    return HeartPoints(
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
    # The cavity closes toward the apex, slowly at first.
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


def tissue_parts(
    ventricles: Ventricles, thorax: Thorax, points: HeartPoints, width: float
) -> torch.Tensor:
    """Fraction of every tissue in every voxel, [len(TISSUES), I, J, K].

    ``width`` is the extent in mm over which borders are blurred (partial volume).
    """
    shape = points.radius.shape
    parts = torch.zeros(len(TISSUES), *shape, device=points.radius.device)
    parts[TISSUES.index("air")] = 1
    _paint_thorax(parts, thorax, points, width)

    # From the outside in: fat around both ventricles, their walls, then the blood in them.
    right_depth = depth_in_right_ventricle(ventricles, points)
    # The right ventricle's wall is 3 mm thick, and fat covers both by another 3 to 5 mm.
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


def _paint_thorax(parts: torch.Tensor, thorax: Thorax, points: HeartPoints, width: float) -> None:
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
    parts: torch.Tensor, ventricles: Ventricles, points: HeartPoints, width: float
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


def depth_in_right_ventricle(ventricles: Ventricles, points: HeartPoints) -> torch.Tensor:
    """mm inside the right ventricle, [I, J, K]; the left ventricle is painted over it later."""
    right = ventricles.right
    share = (points.along / right.end).clamp(0, 1)
    # The square root of an ellipsoid's cross section; a floor keeps the divisions finite.
    scale = (1 - share**2).clamp(min=1e-4).sqrt()
    across, along = _septal_coordinates(ventricles, points)
    short_radius = right.size * right.flatness * scale
    long_radius = right.size * 1.25 * scale
    radius = torch.hypot(across / short_radius, along / long_radius)
    depth = (1 - radius) * right.size * right.flatness * scale
    return torch.where(scale > 0.02, depth, -9.0)


def _septal_coordinates(
    ventricles: Ventricles, points: HeartPoints
) -> tuple[torch.Tensor, torch.Tensor]:
    """mm from the center of the right ventricle: across and along the septum, [I, J, K]."""
    distance = (ventricles.cavity + ventricles.wall) * 0.95
    cos = math.cos(ventricles.septum)
    sin = math.sin(ventricles.septum)
    center_x, center_y = ventricles.center[:2]
    lean_x, lean_y = ventricles.lean
    # Slices are stacked along a leaning long axis, so the center moves with z.
    dx = points.x - center_x - lean_x * points.z - distance * cos
    dy = points.y - center_y - lean_y * points.z - distance * sin
    across = dx * cos + dy * sin
    along = -dx * sin + dy * cos
    return across, along


def _paint_infarct(
    parts: torch.Tensor, infarct: Infarct, points: HeartPoints, width: float
) -> None:
    """Paint edema and scar, in place. Both are sectors of the wall."""
    edema = _depth_in_sector(
        points,
        infarct,
        infarct.half_angle + infarct.edema_angle,
        infarct.half_height + infarct.edema_height,
    )
    scar = _depth_in_sector(points, infarct, infarct.half_angle, infarct.half_height)
    # Edema reaches through the whole wall, the scar only as far as ischemia killed muscle.
    scar = torch.minimum(scar, _depth_in_wavefront(points, infarct))

    to_outer = points.outer - points.radius
    to_inner = points.radius - points.inner
    wall = partial_volume(torch.minimum(to_outer, to_inner), width)
    _paint(parts, "edema", wall * partial_volume(edema, width))
    _paint(parts, "scar", wall * partial_volume(scar, width))


def _depth_in_sector(
    points: HeartPoints, infarct: Infarct, half_angle: float, half_height: float
) -> torch.Tensor:
    """mm inside a sector of the wall around the middle of the infarct, [I, J, K]."""
    difference = points.angle - infarct.angle
    # Angles end at ±π: the way around the back may be the shorter one.
    wrapped = torch.remainder(difference + math.pi, 2 * math.pi) - math.pi
    arc_radius = 0.5 * (points.inner + points.outer).clamp(min=1)
    in_angle = (half_angle - wrapped.abs()) * arc_radius

    # 0.45: the middle of the stack, see locate. 60 mm is about the half length of a ventricle.
    offset = points.along - 0.45 - infarct.height
    in_height = (half_height - offset.abs()) * 60
    return torch.minimum(in_angle, in_height)


def _depth_in_wavefront(points: HeartPoints, infarct: Infarct) -> torch.Tensor:
    """mm inside the outer border of the scar, [I, J, K].

    Ischemia spreads outward from the endocardium (the wavefront of Reimer and Jennings, 1979).
    """
    ragged = 0.12 * torch.cos(5 * points.angle + 3 * infarct.angle)
    transmurality = infarct.transmurality + ragged
    wall_mm = (points.outer - points.inner).clamp(min=0)
    return points.inner + transmurality * wall_mm - points.radius
