"""Lesions that are not tumor but may look like it: old lacunar infarcts and hemorrhages.

Vessels, choroid plexus and white-matter hyperintensities belong to the anatomy (``anatomy.py``).
"""

from __future__ import annotations

import torch

from medmap.phantom.anatomy import paint
from medmap.phantom.fields import Draw

RADIUS_MM = {"lacune": (1.0, 5.5), "hemorrhage": (0.8, 7.0)}
"""Smallest and largest radius; lacunes are at most 15 mm wide by definition (STRIVE criteria)."""

DEEP_MM = 12.0
"""Lesions are centered at least this far below the brain's envelope."""


def add_distractors(
    draw: Draw,
    parts: torch.Tensor,
    world: torch.Tensor,
    hull: torch.Tensor,
    rough: torch.Tensor,
    probability: float,
) -> None:
    """Paint lacunes and hemorrhages into healthy tissue, in place.

    Args:
        draw: random stream.
        parts: [len(TISSUES), N] fractions, changed in place.
        world: [3, N] positions in mm.
        hull: [N] mm inside the brain's envelope.
        rough: [N] unit-variance field that makes outlines irregular.
        probability: of each kind of lesion; a case then has one to three of the kind.
    """
    for kind, radius_range in RADIUS_MM.items():
        if not draw.chance(probability):
            continue
        candidates = (hull > DEEP_MM).nonzero()[:, 0]
        count = 1 + int(draw.uniform(0, 3))
        # Where a field of view holds no deep tissue, there is no room for lesions of any kind.
        if not len(candidates):
            return
        for _ in range(count):
            center = world[:, _draw_one(draw, candidates)]
            radius = draw.uniform(*radius_range)
            smooth_depth = _depth_in_ellipsoid(draw, world, center, radius)
            depth = smooth_depth + 0.15 * radius * rough
            if kind == "lacune":
                _paint_lacune(draw, parts, depth)
            else:
                paint(parts, "blood", torch.sigmoid(depth / 0.5))


def _draw_one(draw: Draw, candidates: torch.Tensor) -> torch.Tensor:
    """One of the candidates; each is equally probable."""
    count = len(candidates)
    position = int(draw.uniform(0, count))
    # The end of the interval can be drawn, and is no position.
    position = min(position, count - 1)
    return candidates[position]


def _depth_in_ellipsoid(
    draw: Draw, world: torch.Tensor, center: torch.Tensor, radius: float
) -> torch.Tensor:
    """[N] mm inside an ellipsoid with random axis lengths around ``radius``."""
    lengths = [draw.uniform(0.7, 1.5) for _ in range(3)]
    stretch = torch.tensor(lengths, device=world.device)
    offsets = world - center[:, None]
    scaled = offsets / stretch[:, None]
    distance = scaled.square().sum(0).sqrt()
    return radius - distance


def _paint_lacune(draw: Draw, parts: torch.Tensor, depth: torch.Tensor) -> None:
    """A fluid-filled cavity within a rim of gliosis, which is bright in FLAIR."""
    rim_mm = draw.uniform(0.0, 2.5)
    gliosis = torch.sigmoid((depth + rim_mm) / 0.5)
    paint(parts, "wmh", gliosis)

    cavity = torch.sigmoid(depth / 0.5)
    paint(parts, "csf", cavity * draw.uniform(0.3, 1.0))
