"""Mass effect: a tumor displaces the tissue around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medmap.phantom.anatomy import WORLD_GRID, Atlas
from medmap.phantom.fields import interpolate
from medmap.phantom.tumor_plan import Plan

SKULL_MM = 16.0
"""The mass effect fades over this distance from the brain's envelope: the skull does not yield."""


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
    radii = plan.core_radii(len(plan.foci))
    for focus, radius in zip(plan.foci, radii, strict=True):
        # Foci are drawn in the template's frame; an earlier focus may have moved the next one.
        center = _world_position(world, template, focus)
        centers.append(center)
        origins = _origins(world, center, plan.push * radius)
        pushed = interpolate(template, WORLD_GRID, origins.reshape(3, -1))
        displacement = pushed.reshape(template.shape) - template
        # Tissue at the skull has no room to move to: without this the brain would bulge out.
        flat_hull = atlas.hull(template.reshape(3, -1))
        hull = flat_hull.reshape(WORLD_GRID.shape)
        freedom = hull.div(SKULL_MM).clamp(0.0, 1.0)
        template = template + freedom * displacement
    return template, centers


def _world_position(
    world: torch.Tensor, template: torch.Tensor, focus: Sequence[float]
) -> torch.Tensor:
    """[3] world position whose template position is nearest to the focus."""
    target = template.new_tensor(focus).view(3, 1, 1, 1)
    offsets = template - target
    squared_distance = offsets.square().sum(0)
    nearest = squared_distance.flatten().argmin()
    points = world.reshape(3, -1)
    return points[:, nearest]


def _origins(world: torch.Tensor, center: torch.Tensor, mass: float) -> torch.Tensor:
    """[3, ...] positions from which a mass of radius ``mass`` has pushed the tissue outward.

    Near the mass tissue moves as an incompressible medium would: what fills a sphere of radius r
    afterwards filled a sphere of radius (r^3 - mass^3)^(1/3) before. The effect fades over 38 mm.
    """
    middle = center.view(3, 1, 1, 1)
    outward = world - middle
    # The center itself has no direction; 0.1 mm is far below a voxel.
    squared = outward.square().sum(0)
    r = squared.sqrt().clamp(min=0.1)
    beyond = (r - mass).clamp(min=0.0)
    fade = torch.exp(-(beyond / 38.0).square())
    # Volumes up to a common factor of 4/3 pi.
    displaced = mass**3 * fade
    cubed = (r**3 - displaced).clamp(min=0.0)
    r_before = cubed ** (1.0 / 3.0)
    # Without this floor a whole sphere of points would map to the center: a fold.
    r_before = torch.maximum(r_before, 0.25 * r)
    shrink = r_before / r
    return middle + outward * shrink
