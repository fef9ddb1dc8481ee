"""A glioma: its position, core, enhancing rim, edema and mass effect.

Volumes and fractions are drawn around the percentiles of 123 reference segmentations of BraTS 2020
(whole tumor 21/50/87/132/194 ml at the percentiles 5/25/50/75/95; median shares of edema 0.67,
enhancing tumor 0.18, necrotic and non-enhancing core 0.12; 8 % without enhancing tumor). Small
tumors and tumors without enhancement are more frequent than in that cohort.

The part of the core that takes up contrast agent is drawn independently of the tissue of the core.
Therefore only T1ce can show it, and a network cannot infer it from other modalities.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from medmap.phantom.anatomy import TISSUES, WORLD_GRID, Atlas
from medmap.phantom.fields import Draw, interpolate, random_field
from medmap.phantom.style import Style

Point = tuple[float, float, float]
Field = Callable[[float], torch.Tensor]

EDEMA_SPEED = {
    "wm": 1.0,
    "wmh": 1.0,
    "stem": 0.45,
    "thalamus": 0.35,
    "striatum": 0.25,
    "pallidum": 0.25,
    "gm": 0.16,
}
"""How fast edema advances in each tissue, relative to white matter.

Vasogenic edema follows white-matter tracts and spares cortex and deep nuclei. In other tissues
(CSF, cerebellum) it hardly advances, see ``SLOWEST_EDEMA``.
"""

SLOWEST_EDEMA = 0.03
FALX_COST = 40.0
"""Cost of a millimeter through the falx, a stiff membrane that edema does not cross."""

UNREACHED = 1000.0
"""Arrival cost where the relaxation has not arrived."""

SPREAD_MM = 55.0
"""Edema is computed this far around the core."""

SKULL_MM = 16.0
"""The mass effect fades over this distance from the brain's envelope: the skull does not yield."""


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
        radii = []
        for share in self.shares[:count]:
            radii.append(_radius(self.core_ml * share / sum(self.shares)))
        return radii


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

        depth = maps["core"] + 0.5 * fine
        core = torch.sigmoid(depth / 0.45)
        enhancing = torch.zeros_like(core)
        if self.plan.enhancing:
            enhancing = self._enhancing(maps, depth) * core

        necrosis = self._necrosis(maps["necrosis"], depth, fine) * core
        blood = torch.sigmoid((maps["blood"] - 1.5) / 0.1) * core
        margin = self.edema_reach - maps["arrival"] + 1.2 * fine
        edema = torch.sigmoid(margin / habit.soft)
        return Lesion(
            edema=edema * _edema_capacity(parts, habit),
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
        habit = self.plan.habit
        rim = self._rim(maps, depth)
        nodules = 3.0 * (maps["nodules"] - habit.nodules)
        surface = torch.maximum(rim, torch.minimum(nodules, depth))
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


def _edema_capacity(parts: torch.Tensor, habit: Habit) -> torch.Tensor:
    """[N] 0 to 1: how much edema the healthy tissue admits."""
    rows = {name: parts[TISSUES.index(name)] for name in EDEMA_SPEED}
    tracts = rows["stem"] + rows["thalamus"]
    nuclei = rows["striatum"] + rows["pallidum"]
    capacity = rows["wm"] + rows["wmh"]
    capacity = capacity + 0.8 * tracts
    capacity = capacity + habit.cortex * rows["gm"]
    capacity = capacity + 0.6 * nuclei
    return capacity.clamp(0.0, 1.0)


def grow_tumor(
    draw: Draw, atlas: Atlas, template: torch.Tensor, style: Style
) -> tuple[torch.Tensor, Tumor]:
    """Draw a tumor and grow it in an anatomy.

    Args:
        draw: random stream.
        atlas: the anatomy.
        template: [3, *WORLD_GRID.shape] template positions.
        style: probabilities of kinds of tumors.

    Returns:
        the template positions after the mass effect, and the tumor.
    """
    plan = draw_plan(draw, atlas, style)
    template, centers = push_aside(plan, atlas, template)
    return template, _grow(draw, plan, atlas, template, centers)


def draw_plan(draw: Draw, atlas: Atlas, style: Style) -> Plan:
    """Draw the properties of a tumor; see the module's docstring for the measured distributions."""
    total_ml = math.exp(draw.normal(math.log(84.0), 0.58))
    if draw.chance(style.small):
        total_ml = math.exp(draw.uniform(math.log(1.5), math.log(40.0)))
    enhancing = not draw.chance(style.low_grade)
    core_ml = total_ml * _draw_core_share(draw, enhancing)

    shares = _draw_shares(draw, style.multifocal)
    foci = _draw_foci(draw, atlas, len(shares), total_ml)
    radius = _radius(core_ml)
    habit = _draw_habit(draw, radius, enhancing)

    thinnest_mm = draw.uniform(2.0, 3.5)
    rim_mm = draw.uniform(0.25, 0.95) * radius
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


def _draw_core_share(draw: Draw, enhancing: bool) -> float:
    """Volume of the core as a fraction of the whole tumor."""
    if enhancing:
        share = draw.normal(0.39, 0.16)
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


def _draw_habit(draw: Draw, radius: float, enhancing: bool) -> Habit:
    """Individual traits; ``radius`` of the core in mm. The order of the draws is part of a seed."""
    # Small cores are lobulated more, relative to their size.
    lobes = draw.uniform(0.08, 0.28) * (0.6 + 6.0 / max(radius, 6.0))
    rim_variation = draw.uniform(0.2, 0.55)
    # Three of four rims are nearly closed.
    rim_range = (-1.7, -0.2)
    if draw.chance(0.75):
        rim_range = (-3.0, -1.7)
    rim_open = draw.uniform(*rim_range)
    nodules = draw.uniform(0.7, 2.2)
    outer = draw.uniform(-3.5, 0.3)
    necrosis_start = draw.uniform(1.5, 5.5)
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


def _radius(ml: float) -> float:
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
    deepest_mm = max(12.0 + 0.35 * _radius(total_ml), 26.0)
    is_inside = landmarks.cerebrum > 4.0
    is_inside &= landmarks.cerebrum < deepest_mm
    is_inside &= landmarks.ventricle < -3.0
    is_inside &= landmarks.sheet > 4.0
    return is_inside.tolist()


def push_aside(
    plan: Plan, atlas: Atlas, template: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Mass effect: around each focus, tissue moves outward and the displacement fades.

    Args:
        plan: the tumor.
        atlas: the anatomy.
        template: [3, *WORLD_GRID.shape] template positions before.

    Returns:
        template positions after, and the world positions [3] of the foci.
    """
    world = WORLD_GRID.points(template.device)
    centers = []
    for focus, radius in zip(plan.foci, plan.core_radii(len(plan.foci)), strict=True):
        target = template.new_tensor(focus).view(3, 1, 1, 1)
        distance = (template - target).square().sum(0)
        nearest = distance.flatten().argmin()
        center = world.reshape(3, -1)[:, nearest]
        centers.append(center)

        origins = _origins(world, center, plan.push * radius)
        pushed = interpolate(template, WORLD_GRID, origins.reshape(3, -1))
        displacement = pushed.reshape(template.shape) - template
        hull = atlas.hull(template.reshape(3, -1)).reshape(WORLD_GRID.shape)
        freedom = hull.div(SKULL_MM).clamp(0.0, 1.0)
        template = template + freedom * displacement
    return template, centers


def _origins(world: torch.Tensor, center: torch.Tensor, mass: float) -> torch.Tensor:
    """[3, ...] positions from which a mass of radius ``mass`` has pushed the tissue outward.

    Near the mass tissue moves as an incompressible medium would: what fills a sphere of radius r
    afterwards filled a sphere of radius (r^3 - mass^3)^(1/3) before. The effect fades over 38 mm.
    """
    outward = world - center.view(3, 1, 1, 1)
    r = outward.square().sum(0).sqrt().clamp(min=0.1)
    beyond = (r - mass).clamp(min=0.0)
    fade = torch.exp(-(beyond / 38.0).square())
    cubed = (r**3 - (mass**3) * fade).clamp(min=0.0)
    r_before = cubed ** (1.0 / 3.0)
    # Without this floor a whole sphere of points would map to the center: a fold.
    r_before = torch.maximum(r_before, 0.25 * r)
    return center.view(3, 1, 1, 1) + outward * (r_before / r)


def _grow(
    draw: Draw, plan: Plan, atlas: Atlas, template: torch.Tensor, centers: list[torch.Tensor]
) -> Tumor:
    """Shape the core and let the edema spread from it along white matter, on the coarse grid.

    The order in which fields are drawn is part of a seed.
    """
    field = partial(random_field, draw, WORLD_GRID, device=template.device)
    flat = template.reshape(3, -1)
    parts, room = _surroundings(atlas, flat)
    level = _core_level(draw, plan, centers, field)
    side = atlas.side(flat).reshape(WORLD_GRID.shape)
    room = room.reshape(WORLD_GRID.shape)
    room = torch.minimum(room, _room_to_falx(plan, template, side))

    core = _fit_volume(level, room, plan.core_ml)
    cost = _edema_cost(plan, parts, template, side, field(16.0))
    arrival = _spread(core, cost)
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
    return Tumor(plan, maps, _edema_reach(arrival, core, parts, edema_ml))


def _edema_reach(
    arrival: torch.Tensor, core: torch.Tensor, parts: torch.Tensor, edema_ml: float
) -> float:
    """Arrival cost up to which edema fills ``edema_ml`` of the tissue that admits it."""
    rows = [TISSUES.index(name) for name in ("wm", "stem", "thalamus", "wmh")]
    admits = parts[rows].sum(0) > 0.4
    is_candidate = admits.reshape(WORLD_GRID.shape) & (core < 0)
    is_candidate &= arrival < 0.9 * UNREACHED
    costs = arrival[is_candidate]
    if not costs.numel():
        return 1.0

    voxels = max(int(edema_ml * 1000.0 / WORLD_GRID.step**3), 2)
    rank = min(voxels, costs.numel())
    return float(costs.kthvalue(rank)[0])


def _surroundings(atlas: Atlas, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Healthy tissue at [3, N] template positions of the coarse grid.

    Returns:
        [len(TISSUES), N] fractions, and the [N] mm that a core may grow before it meets the skull
        or a ventricle.
    """
    count = flat.shape[1]
    inside = (atlas.hull(flat) > -WORLD_GRID.step).nonzero()[:, 0]
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

    size = _radius(plan.core_ml)
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
    rotation = torch.linalg.qr(draw.white(3, 3))[0]
    rotation = rotation.to(offsets.device)
    rotated = (rotation @ offsets.reshape(3, -1)).reshape(offsets.shape)
    scaled = rotated / axes.view(3, 1, 1, 1)
    return scaled.square().sum(0).sqrt()


def _room_to_falx(plan: Plan, template: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """mm to the falx, positive on the side of the main focus.

    Free where the corpus callosum lets a tumor cross: the butterfly glioma.
    """
    sign = -1.0
    if plan.foci[0][0] > 0:
        sign = 1.0
    return sign * side - 1.0 + 200.0 * _callosum(template).clamp(min=0.0)


def _callosum(template: torch.Tensor) -> torch.Tensor:
    """Positive where the hemispheres touch: inside the free edge of the falx."""
    y_share = (template[1] - 10.0) / 40.0
    z_share = (template[2] - 6.0) / 23.0
    return 1.0 - (y_share**2 + z_share**2).sqrt()


def _fit_volume(level: torch.Tensor, room: torch.Tensor, ml: float) -> torch.Tensor:
    """Shift a level so that its positive part, where there is room, has a volume of ``ml``."""
    voxels = max(int(ml * 1000.0 / WORLD_GRID.step**3), 1)
    allowed = torch.where(room > 0, level, level - 1000.0)
    allowed = allowed.flatten()
    rank = max(allowed.numel() - voxels, 1)
    threshold = allowed.kthvalue(rank)[0]
    return torch.minimum(level - threshold, room)


def _edema_cost(
    plan: Plan,
    parts: torch.Tensor,
    template: torch.Tensor,
    side: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """[*WORLD_GRID.shape] cost of a millimeter for edema, 1 in white matter on average."""
    speed = torch.full_like(parts[0], SLOWEST_EDEMA)
    for name, value in EDEMA_SPEED.items():
        speed = speed + value * parts[TISSUES.index(name)]

    cost = (1.0 / speed).reshape(WORLD_GRID.shape)
    # Noise makes edema advance in fingers.
    cost = cost * torch.exp(plan.habit.finger * noise)
    is_midline = side.abs() < 2.4
    is_falx = is_midline & (_callosum(template) < 0)
    return torch.where(is_falx, torch.full_like(cost, FALX_COST), cost)


def _spread(core: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    """Arrival cost of edema from the core, in mm of white matter (a geodesic distance).

    Shortest paths over 26 neighbors by relaxation: unlike Dijkstra's algorithm it runs on tensors.
    30 rounds of 3 mm cover ``SPREAD_MM`` and detours.
    """
    unreached = torch.full_like(core, UNREACHED)
    arrival = torch.where(core > 0, torch.zeros_like(core), unreached)
    # Next to the core its signed distance is finer than the grid.
    is_beside = (core <= 0) & (core > -WORLD_GRID.step)
    arrival = torch.where(is_beside, -core * cost, arrival)

    nearby = (core > -SPREAD_MM).nonzero()
    low = nearby.amin(0).tolist()
    high = (nearby.amax(0) + 1).tolist()
    box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
    nearby_arrival = arrival[box].contiguous()
    nearby_cost = cost[box].contiguous()
    arrival[box] = _relax(nearby_arrival, nearby_cost, 30)
    return arrival


def _relax(arrival: torch.Tensor, cost: torch.Tensor, rounds: int) -> torch.Tensor:
    """Bellman-Ford rounds over the 26 neighbors; a step costs the mean of its two ends."""
    # Each pair of neighbors is visited once, in both directions.
    steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]
    for _ in range(rounds):
        relaxed = arrival.clone()
        for step in steps:
            near, far = _neighbors(step)
            length = WORLD_GRID.step * math.sqrt(sum(abs(offset) for offset in step))
            price = 0.5 * length * (cost[near] + cost[far])
            from_far = arrival[far] + price
            from_near = arrival[near] + price
            torch.minimum(relaxed[near], from_far, out=relaxed[near])
            torch.minimum(relaxed[far], from_near, out=relaxed[far])
        arrival = relaxed
    return arrival


def _neighbors(step: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of all voxels that have a neighbor at ``step``, and of these neighbors."""
    near = []
    far = []
    for offset in step:
        first = slice(None, -1)
        last = slice(1, None)
        if offset > 0:
            near.append(first)
            far.append(last)
        elif offset < 0:
            near.append(last)
            far.append(first)
        else:
            near.append(slice(None))
            far.append(slice(None))
    return tuple(near), tuple(far)
