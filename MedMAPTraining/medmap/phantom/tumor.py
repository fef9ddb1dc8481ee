"""A glioma: where it sits, its shape, its rim, its edema, and how it pushes the brain aside.

Volumes and fractions are drawn around the percentiles of 123 BraTS 2020 masks (WT 21/50/87/132/194 ml at
5/25/50/75/95 %, medians ED .67, ET .18, NCR .12 of WT; 8 % without ET), with more small ones and more without ET.
Which part of the core takes up contrast agent is drawn apart from what the core is made of, so that nothing but T1ce
can show it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from medmap.phantom.anatomy import TISSUES, WORLD, Atlas
from medmap.phantom.fields import Draw, random_field, sample

_SPREAD = {
    "wm": 1.0,
    "wmh": 1.0,
    "stem": 0.45,
    "thalamus": 0.35,
    "striatum": 0.25,
    "pallidum": 0.25,
    "gm": 0.16,
}
"""How fast edema advances in each tissue, relative to white matter; elsewhere (CSF, cerebellum) hardly at all."""


@dataclass(frozen=True)
class Plan:
    """What one tumor will be, before it is grown.

    Attributes:
        total_ml: aimed whole-tumor volume.
        core_ml: aimed volume of the core (ET + NCR).
        enhancing: False for a low-grade look.
        rim_mm: mean thickness of the enhancing rim.
        foci: template positions (signed x) of the foci, main one first.
        shares: fraction of the core's volume in each focus.
        push: radius of the displacing mass as a fraction of the core's radius.
        habit: remaining scalars.
    """

    total_ml: float
    core_ml: float
    enhancing: bool
    rim_mm: float
    foci: tuple[tuple[float, float, float], ...]
    shares: tuple[float, ...]
    push: float
    habit: dict[str, float]


def draw_plan(draw: Draw, atlas: Atlas, low_grade: float, multifocal: float, small: float) -> Plan:
    """Draw a tumor for a head; the three numbers are probabilities."""
    total = math.exp(draw.normal(math.log(84.0), 0.58))
    if draw.chance(small):
        total = math.exp(draw.uniform(math.log(1.5), math.log(40.0)))
    enhancing = not draw.chance(low_grade)
    core = min(0.85, max(0.06, draw.normal(0.39, 0.16))) if enhancing else draw.uniform(0.3, 0.85)
    count = 1 if not draw.chance(multifocal) else (2 if draw.chance(0.75) else 3)
    shares = [1.0] + [draw.uniform(0.05, 0.5) for _ in range(count - 1)]
    foci = _positions(draw, atlas, count, total)
    radius = _radius(total * core)
    habit = {
        "lobes": draw.uniform(0.08, 0.28) * (0.6 + 6.0 / max(radius, 6.0)),
        "rim_variation": draw.uniform(0.2, 0.55),
        "rim_open": draw.uniform(-3.0, -1.7) if draw.chance(0.75) else draw.uniform(-1.7, -0.2),
        "nodules": draw.uniform(0.7, 2.2),
        "outer": draw.uniform(-3.5, 0.3),
        "necrosis_start": draw.uniform(1.5, 5.5),
        "necrosis": 1.0 if enhancing or draw.chance(0.25) else 0.0,
        "finger": draw.uniform(0.25, 0.55),
        "soft": draw.uniform(0.8, 3.0) if enhancing else draw.uniform(0.4, 1.2),
        "blood": 1.0 if draw.chance(0.12) else 0.0,
        "cortex": draw.uniform(0.25, 0.8),
    }
    rim = min(10.0, max(draw.uniform(2.0, 3.5), draw.uniform(0.25, 0.95) * radius))
    push = draw.uniform(0.45, 0.95) if enhancing else draw.uniform(0.25, 0.7)
    return Plan(total, total * core, enhancing, rim, foci, tuple(shares), push, habit)


def _radius(ml: float) -> float:
    return (ml * 1000.0 * 3.0 / (4.0 * math.pi)) ** (1.0 / 3.0)


def _positions(
    draw: Draw, atlas: Atlas, count: int, total_ml: float
) -> tuple[tuple[float, float, float], ...]:
    """Places in the cerebrum's white matter, the further ones near the first."""
    deepest = 12.0 + 0.35 * _radius(total_ml)
    tried = [
        (draw.uniform(-60, 60), draw.uniform(-78, 78), draw.uniform(-38, 70)) for _ in range(400)
    ]
    m = atlas.at(torch.tensor(tried, device=atlas.device).T.contiguous())
    fits = (
        (m["cerebrum"] > 4.0)
        & (m["cerebrum"] < max(deepest, 26.0))
        & (m["ventricle"] < -3.0)
        & (m["sheet"] > 4.0)
    )
    found: list[tuple[float, float, float]] = []
    for p, fit in zip(tried, fits.tolist(), strict=True):
        apart = not found or 24.0 < math.dist(p, found[0]) < 65.0
        if fit and apart and abs(p[0]) > 7.0 and len(found) < count:
            found.append(p)
    return tuple(found or [(32.0, -5.0, 28.0)])


