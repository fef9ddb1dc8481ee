"""One seed in, one four-modality case out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from medmap.errors import UsageError
from medmap.phantom import tumour as tumours
from medmap.phantom.anatomy import WORLD, Atlas, build_atlas, paint, place, template_at, tissues
from medmap.phantom.artefacts import degrade, leave_residue, strip
from medmap.phantom.contrast import MODALITIES, signals
from medmap.phantom.fields import Draw, random_field, sample, upsample
from medmap.phantom.style import Style


@dataclass(frozen=True)
class Phantom:
    """A synthetic case. Array axes are RAS: i left to right, j posterior to anterior, k inferior to superior.

    Attributes:
        images: modality name -> [I, J, K] float32, arbitrary units; exactly 0 outside the brain, positive inside.
        label: [I, J, K] uint8 class indices: 0 background, 1 NCR/NET, 2 ED, 3 ET.
        brain: [I, J, K] bool.
        affine: [4, 4] float64, voxel -> world RAS in mm; the volume's centre is the origin.
        seed: what made it.
        facts: JSON-ready: ``volumes_ml`` per label (NCR, ED, ET), ``tumour_ml``, ``brain_ml``, ``foci`` (number drawn),
            ``has_enhancement``, ``spacing_mm``, ``tissue_z`` (drawn contrast) and ``artefacts`` per modality.
    """

    images: dict[str, torch.Tensor]
    label: torch.Tensor
    brain: torch.Tensor
    affine: np.ndarray
    seed: int
    facts: dict


def generate(
    seed: int,
    *,
    shape: tuple[int, int, int] = (160, 192, 160),
    spacing: float = 1.0,
    device: torch.device | str = "cpu",
    tumour: bool = True,
    style: Style | None = None,
) -> Phantom:
    """Make one case.

    The seed decides everything: equal arguments give equal bits on one machine's CPU, whatever the global random state,
    and the same case within rounding on CUDA. Shape and spacing only sample the head; they do not change it.

    Args:
        seed: any integer.
        shape: voxels along i, j, k; a head that does not fit is cut off, as in a short field of view.
        spacing: mm, isotropic.
        device: where to compute and where the tensors lie.
        tumour: False gives the same head without a tumour.
        style: how widely cases vary; the default is meant for training.

    Raises:
        UsageError: shape or spacing is not positive or does not have three axes.
    """
    if len(shape) != 3 or min(shape) < 8 or not 0.3 <= spacing <= 8.0:
        raise UsageError(
            f"A phantom of shape {tuple(shape)} at {spacing} mm cannot be made.",
            "Give three sizes of at least 8 voxels and a spacing between 0.3 and 8 mm.",
        )
    style, device = style or Style(), torch.device(device)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -0.5 * spacing * (np.array(shape) - 1)
    # Positions in mm do not survive half precision, so a caller's autocast must not reach the interpolation.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return _generate(int(seed), tuple(shape), float(spacing), device, tumour, style, affine)


def _generate(seed, shape, spacing, device, tumour, style, affine) -> Phantom:
    atlas = build_atlas(Draw(seed, "anatomy"), device)
    template = place(Draw(seed, "placement"), device, style.angle_deg, style.head_shift_mm)
    plan = growth = None
    if tumour:
        draw = Draw(seed, "tumour")
        plan = tumours.draw_plan(draw, atlas, style.low_grade, style.multifocal, style.small)
        template, centres = tumours.push_aside(plan, atlas, template)
        growth = tumours.grow(draw, plan, atlas, template, centres)
    axes = [float(affine[a, 3]) + spacing * torch.arange(shape[a], device=device) for a in range(3)]
    box = _head_box(atlas, template, axes)
    axes = [axis[s] for axis, s in zip(axes, box, strict=True)]
    clean, label, brain, means = _render(seed, atlas, template, plan, growth, axes, spacing, style)
    images, record = degrade(Draw(seed, "scanner"), clean, axes, spacing, style)
    gains = Draw(seed, "gain")
    full = {}
    for row, name in enumerate(MODALITIES):
        gain = float(np.exp(gains.uniform(np.log(150.0), np.log(1200.0))))
        inside = (images[row] * gain).clamp(min=1e-3 * gain) * brain
        full[name] = _pad(inside, shape, box)
    label, brain = _pad(label, shape, box), _pad(brain, shape, box)
    facts = _facts(label, brain, spacing, plan, means, record)
    return Phantom(full, label, brain, affine, seed, facts)


def _head_box(atlas: Atlas, template: torch.Tensor, axes: list[torch.Tensor]) -> tuple[slice, slice, slice]:
    """The part of the grid that holds the head, so that nothing is computed on air."""
    head = (atlas.hull(template.reshape(3, -1)) > -5.0).reshape(WORLD.shape).nonzero()
    low, high = head.amin(0), head.amax(0)
    box = []
    for a, axis in enumerate(axes):
        first, last = (WORLD.origin[a] + WORLD.step * float(v[a]) for v in (low, high))
        inside = ((axis >= first) & (axis <= last)).nonzero()
        if not len(inside):
            raise UsageError("The field of view holds no head.", "Give more voxels or a larger spacing.")
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def _render(seed, atlas, template, plan, growth, axes, spacing, style):
    """Signals [4, I, J, K] without artefacts, label, brain and tissue means on the head's grid."""
    device = template.device
    size = tuple(len(axis) for axis in axes)
    grid = template_at(template, axes).reshape(3, -1)
    keep = (atlas.hull(grid) > -4.0).nonzero()[:, 0]
    world = torch.stack(torch.meshgrid(*axes, indexing="ij")).reshape(3, -1)[:, keep]
    draw = Draw(seed, "texture")
    coarse = torch.stack([random_field(draw, WORLD, w, 0.4, device) for w in (7.0, 12.0, 26.0)])
    textures = upsample(coarse, WORLD, axes).reshape(len(coarse), -1)[:, keep]
    squeeze = 0.0
    if plan is not None:
        core = sample(growth.maps[:1], WORLD, world)[0]
        squeeze = torch.exp(core.clamp(max=0.0) / 14.0)
    healthy = tissues(atlas, grid[:, keep], max(spacing, 0.8), squeeze)
    parts, hull = healthy["parts"], healthy["hull"]
    enhancing, label = torch.zeros_like(hull), torch.zeros_like(hull, dtype=torch.uint8)
    if plan is not None:
        lesion = tumours.at_points(plan, growth, world, parts, textures[0])
        enhancing = lesion["enhancing"]
        label = _compose(parts, lesion)
    leave_residue(Draw(seed, "residue"), parts, hull, textures[2])
    clean, means = signals(Draw(seed, "contrast"), parts, enhancing, textures, style.jitter)
    kept = strip(Draw(seed, "strip"), hull, healthy["pial"], textures[2], world[2], style)
    outside = clean.new_zeros(4, int(np.prod(size)))
    rim = Draw(seed, "rim")
    outside += torch.tensor([[rim.uniform(0.05, 0.6)] for _ in range(4)], device=device)
    outside[:, keep] = clean
    brain = torch.zeros(outside.shape[1], dtype=torch.bool, device=device)
    brain[keep] = kept
    labels = torch.zeros(outside.shape[1], dtype=torch.uint8, device=device)
    labels[keep] = label * kept
    return outside.reshape(4, *size), labels.reshape(size), brain.reshape(size), means


