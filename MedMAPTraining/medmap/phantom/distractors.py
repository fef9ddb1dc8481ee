"""What is not tumor but may look like it: old infarcts and bleedings. (Vessels, choroid plexus and white-matter
hyperintensities belong to the head; see ``anatomy.py``.)"""

from __future__ import annotations

import torch

from medmap.phantom.anatomy import paint
from medmap.phantom.fields import Draw


def add_distractors(
    draw: Draw,
    parts: torch.Tensor,
    world: torch.Tensor,
    hull: torch.Tensor,
    rough: torch.Tensor,
    probability: float,
) -> None:
    """Paint lacunes (a cavity with a gliotic border) and bleedings into a head, in place.

    Args:
        draw: chance.
        parts: [len(TISSUES), N] fractions.
        world: [3, N] positions in mm.
        hull: [N] mm inside the brain's envelope.
        rough: [N] unit-variance field that makes outlines irregular.
        probability: of each kind; one to three of a kind then.
    """
    for kind in ("lacune", "bleeding"):
        if not draw.chance(probability):
            continue
        inner = (hull > 12.0).nonzero()[:, 0]
        for _ in range(1 + int(draw.uniform(0, 3))):
            if not len(inner):
                return
            center = world[:, inner[min(int(draw.uniform(0, len(inner))), len(inner) - 1)]]
            radius = draw.uniform(1.0, 5.5) if kind == "lacune" else draw.uniform(0.8, 7.0)
            stretch = torch.tensor([draw.uniform(0.7, 1.5) for _ in range(3)], device=world.device)
            distance = ((world - center[:, None]) / stretch[:, None]).square().sum(0).sqrt()
            depth = radius - distance + 0.15 * radius * rough
            if kind == "lacune":
                paint(parts, "wmh", torch.sigmoid((depth + draw.uniform(0.0, 2.5)) / 0.5))
                paint(parts, "csf", torch.sigmoid(depth / 0.5) * draw.uniform(0.3, 1.0))
            else:
                paint(parts, "blood", torch.sigmoid(depth / 0.5))