def push_aside(
    plan: Plan, atlas: Atlas, template: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Mass effect: near each focus, tissue gives way radially as an incompressible medium would, fading with distance.

    Args:
        plan: the tumor.
        atlas: the head.
        template: [3, *WORLD.shape] template positions before.

    Returns:
        template positions after, and the world positions [3] of the foci.
    """
    world, centers = WORLD.points(template.device), []
    for focus, share in zip(plan.foci, plan.shares, strict=False):
        target = template.new_tensor(focus).view(3, 1, 1, 1)
        nearest = (template - target).square().sum(0).flatten().argmin()
        center = world.reshape(3, -1)[:, nearest]
        centers.append(center)
        mass = plan.push * _radius(plan.core_ml * share / sum(plan.shares))
        out = world - center.view(3, 1, 1, 1)
        r = out.square().sum(0).sqrt().clamp(min=0.1)
        fade = torch.exp(-((r - mass).clamp(min=0.0) / 38.0).square())
        before = (r**3 - (mass**3) * fade).clamp(min=0.0) ** (1.0 / 3.0)
        before = torch.maximum(before, 0.25 * r)
        here = sample(
            template, WORLD, (center.view(3, 1, 1, 1) + out * (before / r)).reshape(3, -1)
        )
        held = (
            atlas.hull(template.reshape(3, -1)).reshape(r.shape).div(16.0).clamp(0.0, 1.0)
        )  # the skull stays
        template = template + held * (here.reshape(template.shape) - template)
    return template, centers


@dataclass(frozen=True)
class Growth:
    """A grown tumor on the coarse lattice.

    Attributes:
        maps: [C, *WORLD.shape] fields, named by ``names``.
        reach: arrival cost at the edema's edge.
    """

    maps: torch.Tensor
    names: tuple[str, ...]
    reach: float


def grow(
    draw: Draw, plan: Plan, atlas: Atlas, template: torch.Tensor, centers: list[torch.Tensor]
) -> Growth:
    """Shape the core and let the edema spread from it along white matter, on the coarse lattice."""
    device = template.device
    field = partial(random_field, draw, WORLD, device=device)
    flat = template.reshape(3, -1)
    parts, room = _surroundings(atlas, flat)
    level = _core_level(draw, plan, centers, field)
    side = atlas.side(flat).reshape(WORLD.shape)
    room = torch.minimum(room.reshape(WORLD.shape), _own_side(plan, template, side))
    core = _fit(level, room, plan.core_ml)
    arrival = _spread(plan, parts, template, side, core, field(16.0))
    budget = max(int((plan.total_ml - plan.core_ml) * 1000.0 / WORLD.step**3), 2)
    takes = parts[[TISSUES.index(n) for n in ("wm", "stem", "thalamus", "wmh")]].sum(0) > 0.4
    costs = arrival[takes.reshape(WORLD.shape) & (core < 0) & (arrival < 900)]
    reach = float(costs.kthvalue(min(budget, costs.numel()))[0]) if costs.numel() else 1.0
    maps = {
        "core": core,
        "arrival": arrival,
        "rim": field(18.0),
        "gaps": field(24.0),
        "nodules": field(11.0),
    }
    maps |= {
        "outer": field(15.0),
        "necrosis": field(13.0),
        "ragged": field(8.0),
        "blood": field(14.0),
    }
    return Growth(torch.stack(list(maps.values())), tuple(maps), reach)


def _surroundings(atlas: Atlas, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Healthy tissue fractions on the coarse lattice, and the mm that a core has to the skull and the ventricles."""
    inside = (atlas.hull(flat) > -WORLD.step).nonzero()[:, 0]
    healthy = atlas.tissues(flat[:, inside], WORLD.step)
    parts = flat.new_zeros(len(TISSUES), flat.shape[1])
    parts[TISSUES.index("csf")] = 1.0
    parts[:, inside] = healthy["parts"]
    room = flat.new_full((flat.shape[1],), -WORLD.step)
    room[inside] = torch.minimum(healthy["hull"] - 1.0, -healthy["ventricle"] - 0.5)
    return parts, room


def _core_level(draw: Draw, plan: Plan, centers: list[torch.Tensor], field) -> torch.Tensor:
    """Positive inside, roughly mm: lobulated ellipsoids around the foci."""
    world = WORLD.points(centers[0].device)
    level = None
    for center, share in zip(centers, plan.shares, strict=False):
        radius = _radius(plan.core_ml * share / sum(plan.shares))
        axes = torch.tensor(
            [math.exp(draw.normal(0.0, 0.18)) for _ in range(3)], device=world.device
        )
        axes = axes / axes.prod() ** (1.0 / 3.0)
        turn = torch.linalg.qr(draw.white(3, 3))[0].to(world.device)
        out = (turn @ (world - center.view(3, 1, 1, 1)).reshape(3, -1)).reshape(world.shape)
        distance = (out / axes.view(3, 1, 1, 1)).square().sum(0).sqrt()
        here = radius - distance
        level = here if level is None else torch.maximum(level, here)
    size = _radius(plan.core_ml)
    bumps = field(min(max(1.6 * size, 14.0), 42.0)) + 0.3 * field(14.0)
    return level + plan.habit["lobes"] * size * bumps


def _own_side(plan: Plan, template: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """mm to the falx, positive on the side of the main focus; free where the corpus callosum lets a tumor cross."""
    own = 1.0 if plan.foci[0][0] > 0 else -1.0
    return own * side - 1.0 + 200.0 * _callosum(template).clamp(min=0.0)


def _callosum(template: torch.Tensor) -> torch.Tensor:
    """Positive where the hemispheres touch: the inside of the falx's free edge."""
    return 1.0 - (((template[1] - 10.0) / 40.0) ** 2 + ((template[2] - 6.0) / 23.0) ** 2).sqrt()


def _fit(level: torch.Tensor, room: torch.Tensor, ml: float) -> torch.Tensor:
    """Shift a level so that what is positive and has room measures ``ml``."""
    voxels = max(int(ml * 1000.0 / WORLD.step**3), 1)
    flat = torch.where(room > 0, level, level - 1000.0).flatten()
    kept = max(flat.numel() - voxels, 1)
    return torch.minimum(level - flat.kthvalue(kept)[0], room)


def _spread(
    plan: Plan,
    parts,
    template: torch.Tensor,
    side: torch.Tensor,
    core: torch.Tensor,
    noise: torch.Tensor,
):
    """Arrival cost (mm of white matter) from the core by relaxation over 26 neighbors."""
    speed = torch.full_like(parts[0], 0.03)
    for name, value in _SPREAD.items():
        speed = speed + value * parts[TISSUES.index(name)]
    cost = (1.0 / speed).reshape(WORLD.shape) * torch.exp(plan.habit["finger"] * noise)
    falx = (side.abs() < 2.4) & (_callosum(template) < 0)
    cost = torch.where(falx, torch.full_like(cost, 40.0), cost)
    arrival = torch.where(core > 0, torch.zeros_like(core), torch.full_like(core, 1000.0))
    arrival = torch.where((core <= 0) & (core > -WORLD.step), -core * cost, arrival)
    inside = (core > -55.0).nonzero()
    low, high = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    arrival[box] = _relax(arrival[box].contiguous(), cost[box].contiguous(), 30)
    return arrival


def _relax(arrival: torch.Tensor, cost: torch.Tensor, rounds: int) -> torch.Tensor:
    steps = [
        (a, b, c)
        for a in (-1, 0, 1)
        for b in (-1, 0, 1)
        for c in (-1, 0, 1)
        if (a, b, c) > (0, 0, 0)
    ]
    for _ in range(rounds):
        new = arrival.clone()
        for step in steps:
            near, far = _windows(step)
            price = (
                0.5 * WORLD.step * math.sqrt(sum(s * s for s in step)) * (cost[near] + cost[far])
            )
            torch.minimum(new[near], arrival[far] + price, out=new[near])
            torch.minimum(new[far], arrival[near] + price, out=new[far])
        arrival = new
    return arrival


def _windows(step: tuple[int, int, int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    near = tuple(slice(max(0, -s), -s if s > 0 else None) for s in step)
    far = tuple(slice(max(0, s), s if s < 0 else None) for s in step)
    return near, far


def at_points(
    plan: Plan, growth: Growth, world: torch.Tensor, parts: torch.Tensor, fine: torch.Tensor
) -> dict:
    """The tumor at points.

    Args:
        plan: the tumor.
        growth: its coarse fields.
        world: [3, N] positions in mm.
        parts: [len(TISSUES), N] healthy tissue fractions there.
        fine: [N] unit-variance field of a few mm, which roughens every edge.

    Returns:
        [N] maps in 0..1: ``ed``, ``core``, ``necrosis``, ``blood`` (what tissue is made of: seen by every modality) and
        ``enhancing`` (a part of the core: seen by T1ce only).
    """
    m = dict(zip(growth.names, sample(growth.maps, WORLD, world), strict=True))
    habit = plan.habit
    depth = m["core"] + 0.5 * fine
    core = torch.sigmoid(depth / 0.45)
    open_ = (habit["rim_open"] - m["gaps"] + 0.6).neg()  # below zero the rim is missing
    thick = (
        plan.rim_mm * torch.exp(habit["rim_variation"] * m["rim"]) * (open_ / 0.5).clamp(0.0, 1.0)
    )
    start = (habit["outer"] + 1.6 * m["outer"]).clamp(min=0.0) * min(1.0, plan.rim_mm / 3.0)
    shell = torch.minimum(depth - start, start + thick.clamp(max=9.0) - depth)
    knots = 3.0 * (m["nodules"] - habit["nodules"])
    enhancing = torch.sigmoid(torch.maximum(shell, torch.minimum(knots, depth)) / 0.3) * core
    wet = depth - plan.rim_mm - habit["necrosis_start"] + 2.2 * m["necrosis"] + 0.6 * fine
    necrosis = torch.sigmoid(wet / 0.8) * core * habit["necrosis"]
    blood = torch.sigmoid((m["blood"] - 1.5) / 0.1) * core * habit["blood"]
    rows = {name: parts[TISSUES.index(name)] for name in _SPREAD}
    lets = (
        rows["wm"]
        + rows["wmh"]
        + 0.8 * (rows["stem"] + rows["thalamus"])
        + habit["cortex"] * rows["gm"]
    )
    lets = (lets + 0.6 * (rows["striatum"] + rows["pallidum"])).clamp(0.0, 1.0)
    edge = growth.reach - m["arrival"] + 1.2 * fine
    ed = torch.sigmoid(edge / habit["soft"]) * lets
    if not plan.enhancing:
        enhancing = torch.zeros_like(enhancing)
    return {
        "ed": ed,
        "core": core,
        "necrosis": necrosis,
        "blood": blood,
        "enhancing": enhancing,
        "reach": edge,
    }