def _compose(parts: torch.Tensor, lesion: dict[str, torch.Tensor]) -> torch.Tensor:
    """Lay the tumour over healthy tissue, in place, and read off the label."""
    paint(parts, "ed", lesion["ed"])
    paint(parts, "solid", lesion["core"])
    paint(parts, "necrosis", lesion["necrosis"])
    paint(parts, "blood", lesion["blood"])
    label = torch.zeros_like(lesion["ed"], dtype=torch.uint8)
    label[lesion["ed"] > 0.4] = 2
    label[lesion["core"] > 0.5] = 1
    label[lesion["enhancing"] > 0.5] = 3
    return label


def _pad(part: torch.Tensor, shape: tuple[int, int, int], box: tuple[slice, slice, slice]) -> torch.Tensor:
    whole = torch.zeros(shape, dtype=part.dtype, device=part.device)
    whole[box] = part
    return whole


def _facts(label, brain, spacing, plan, means, record) -> dict:
    ml = spacing**3 / 1000.0
    counts = torch.bincount(label.flatten().long(), minlength=4).tolist()
    volumes = {name: counts[n] * ml for n, name in ((1, "NCR"), (2, "ED"), (3, "ET"))}
    return {
        "volumes_ml": volumes,
        "tumour_ml": sum(volumes.values()),
        "brain_ml": int(brain.sum()) * ml,
        "foci": 0 if plan is None else len(plan.foci),
        "has_enhancement": counts[3] > 0,
        "spacing_mm": spacing,
        "tissue_z": means,
        "artefacts": dict(zip(MODALITIES, record, strict=True)),
    }
