"""A glioma: its core, enhancing rim, necrosis and edema, grown in an anatomy.

``tumor_plan`` draws what it shall be like, ``mass_effect`` makes room for it, and ``edema`` spreads
around it.

The part of the core that takes up contrast agent is drawn independently of the tissue of the core.
Therefore only T1ce can show it, and a network cannot infer it from other modalities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from medmap.phantom.anatomy import TISSUES, WORLD_GRID, Atlas
from medmap.phantom.edema import (
    callosum,
    edema_capacity,
    edema_cost,
    edema_reach,
    spread_edema,
)
from medmap.phantom.fields import Draw, interpolate, random_field
from medmap.phantom.mass_effect import push_aside
from medmap.phantom.style import Style
from medmap.phantom.tumor_kinds import plan_of_kind
from medmap.phantom.tumor_plan import Plan, draw_plan, sphere_radius

Field = Callable[[float], torch.Tensor]


@dataclass(frozen=True)
class Lesion:
    """A tumor at N points; all fields are [N] and range from 0 to 1.

    Attributes:
        edema: fraction of edema.
        core: fraction of tumor core.
        necrosis: fraction of necrosis, within the core.
        blood: fraction of hemorrhage, within the core.
        enhancing: uptake of contrast agent, within the core. T1ce alone shows it; the other fields
            are tissue, which every modality shows.
    """

    edema: torch.Tensor
    core: torch.Tensor
    necrosis: torch.Tensor
    blood: torch.Tensor
    enhancing: torch.Tensor


@dataclass(frozen=True)
class Tumor:
    """A grown tumor on the coarse grid.

    Attributes:
        plan: its intended properties.
        maps: name -> [*WORLD_GRID.shape]: ``core`` (mm inside the core), ``arrival`` (cost of edema
            from the core, in mm of white matter) and random fields for its details.
        edema_reach: arrival cost at the margin of the edema.
    """

    plan: Plan
    maps: dict[str, torch.Tensor]
    edema_reach: float

    def squeeze(self, world: torch.Tensor) -> torch.Tensor:
        """[N] 0 to 1: how far the mass effect closes sulci at [3, N] positions in mm."""
        depth = interpolate(self.maps["core"][None], WORLD_GRID, world)[0]
        return torch.exp(depth.clamp(max=0.0) / 14.0)

    def at(self, world: torch.Tensor, parts: torch.Tensor, fine: torch.Tensor) -> Lesion:
        """The tumor at points.

        Args:
            world: [3, N] positions in mm.
            parts: [len(TISSUES), N] healthy tissue fractions at the points.
            fine: [N] unit-variance field of a few mm, which roughens every margin.
        """
        stacked = torch.stack(list(self.maps.values()))
        values = interpolate(stacked, WORLD_GRID, world)
        maps = dict(zip(self.maps, values, strict=True))
        habit = self.plan.habit

        # The coarse grid alone would give margins as smooth as its 3 mm steps.
        depth = maps["core"] + 0.5 * fine
        core = torch.sigmoid(depth / 0.45)
        enhancing = torch.zeros_like(core)
        if self.plan.enhancing:
            enhancing = self._enhancing(maps, depth) * core

        necrosis = self._necrosis(maps["necrosis"], depth, fine) * core
        blood = torch.sigmoid((maps["blood"] - 1.5) / 0.1) * core
        # Arrival costs are in mm of white matter: elsewhere the same margin is narrower.
        margin = self.edema_reach - maps["arrival"] + 1.2 * fine
        edema = torch.sigmoid(margin / habit.soft)
        return Lesion(
            edema=edema * edema_capacity(parts, habit),
            core=core,
            necrosis=necrosis * habit.necrosis,
            blood=blood * habit.blood,
            enhancing=enhancing,
        )

    def _necrosis(
        self, field: torch.Tensor, depth: torch.Tensor, fine: torch.Tensor
    ) -> torch.Tensor:
        """[N] necrosis at [N] mm inside the core: below the rim, with a wavy border."""
        below_rim = depth - self.plan.rim_mm
        below_start = below_rim - self.plan.habit.necrosis_start
        wavy = below_start + 2.2 * field + 0.6 * fine
        return torch.sigmoid(wavy / 0.8)

    def _enhancing(self, maps: dict[str, torch.Tensor], depth: torch.Tensor) -> torch.Tensor:
        """[N] uptake of contrast agent: an open, uneven rim around necrosis, and solid nodules."""
        rim = self._rim(maps, depth)
        above_level = maps["nodules"] - self.plan.habit.nodules
        # The depth is negative outside the core: nodules end at its surface.
        nodules = torch.minimum(3.0 * above_level, depth)
        surface = torch.maximum(rim, nodules)
        return torch.sigmoid(surface / 0.3)

    def _rim(self, maps: dict[str, torch.Tensor], depth: torch.Tensor) -> torch.Tensor:
        """[N] roughly mm inside the rim, which has a start and an end below the surface."""
        habit = self.plan.habit
        # Where this is negative, the rim is missing.
        closed = (habit.rim_open - maps["gaps"] + 0.6).neg()
        thickness = self.plan.rim_mm * torch.exp(habit.rim_variation * maps["rim"])
        thickness = thickness * (closed / 0.5).clamp(0.0, 1.0)
        thickness = thickness.clamp(max=9.0)

        start = (habit.outer + 1.6 * maps["outer"]).clamp(min=0.0)
        # Thin rims start closer to the surface.
        start = start * min(1.0, self.plan.rim_mm / 3.0)
        return torch.minimum(depth - start, start + thickness - depth)


def grow_tumor(
    draw: Draw, kind_draw: Draw, kind: str, atlas: Atlas, template: torch.Tensor, style: Style
) -> tuple[torch.Tensor, Tumor]:
    """Draw a tumor and grow it in an anatomy.

    Args:
        draw: random stream.
        kind_draw: another one, for what is particular to the kind.
        kind: of the tumor, see ``medmap.phantom.tumor_kinds``.
        atlas: the anatomy.
        template: [3, *WORLD_GRID.shape] template positions.
        style: probabilities of kinds of tumors.

    Returns:
        the template positions after the mass effect, and the tumor.
    """
    usual_plan = draw_plan(draw, atlas, style)
    plan = plan_of_kind(kind_draw, usual_plan, kind)
    template, centers = push_aside(plan, atlas, template)
    return template, _grow(draw, plan, atlas, template, centers)


def _grow(
    draw: Draw, plan: Plan, atlas: Atlas, template: torch.Tensor, centers: list[torch.Tensor]
) -> Tumor:
    """Shape the core and let the edema spread from it along white matter, on the coarse grid.

    The order in which fields are drawn is part of a seed.
    """
    field = partial(random_field, draw, WORLD_GRID, device=template.device)
    flat = template.reshape(3, -1)
    parts, room = _surroundings(atlas, flat)
    # Positive in the core. Its zero level is fitted later, so that the drawn volume is met.
    level = _core_level(draw, plan, centers, field)
    side = atlas.side(flat).reshape(WORLD_GRID.shape)
    room = room.reshape(WORLD_GRID.shape)
    room = torch.minimum(room, _room_to_falx(plan, template, side))

    core = _fit_volume(level, room, plan.core_ml)
    cost = edema_cost(plan, parts, template, side, field(16.0))
    arrival = spread_edema(core, cost)
    edema_ml = plan.total_ml - plan.core_ml
    maps = {
        "core": core,
        "arrival": arrival,
        "rim": field(18.0),
        "gaps": field(24.0),
        "nodules": field(11.0),
        "outer": field(15.0),
        "necrosis": field(13.0),
    }
    # Nothing reads this field, but without it every seed would draw another hemorrhage.
    field(8.0)
    maps["blood"] = field(14.0)
    return Tumor(plan, maps, edema_reach(arrival, core, parts, edema_ml))


def _surroundings(atlas: Atlas, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Healthy tissue at [3, N] template positions of the coarse grid.

    Returns:
        [len(TISSUES), N] fractions, and the [N] mm that a core may grow before it meets the skull
        or a ventricle.
    """
    count = flat.shape[1]
    is_inside = atlas.hull(flat) > -WORLD_GRID.step
    inside = is_inside.nonzero()[:, 0]
    healthy = atlas.tissues(flat[:, inside], WORLD_GRID.step)

    parts = flat.new_zeros(len(TISSUES), count)
    parts[TISSUES.index("csf")] = 1.0
    parts[:, inside] = healthy.parts

    room = flat.new_full((count,), -WORLD_GRID.step)
    to_skull = healthy.hull - 1.0
    to_ventricle = -healthy.ventricle - 0.5
    room[inside] = torch.minimum(to_skull, to_ventricle)
    return parts, room


