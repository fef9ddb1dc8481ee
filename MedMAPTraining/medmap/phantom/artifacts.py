"""What a scanner and its pipeline do to an image: blur, thick slices, shifts, bias, noise, gain curves, poor masks."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from medmap.phantom.anatomy import BROAD, paint
from medmap.phantom.fields import Draw, apply_along, cover, random_field, upsample
from medmap.phantom.style import Style


def axis_operator(
    count: int, spacing: float, sigma_mm: float, shift_mm: float, slice_mm: float
) -> torch.Tensor:
    """[count, count] matrix for one axis: Gaussian blur and shift, then slices of ``slice_mm`` resampled linearly."""
    at = torch.arange(count, dtype=torch.float64) * spacing
    sigma = max(sigma_mm, 0.3 * spacing)
    blur = torch.exp(-0.5 * ((at[:, None] + shift_mm - at[None, :]) / sigma) ** 2)
    blur = blur / blur.sum(1, keepdim=True).clamp(min=1e-6)
    if slice_mm <= 1.25 * spacing:
        return blur.float()
    number = max(math.ceil(count * spacing / slice_mm), 2)
    middle = (torch.arange(number, dtype=torch.float64) + 0.5) * slice_mm - 0.5 * spacing
    inside = (1.0 - ((at[None, :] - middle[:, None]).abs() - 0.5 * slice_mm) / spacing - 0.5).clamp(
        0.0, 1.0
    )
    take = inside / inside.sum(1, keepdim=True).clamp(min=1e-6)
    give = (
        1.0
        - (at[:, None].clamp(min=float(middle[0]), max=float(middle[-1])) - middle[None, :]).abs()
        / slice_mm
    )
    return (give.clamp(min=0.0) @ take @ blur).float()


def ghosts(count: int, spacing: float, strength: float, distance_mm: float) -> torch.Tensor:
    """[count, count] matrix for one axis: what moved appears again, weakly, ``distance_mm`` to either side."""
    hop = max(1, round(distance_mm / spacing))
    copies = torch.zeros(count, count)
    if hop < count:
        copies += torch.diag(torch.ones(count - hop), hop) + torch.diag(
            torch.ones(count - hop), -hop
        )
    return (1.0 - strength) * torch.eye(count) + 0.5 * strength * copies


def fade_rim(draw: Draw, images: torch.Tensor, brain: torch.Tensor) -> None:
    """Darken the border as interpolation against an empty background does, in place, per modality by chance.

    Args:
        draw: chance.
        images: [4, I, J, K].
        brain: [I, J, K] bool.
    """
    within = functional.avg_pool3d(brain[None, None].float(), 3, 1, 1)[0, 0].clamp(min=0.03)
    for image in images:
        if draw.chance(0.5):
            image.mul_(within ** draw.uniform(0.3, 2.0))


def degrade(
    draw: Draw, images: torch.Tensor, axes: list[torch.Tensor], spacing: float, style: Style
) -> tuple[torch.Tensor, list[dict]]:
    """[4, I, J, K] clean signals (mean about 1) -> as a scanner gives them, and a record of what was done to each."""
    out, record = [], []
    for row in range(images.shape[0]):
        flair_or_t2 = row >= 2
        thick = (
            draw.uniform(2.0, 7.0)
            if draw.chance(style.thick_slices * (1.0 if flair_or_t2 else 0.45))
            else 0.0
        )
        normal = 2 if draw.chance(0.65) else int(draw.uniform(0, 2.999))
        sigma = draw.uniform(0.25, 0.85) if draw.chance(0.85) else draw.uniform(0.85, 1.5)
        moved = (
            (draw.uniform(0.02, 0.12), draw.uniform(4.0, 30.0))
            if draw.chance(style.motion)
            else (0.0, 0.0)
        )
        phase = 0 if draw.chance(0.5) else 1
        gamma = math.exp(draw.uniform(math.log(style.gamma[0]), math.log(style.gamma[1])))
        noise = draw.uniform(*style.noise)
        bias = draw.uniform(0.0, style.bias)
        early = draw.chance(0.5)
        image = images[row : row + 1].clamp(min=0.0) ** gamma
        if early:
            image = _rician(draw, image, 1.5 * noise)
        for a in range(3):
            shift = draw.uniform(-style.shift_mm, style.shift_mm)
            operator = axis_operator(
                image.shape[a + 1], spacing, sigma, shift, thick if a == normal else 0.0
            )
            if a == phase and moved[0]:
                operator = ghosts(image.shape[a + 1], spacing, *moved) @ operator
            image = apply_along(image, a + 1, operator.to(image))
        field = random_field(draw, BROAD, draw.uniform(110.0, 220.0), 0.4, images.device)
        image = image * torch.exp(bias * upsample(field[None], BROAD, axes))
        if not early:
            image = _rician(draw, image, noise)
        if draw.chance(0.15):  # a site that saturates its brightest voxels
            image = image.clamp(max=draw.uniform(1.5, 3.0))
        out.append(image[0])
        record.append(
            {"slice_mm": thick, "gamma": gamma, "noise": noise, "bias": bias, "motion": moved[0]}
        )
    return torch.stack(out), record


def _rician(draw: Draw, image: torch.Tensor, sigma: float) -> torch.Tensor:
    real = image + sigma * draw.white(*image.shape, device=image.device)
    imaginary = sigma * draw.white(*image.shape, device=image.device)
    return (real.square() + imaginary.square()).sqrt()


def leave_residue(draw: Draw, parts: torch.Tensor, hull: torch.Tensor, field: torch.Tensor) -> None:
    """Patches of dura and scalp that skull-stripping overlooked, painted in place just outside the envelope."""
    if draw.chance(0.5):
        where = torch.sigmoid((-field - draw.uniform(0.5, 1.8)) / 0.15)
        paint(parts, "vessel", where * draw.uniform(0.3, 1.0) * cover(-0.5 - hull, 1.5))


def strip(
    draw: Draw,
    hull: torch.Tensor,
    pial: torch.Tensor,
    edge: torch.Tensor,
    height: torch.Tensor,
    style: Style,
) -> torch.Tensor:
    """[N] bool: what an imperfect skull-stripping keeps, from signed distances and a unit-variance field ``edge``.

    Args:
        draw: chance.
        hull: mm inside the smooth envelope.
        pial: mm inside gray matter's outer surface.
        edge: makes the border wander.
        height: world z in mm; a short field of view ends somewhere.
        style: how far.
    """
    border = draw.uniform(-2.6, 0.8) * style.strip + 0.7 * style.strip * edge
    kept = hull > border
    if draw.chance(0.4):  # some tools follow the gyri instead of wrapping them
        kept &= ~((pial < draw.uniform(-0.6, 0.1)) & (hull < draw.uniform(3.0, 9.0)))
    if draw.chance(style.truncated) and bool(kept.any()):
        low, high = float(height[kept].min()), float(height[kept].max())
        missing = min(draw.uniform(5.0, 35.0), 0.3 * (high - low))
        kept &= (height > low + missing) if draw.chance(0.5) else (height < high - missing)
    return kept
