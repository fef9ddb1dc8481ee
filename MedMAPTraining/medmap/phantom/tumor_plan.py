"""What a glioma shall be like, before it is grown: volumes, foci, rim and individual traits.

Volumes and fractions are drawn around the percentiles of 123 reference segmentations of BraTS 2020
(whole tumor 21/50/87/132/194 ml at the percentiles 5/25/50/75/95; median shares of edema 0.67,
enhancing tumor 0.18, necrotic and non-enhancing core 0.12; 8 % without enhancing tumor). Small
tumors and tumors without enhancement are more frequent than in that cohort.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medmap.phantom.anatomy import Atlas
from medmap.phantom.cohorts import Cohort, require_cohort
from medmap.phantom.fields import Draw
from medmap.phantom.style import Style

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Habit:
    """Individual traits of one tumor. Thresholds apply to fields of unit variance.

    Attributes:
        lobes: amplitude of lobulation, relative to the radius of the core.
        rim_variation: variation of the rim's thickness (standard deviation of its logarithm).
        rim_open: threshold below which the rim has gaps; higher values give larger gaps.
        nodules: threshold of solid enhancing nodules; lower values give more of them.
        outer: mean depth (mm) at which enhancement starts; often negative, thus at the surface.
        necrosis_start: depth (mm) below the rim at which necrosis starts.
        necrosis: 1 if the core becomes necrotic, else 0.
        finger: how strongly edema advances in fingers.
        soft: width of the edema's margin in mm.
        blood: 1 if the core contains hemorrhage, else 0.
        cortex: how much edema gray matter admits, 0 to 1.
    """

    lobes: float
    rim_variation: float
    rim_open: float
    nodules: float
    outer: float
    necrosis_start: float
    necrosis: float
    finger: float
    soft: float
    blood: float
    cortex: float


@dataclass(frozen=True)
class Plan:
    """Intended properties of a tumor, before it is grown.

    Attributes:
        total_ml: volume of the whole tumor.
        core_ml: volume of the core (ET + NCR).
        enhancing: False for a low-grade appearance.
        rim_mm: mean thickness of the enhancing rim.
        foci: template positions (signed x) of the foci, main focus first.
        shares: volume of each focus, relative to the main one.
        push: radius of the displacing mass as a fraction of the radius of the core.
        habit: individual traits.
    """

    total_ml: float
    core_ml: float
    enhancing: bool
    rim_mm: float
    foci: tuple[Point, ...]
    shares: tuple[float, ...]
    push: float
    habit: Habit

    def core_radii(self, count: int) -> list[float]:
        """Radius in mm of the core of the first ``count`` foci, as spheres."""
        total_share = sum(self.shares)
        radii = []
        for share in self.shares[:count]:
            core_ml = self.core_ml * share / total_share
            radii.append(sphere_radius(core_ml))
        return radii


def draw_plan(draw: Draw, atlas: Atlas, style: Style) -> Plan:
    """Draw the properties of a tumor; see the module's docstring for the measured distributions."""
    cohort = require_cohort(style.cohort)
    total_ml = math.exp(draw.normal(math.log(cohort.median_ml), cohort.volume_spread))
    if draw.chance(style.small):
        total_ml = math.exp(draw.uniform(math.log(1.5), math.log(40.0)))
    enhancing = not draw.chance(style.low_grade)
    core_ml = total_ml * _draw_core_share(draw, cohort, enhancing)

    shares = _draw_shares(draw, style.multifocal)
    foci = _draw_foci(draw, atlas, len(shares), total_ml)
    radius = sphere_radius(core_ml)
    habit = _draw_habit(draw, cohort, radius, enhancing)

    thinnest_mm = draw.uniform(2.0, 3.5)
    rim_mm = draw.uniform(*cohort.rim) * radius
    # Low-grade tumors infiltrate more and displace less.
    push_range = (0.25, 0.7)
    if enhancing:
        push_range = (0.45, 0.95)
    return Plan(
        total_ml=total_ml,
        core_ml=core_ml,
        enhancing=enhancing,
        rim_mm=min(10.0, max(thinnest_mm, rim_mm)),
        foci=foci,
        shares=shares,
        push=draw.uniform(*push_range),
        habit=habit,
    )


