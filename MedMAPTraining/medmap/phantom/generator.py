"""One seed in, one four-modality case out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from medmap.errors import UsageError
from medmap.phantom import tumor as tumors
from medmap.phantom.anatomy import TISSUES, WORLD, Atlas, build_atlas, paint, place, template_at
from medmap.phantom.artifacts import degrade, fade_rim, leave_residue, strip
from medmap.phantom.contrast import MODALITIES, signals
from medmap.phantom.distractors import add_distractors
from medmap.phantom.fields import Draw, random_field, sample, upsample
from medmap.phantom.style import Style


@dataclass(frozen=True)
class Phantom:
    """A synthetic case. Array axes are RAS: i left to right, j posterior to anterior, k inferior to superior.

    Attributes:
        images: modality name -> [I, J, K] float32, arbitrary units; exactly 0 outside the brain, positive inside.
        label: [I, J, K] uint8 class indices: 0 background, 1 NCR/NET, 2 ED, 3 ET.
        brain: [I, J, K] bool.
        affine: [4, 4] float64, voxel -> world RAS in mm; the volume's center is the origin.
        seed: what made it.
        facts: JSON-ready: ``volumes_ml`` per label (NCR, ED, ET), ``tumor_ml``, ``brain_ml``, ``foci`` (number drawn),
            ``has_enhancement``, ``spacing_mm``, ``tissue_z`` (drawn contrast) and ``artifacts`` per modality.
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
    tumor: bool = True,
    style: Style | None = None,
    anatomy: Sequence[Path] = (),
) -> Phantom:
    """Make one case.

    The seed decides everything: equal arguments give equal bits on one machine's CPU, whatever the global random state,
    and the same case within rounding on CUDA. Shape and spacing only sample the head; they do not change it.

    Args:
        seed: any integer.
        shape: voxels along i, j, k; a head that does not fit is cut off, as in a short field of view.
        spacing: mm, isotropic.
        device: where to compute and where the tensors lie.
        tumor: False gives the same head without a tumor.
        style: how widely cases vary; the default is meant for training.
        anatomy: label maps with FreeSurfer's ids, of which the seed chooses one; none gives the procedural head.

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
        return _generate(
            int(seed), tuple(shape), float(spacing), device, tumor, style, affine, tuple(anatomy)
        )


def _generate(seed, shape, spacing, device, tumor, style, affine, anatomy) -> Phantom:
    atlas, warp, size = _head(Draw(seed, "anatomy"), device, anatomy)
    template = place(
        Draw(seed, "placement"), device, style.angle_deg, style.head_shift_mm, warp, size
    )
    plan = growth = None
    if tumor:
        # The stream's name goes into the seed: spelled otherwise, every seed would draw another tumor.
        draw = Draw(seed, "tumour")
        plan = tumors.draw_plan(draw, atlas, style.low_grade, style.multifocal, style.small)
        template, centers = tumors.push_aside(plan, atlas, template)
        growth = tumors.grow(draw, plan, atlas, template, centers)
    axes = [float(affine[a, 3]) + spacing * torch.arange(shape[a], device=device) for a in range(3)]
    box = _head_box(atlas, template, axes)
    axes = [axis[s] for axis, s in zip(axes, box, strict=True)]
    clean, label, brain, means = _render(seed, atlas, template, plan, growth, axes, spacing, style)
    images, record = degrade(Draw(seed, "scanner"), clean, axes, spacing, style)
    fade_rim(Draw(seed, "fade"), images, brain)
    gains = Draw(seed, "gain")
    full = {}
    for row, name in enumerate(MODALITIES):
        gain = float(np.exp(gains.uniform(np.log(150.0), np.log(1200.0))))
        inside = (images[row] * gain).clamp(min=1e-3 * gain) * brain
        full[name] = _pad(inside, shape, box)
    label, brain = _pad(label, shape, box), _pad(brain, shape, box)
    facts = _facts(label, brain, spacing, plan, means, record)
    return Phantom(full, label, brain, affine, seed, facts)


def _head(draw: Draw, device: torch.device, anatomy: tuple[Path, ...]):
    """The head, and how far (mm) and to which range of sizes it may be warped."""
    if not anatomy:
        return build_atlas(draw, device), 2.6, (0.89, 0.985)
    from medmap.phantom.labelmap import (
        build_label_atlas,  # reads files: not needed for a procedural head
    )

    return build_label_atlas(draw, anatomy, device), 4.5, (0.92, 1.08)


def _head_box(
    atlas: Atlas, template: torch.Tensor, axes: list[torch.Tensor]
) -> tuple[slice, slice, slice]:
    """The part of the grid that holds the head, so that nothing is computed on air."""
    head = (atlas.hull(template.reshape(3, -1)) > -5.0).reshape(WORLD.shape).nonzero()
    low, high = head.amin(0), head.amax(0)
    box = []
    for a, axis in enumerate(axes):
        first, last = (WORLD.origin[a] + WORLD.step * float(v[a]) for v in (low, high))
        inside = ((axis >= first) & (axis <= last)).nonzero()
        if not len(inside):
            raise UsageError(
                "The field of view holds no head.", "Give more voxels or a larger spacing."
            )
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def _render(seed, atlas, template, plan, growth, axes, spacing, style):
    """Signals [4, I, J, K] without artifacts, label, brain and tissue means on the head's grid."""
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
    healthy = atlas.tissues(grid[:, keep], max(spacing, 0.8), squeeze)
    parts, hull = healthy["parts"], healthy["hull"]
    add_distractors(Draw(seed, "distractors"), parts, world, hull, textures[0], style.distractors)
    enhancing, label = torch.zeros_like(hull), torch.zeros_like(hull, dtype=torch.uint8)
    if plan is not None:
        lesion = tumors.at_points(plan, growth, world, parts, textures[0])
        enhancing = lesion["enhancing"]
        label = _compose(parts, lesion)
    leave_residue(Draw(seed, "residue"), parts, hull, textures[2])
    takes_up = plan is None or plan.enhancing
    clean, means = signals(Draw(seed, "contrast"), parts, enhancing, textures, style, takes_up)
    kept = strip(Draw(seed, "strip"), hull, healthy["pial"], textures[2], world[2], style)
    outside = clean.new_zeros(4, int(np.prod(size)))
    rim = Draw(seed, "rim")
    outside += torch.tensor([[rim.uniform(0.03, 0.5)] for _ in range(4)], device=device)
    outside[:, keep] = clean
    brain = torch.zeros(outside.shape[1], dtype=torch.bool, device=device)
    brain[keep] = kept
    labels = torch.zeros(outside.shape[1], dtype=torch.uint8, device=device)
    labels[keep] = label * kept
    wet = torch.zeros_like(brain)
    wet[keep] = kept & (parts[_FLUID].sum(0) < 0.6)
    labels = drawn_by_hand(labels.reshape(size), wet.reshape(size), spacing)
    return outside.reshape(4, *size), labels, brain.reshape(size), means