def _core_level(
    draw: Draw, plan: Plan, centers: Sequence[torch.Tensor], field: Field
) -> torch.Tensor:
    """[*WORLD_GRID.shape], positive inside, roughly mm: lobulated ellipsoids around the foci."""
    world = WORLD_GRID.points(centers[0].device)
    ellipsoids = []
    for center, radius in zip(centers, plan.core_radii(len(centers)), strict=True):
        offsets = world - center.view(3, 1, 1, 1)
        ellipsoids.append(radius - _ellipsoid_distance(draw, offsets))
    level = ellipsoids[0]
    for ellipsoid in ellipsoids[1:]:
        level = torch.maximum(level, ellipsoid)

    size = sphere_radius(plan.core_ml)
    # Large tumors have larger lobes.
    wavelength = min(max(1.6 * size, 14.0), 42.0)
    bumps = field(wavelength) + 0.3 * field(14.0)
    return level + plan.habit.lobes * size * bumps


def _ellipsoid_distance(draw: Draw, offsets: torch.Tensor) -> torch.Tensor:
    """Distance of [3, I, J, K] offsets in the metric of a random ellipsoid."""
    lengths = [math.exp(draw.normal(0.0, 0.18)) for _ in range(3)]
    axes = torch.tensor(lengths, device=offsets.device)
    # Axes of unit product: the ellipsoid has the volume of the sphere.
    axes = axes / axes.prod() ** (1.0 / 3.0)
    # The Q of a Gaussian matrix is a random orientation.
    rotation, _ = torch.linalg.qr(draw.white(3, 3))
    rotation = rotation.to(offsets.device)
    flat_rotated = rotation @ offsets.reshape(3, -1)
    rotated = flat_rotated.reshape(offsets.shape)
    scaled = rotated / axes.view(3, 1, 1, 1)
    return scaled.square().sum(0).sqrt()


def _room_to_falx(plan: Plan, template: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """mm to the falx, positive on the side of the main focus.

    Free where the corpus callosum lets a tumor cross: the butterfly glioma.
    """
    sign = -1.0
    if plan.foci[0][0] > 0:
        sign = 1.0
    # 200 mm of room per unit: within the corpus callosum the falx is no limit at all.
    passage = 200.0 * callosum(template).clamp(min=0.0)
    return sign * side - 1.0 + passage


def _fit_volume(level: torch.Tensor, room: torch.Tensor, ml: float) -> torch.Tensor:
    """Shift a level so that its positive part, where there is room, has a volume of ``ml``."""
    voxel_mm3 = WORLD_GRID.step**3
    voxels = max(int(ml * 1000.0 / voxel_mm3), 1)
    # Where there is no room a level far below all others can never reach the threshold.
    allowed = torch.where(room > 0, level, level - 1000.0)
    allowed = allowed.flatten()
    # As many voxels lie above the threshold as the volume needs.
    rank = max(allowed.numel() - voxels, 1)
    threshold = allowed.kthvalue(rank)[0]
    return torch.minimum(level - threshold, room)
