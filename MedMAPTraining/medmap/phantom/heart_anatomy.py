"""Shapes of one synthetic heart after an infarct, and of the thorax around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from medmap.phantom.fields import Draw


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


def draw_ventricles(draw: Draw, stack_mm: float) -> Ventricles:
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
    opposite = septum + math.pi
    for sign in (-1, 1):
        offset = draw.uniform(0.7, 1.1)
        direction = opposite + sign * offset
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
        # Exact on the shorter axis; the border, where the sign changes, is exact everywhere.
        shorter_radius = min(self.radius_x, self.radius_y)
        return (1 - radius) * shorter_radius


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


def draw_thorax(draw: Draw) -> Thorax:
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