_FLUID = [TISSUES.index("csf"), TISSUES.index("ventricle")]


def drawn_by_hand(label: torch.Tensor, allowed: torch.Tensor, spacing: float) -> torch.Tensor:
    """Labels as people draw them: edema without pinholes, threads and specks finer than about 5 mm.

    Args:
        label: [I, J, K] uint8 class indices.
        allowed: [I, J, K] bool, where edema may be added: brain that is not fluid.
        spacing: mm.
    """
    reach = int(2.5 / spacing)
    if not reach or not bool(label.any()):
        return label
    width = 2 * reach + 1
    share = functional.avg_pool3d((label > 0)[None, None].float(), width, 1, reach)[0, 0]
    label = torch.where((label == 0) & allowed & (share > 0.55), torch.full_like(label, 2), label)
    return torch.where((label == 2) & (share < 0.3), torch.zeros_like(label), label)


def _compose(parts: torch.Tensor, lesion: dict[str, torch.Tensor]) -> torch.Tensor:
    """Lay the tumor over healthy tissue, in place, and read off the label."""
    paint(parts, "ed", lesion["ed"])
    paint(parts, "solid", lesion["core"])
    paint(parts, "necrosis", lesion["necrosis"])
    paint(parts, "blood", lesion["blood"])
    label = torch.zeros_like(lesion["ed"], dtype=torch.uint8)
    label[lesion["ed"] > 0.4] = 2
    label[lesion["core"] > 0.5] = 1
    label[lesion["enhancing"] > 0.5] = 3
    return label


def _pad(
    part: torch.Tensor, shape: tuple[int, int, int], box: tuple[slice, slice, slice]
) -> torch.Tensor:
    whole = torch.zeros(shape, dtype=part.dtype, device=part.device)
    whole[box] = part
    return whole


def _facts(label, brain, spacing, plan, means, record) -> dict:
    ml = spacing**3 / 1000.0
    counts = torch.bincount(label.flatten().long(), minlength=4).tolist()
    volumes = {name: counts[n] * ml for n, name in ((1, "NCR"), (2, "ED"), (3, "ET"))}
    return {
        "volumes_ml": volumes,
        "tumor_ml": sum(volumes.values()),
        "brain_ml": int(brain.sum()) * ml,
        "foci": 0 if plan is None else len(plan.foci),
        "has_enhancement": counts[3] > 0,
        "spacing_mm": spacing,
        "tissue_z": means,
        "artifacts": dict(zip(MODALITIES, record, strict=True)),
    }