def _draw_core_share(draw: Draw, cohort: Cohort, enhancing: bool) -> float:
    """Volume of the core as a fraction of the whole tumor."""
    if enhancing:
        share = draw.normal(cohort.core_share, 0.16)
        return min(0.85, max(0.06, share))
    # Low-grade gliomas are mostly solid tumor with little edema.
    return draw.uniform(0.3, 0.85)


def _draw_shares(draw: Draw, multifocal: float) -> tuple[float, ...]:
    """Volumes of the foci, relative to the main one: one focus, seldom two or three."""
    count = 1
    if draw.chance(multifocal):
        count = 3
        if draw.chance(0.75):
            count = 2
    shares = [1.0]
    for _ in range(count - 1):
        shares.append(draw.uniform(0.05, 0.5))
    return tuple(shares)


def _draw_habit(draw: Draw, cohort: Cohort, radius: float, enhancing: bool) -> Habit:
    """Individual traits; ``radius`` of the core in mm. The order of the draws is part of a seed."""
    # Small cores are lobulated more, relative to their size.
    lobes = draw.uniform(0.08, 0.28) * (0.6 + 6.0 / max(radius, 6.0))
    rim_variation = draw.uniform(0.2, 0.55)
    # Three of four rims are nearly closed.
    rim_range = (-1.7, -0.2)
    if draw.chance(0.75):
        rim_range = (-3.0, -1.7)
    rim_open = draw.uniform(*rim_range)
    nodules = draw.uniform(*cohort.nodules)
    outer = draw.uniform(-3.5, 0.3)
    necrosis_start = draw.uniform(*cohort.necrosis_start)
    necrosis = 0.0
    if enhancing or draw.chance(0.25):
        necrosis = 1.0
    finger = draw.uniform(0.25, 0.55)
    # The core of a low-grade tumor, and its edema, are sharply bounded.
    soft_range = (0.4, 1.2)
    if enhancing:
        soft_range = (0.8, 3.0)
    soft = draw.uniform(*soft_range)
    blood = 0.0
    if draw.chance(0.12):
        blood = 1.0
    return Habit(
        lobes=lobes,
        rim_variation=rim_variation,
        rim_open=rim_open,
        nodules=nodules,
        outer=outer,
        necrosis_start=necrosis_start,
        necrosis=necrosis,
        finger=finger,
        soft=soft,
        blood=blood,
        cortex=draw.uniform(0.25, 0.8),
    )


def sphere_radius(ml: float) -> float:
    """Radius in mm of a sphere of a volume in ml."""
    cubed = ml * 1000.0 * 3.0 / (4.0 * math.pi)
    return cubed ** (1.0 / 3.0)


def _draw_foci(draw: Draw, atlas: Atlas, count: int, total_ml: float) -> tuple[Point, ...]:
    """Positions in the white matter of the cerebrum; further foci 24 to 65 mm from the first."""
    candidates: list[Point] = []
    for _ in range(400):
        x = draw.uniform(-60, 60)
        y = draw.uniform(-78, 78)
        z = draw.uniform(-38, 70)
        candidates.append((x, y, z))

    foci: list[Point] = []
    is_suitable = _is_suitable(atlas, candidates, total_ml)
    for candidate, suitable in zip(candidates, is_suitable, strict=True):
        is_lateral = abs(candidate[0]) > 7.0
        is_apart = not foci or 24.0 < math.dist(candidate, foci[0]) < 65.0
        if suitable and is_apart and is_lateral and len(foci) < count:
            foci.append(candidate)
    # Right frontoparietal white matter, if no candidate is suitable.
    return tuple(foci or [(32.0, -5.0, 28.0)])


def _is_suitable(atlas: Atlas, candidates: Sequence[Point], total_ml: float) -> list[bool]:
    """Whether a tumor may start at each position: in the cerebrum, away from its surfaces."""
    positions = torch.tensor(candidates, device=atlas.device).T.contiguous()
    landmarks = atlas.landmarks(positions)
    # Large tumors may start deeper, where they have room on all sides.
    deepest_mm = max(12.0 + 0.35 * sphere_radius(total_ml), 26.0)
    is_inside = landmarks.cerebrum > 4.0
    is_inside &= landmarks.cerebrum < deepest_mm
    is_inside &= landmarks.ventricle < -3.0
    is_inside &= landmarks.sheet > 4.0
    return is_inside.tolist()
