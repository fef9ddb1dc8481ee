"""Vasogenic edema: it spreads from the core along white matter and spares cortex and nuclei."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from medmap.phantom.anatomy import TISSUES, WORLD_GRID
from medmap.phantom.tumor_plan import Habit, Plan

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


def edema_capacity(parts: torch.Tensor, habit: Habit) -> torch.Tensor:
    """[N] 0 to 1: how much edema the healthy tissue admits."""
    # Edema spreads freely between the fibers of white matter and hardly into cortex; compact tracts
    # and nuclei lie between.
    rows = {name: parts[TISSUES.index(name)] for name in EDEMA_SPEED}
    tracts = rows["stem"] + rows["thalamus"]
    nuclei = rows["striatum"] + rows["pallidum"]
    cortex = habit.cortex * rows["gm"]
    capacity = rows["wm"] + rows["wmh"]
    capacity = capacity + 0.8 * tracts
    capacity = capacity + cortex
    capacity = capacity + 0.6 * nuclei
    return capacity.clamp(0.0, 1.0)


def edema_cost(
    plan: Plan,
    parts: torch.Tensor,
    template: torch.Tensor,
    side: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """[*WORLD_GRID.shape] cost of a millimeter for edema, 1 in white matter on average."""
    speed = torch.full_like(parts[0], SLOWEST_EDEMA)
    for name, value in EDEMA_SPEED.items():
        fraction = parts[TISSUES.index(name)]
        speed = speed + value * fraction

    slowness = 1.0 / speed
    cost = slowness.reshape(WORLD_GRID.shape)
    # Noise makes edema advance in fingers.
    cost = cost * torch.exp(plan.habit.finger * noise)
    is_midline = side.abs() < 2.4
    # The hemispheres touch at the corpus callosum; elsewhere the falx parts them.
    is_falx = is_midline & (callosum(template) < 0)
    wall = torch.full_like(cost, FALX_COST)
    return torch.where(is_falx, wall, cost)


def callosum(template: torch.Tensor) -> torch.Tensor:
    """Positive where the hemispheres touch: inside the free edge of the falx."""
    # An ellipse in the midsagittal plane, 80 mm long and 46 mm high.
    y_share = (template[1] - 10.0) / 40.0
    z_share = (template[2] - 6.0) / 23.0
    radius = (y_share**2 + z_share**2).sqrt()
    return 1.0 - radius


def spread_edema(core: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    """Arrival cost of edema from the core, in mm of white matter (a geodesic distance).

    Shortest paths over 26 neighbors by relaxation: unlike Dijkstra's algorithm it runs on tensors.
    30 rounds of 3 mm cover ``SPREAD_MM`` and detours.
    """
    unreached = torch.full_like(core, UNREACHED)
    arrival = torch.where(core > 0, torch.zeros_like(core), unreached)
    # Next to the core its signed distance is finer than the grid.
    is_beside = (core <= 0) & (core > -WORLD_GRID.step)
    arrival = torch.where(is_beside, -core * cost, arrival)

    # Relaxing a box around the core costs a fraction of relaxing the whole head.
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
            axes_crossed = sum(abs(offset) for offset in step)
            length = WORLD_GRID.step * math.sqrt(axes_crossed)
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


def edema_reach(
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

    # The volume is met by choosing how far edema gets, not how fast: its shape stays anatomical.
    voxels = max(int(edema_ml * 1000.0 / WORLD_GRID.step**3), 2)
    rank = min(voxels, costs.numel())
    return float(costs.kthvalue(rank)[0])
