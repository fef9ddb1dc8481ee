"""Synthetic brain-tumor cases: a seed gives images of four modalities and their labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from medmap.errors import UsageError
from medmap.phantom.anatomy import TISSUES, WORLD_GRID, Atlas, HealthyTissue, paint
from medmap.phantom.artifacts import (
    BrainSurface,
    add_acquisition_artifacts,
    darken_border,
    leave_residue,
    strip_skull,
)
from medmap.phantom.cohorts import require_cohort
from medmap.phantom.contrast import MODALITIES, Means, Mixture, mix_signals
from medmap.phantom.distractors import add_distractors
from medmap.phantom.fields import Draw, random_field, upsample
from medmap.phantom.placement import PROCEDURAL_WARP, Warp, place, template_at
from medmap.phantom.procedural import build_atlas
from medmap.phantom.style import Style
from medmap.phantom.tumor import Lesion, Tumor, grow_tumor
from medmap.phantom.tumor_kinds import draw_kind

Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]

TEXTURE_WAVELENGTHS_MM = (7.0, 12.0, 26.0)
"""Of the texture fields, finest first."""

GAIN = (150.0, 1200.0)
"""Range of the factor between signals and intensities: scanners have arbitrary units."""


@dataclass(frozen=True)
class Phantom:
    """A synthetic case.

    Array axes are RAS: i left to right, j posterior to anterior, k inferior to superior.

    Attributes:
        images: modality -> [I, J, K] float32, arbitrary units; exactly 0 outside the brain,
            positive inside.
        label: [I, J, K] uint8 class indices: 0 background, 1 NCR/NET, 2 ED, 3 ET.
        brain: [I, J, K] bool.
        affine: [4, 4] float64, voxel -> world RAS in mm; the center of the volume is the origin.
        seed: the seed of the case.
        facts: JSON-ready: ``volumes_ml`` per label (NCR, ED, ET), ``tumor_ml``, ``brain_ml``,
            ``foci`` (number of tumor foci), ``kind`` (of tumor, None without one),
            ``has_enhancement``, ``spacing_mm``, ``tissue_z`` (mean of each tissue) and
            ``artifacts`` per modality.
    """

    images: dict[str, torch.Tensor]
    label: torch.Tensor
    brain: torch.Tensor
    affine: np.ndarray
    seed: int
    facts: dict[str, Any]


def generate(
    seed: int,
    *,
    shape: Shape = (160, 192, 160),
    spacing: float = 1.0,
    device: torch.device | str = "cpu",
    tumor: bool = True,
    style: Style | None = None,
    anatomy: Sequence[Path] = (),
) -> Phantom:
    """Generate one case.

    Equal arguments give equal bits on one machine's CPU, regardless of the global random state, and
    the same case within rounding on CUDA. Shape and spacing sample the case; they do not change it.

    Args:
        seed: any integer.
        shape: voxels along i, j, k; a brain that does not fit is cut off, as in a limited field of
            view.
        spacing: in mm, isotropic.
        device: where the case is computed and where its tensors are.
        tumor: False gives the same anatomy without a tumor.
        style: how widely cases vary; the default is meant for training.
        anatomy: label maps with FreeSurfer's ids, one of which the seed selects; none gives a
            procedural anatomy.

    Raises:
        UsageError: shape or spacing is not positive, or shape does not have three axes.
    """
    if len(shape) != 3 or min(shape) < 8 or not 0.3 <= spacing <= 8.0:
        raise UsageError(
            f"A phantom of shape {tuple(shape)} at {spacing} mm cannot be generated.",
            "Choose three sizes of at least 8 voxels and a spacing between 0.3 and 8 mm.",
        )
    request = _Request(
        seed=int(seed),
        shape=(shape[0], shape[1], shape[2]),
        spacing=float(spacing),
        device=torch.device(device),
        has_tumor=tumor,
        style=style or Style(),
        affine=_centered_affine(shape, spacing),
        label_maps=tuple(anatomy),
    )
    # Half precision cannot represent positions in mm: a caller's autocast must not reach them.
    with torch.no_grad(), torch.autocast(request.device.type, enabled=False):
        return _generate(request)


def _centered_affine(shape: Sequence[int], spacing: float) -> np.ndarray:
    """[4, 4] voxel -> world: RAS axes, the origin at the center of the volume."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    last_index = np.array(shape) - 1
    affine[:3, 3] = -0.5 * spacing * last_index
    return affine


@dataclass(frozen=True)
class _Request:
    """The validated arguments of ``generate``, and the affine of the volumes."""

    seed: int
    shape: Shape
    spacing: float
    device: torch.device
    has_tumor: bool
    style: Style
    affine: np.ndarray
    label_maps: tuple[Path, ...]

    def draw(self, stream: str) -> Draw:
        """A stream of random numbers of this case."""
        return Draw(self.seed, stream)

    @property
    def kind(self) -> str:
        """Kind of the tumor."""
        return draw_kind(self.draw("tumor kind"), self.style)

    def axes(self) -> list[torch.Tensor]:
        """World positions of the voxels along i, j and k, in mm."""
        positions = []
        for axis, count in enumerate(self.shape):
            first = float(self.affine[axis, 3])
            index = torch.arange(count, device=self.device)
            positions.append(first + self.spacing * index)
        return positions


def _generate(request: _Request) -> Phantom:
    style = request.style
    atlas, warp = _draw_atlas(request)
    size = require_cohort(style.cohort).size
    warp = replace(warp, size=(size * warp.size[0], size * warp.size[1]))
    template = place(request.draw("placement"), request.device, style, warp)
    tumor = None
    if request.has_tumor:
        # The stream's name is part of the seed: spelled differently, every seed would draw
        # another tumor.
        kind = request.kind
        kind_draw = request.draw(f"tumor {kind}")
        draw = request.draw("tumour")
        template, tumor = grow_tumor(draw, kind_draw, kind, atlas, template, style)

    axes = request.axes()
    box = _brain_box(atlas, template, axes)
    axes = [axis[part] for axis, part in zip(axes, box, strict=True)]
    scene = _render(request, atlas, template, tumor, axes)
    images, records = add_acquisition_artifacts(
        request.draw("scanner"),
        scene.signals,
        axes,
        request.spacing,
        style,
    )
    darken_border(request.draw("fade"), images, scene.brain)

    label = _pad(scene.label, request.shape, box)
    brain = _pad(scene.brain, request.shape, box)
    facts = _volume_facts(label, brain, request.spacing)
    foci = 0
    if tumor is not None:
        foci = len(tumor.plan.foci)
    facts["foci"] = foci
    facts["kind"] = request.kind if request.has_tumor else None
    facts["has_enhancement"] = facts["volumes_ml"]["ET"] > 0
    facts["spacing_mm"] = request.spacing
    facts["tissue_z"] = scene.means
    facts["artifacts"] = records
    return Phantom(
        images=_scale(request, images, scene.brain, box),
        label=label,
        brain=brain,
        affine=request.affine,
        seed=request.seed,
        facts=facts,
    )


def _draw_atlas(request: _Request) -> tuple[Atlas, Warp]:
    """The anatomy of a case, and how far its placement may deform it."""
    draw = request.draw("anatomy")
    if not request.label_maps:
        return build_atlas(draw, request.device), PROCEDURAL_WARP
    # It reads files, which a procedural anatomy does not need: the panel's sample imports less.
    from medmap.phantom.label_atlas import LABEL_MAP_WARP, build_label_atlas

    return build_label_atlas(draw, request.label_maps, request.device), LABEL_MAP_WARP


def _brain_box(atlas: Atlas, template: torch.Tensor, axes: list[torch.Tensor]) -> Box:
    """The part of the voxel grid around the brain: nothing is computed for empty background."""
    is_near = atlas.hull(template.reshape(3, -1)) > -5.0
    points = is_near.reshape(WORLD_GRID.shape).nonzero()
    low = points.amin(0).tolist()
    high = points.amax(0).tolist()
    box = []
    for axis, positions in enumerate(axes):
        origin = WORLD_GRID.origin[axis]
        first_mm = origin + WORLD_GRID.step * float(low[axis])
        last_mm = origin + WORLD_GRID.step * float(high[axis])
        box.append(_voxels_between(positions, first_mm, last_mm))
    return box[0], box[1], box[2]


def _voxels_between(positions: torch.Tensor, first_mm: float, last_mm: float) -> slice:
    """Voxels of one axis in a range. Raises UsageError if there are none."""
    is_inside = (positions >= first_mm) & (positions <= last_mm)
    inside = is_inside.nonzero()
    if not len(inside):
        raise UsageError(
            "The field of view does not contain the brain.",
            "Choose more voxels or a larger spacing.",
        )
    first = int(inside[0])
    last = int(inside[-1])
    return slice(first, last + 1)


@dataclass(frozen=True)
class _Scene:
    """A case before acquisition, on the box around the brain.

    Attributes:
        signals: [4, I, J, K], mean of the brain about 1.
        label: [I, J, K] uint8.
        brain: [I, J, K] bool.
        means: z of every tissue per modality.
    """

    signals: torch.Tensor
    label: torch.Tensor
    brain: torch.Tensor
    means: Means


def _render(
    request: _Request,
    atlas: Atlas,
    template: torch.Tensor,
    tumor: Tumor | None,
    axes: list[torch.Tensor],
) -> _Scene:
    """Compose tissues, lesions and contrast at every voxel near the brain."""
    size = (len(axes[0]), len(axes[1]), len(axes[2]))
    positions = template_at(template, axes).reshape(3, -1)
    # Work on a list of points: half of the box is air.
    points = (atlas.hull(positions) > -4.0).nonzero()[:, 0]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    world = grid.reshape(3, -1)[:, points]
    textures = _textures(request.draw("texture"), axes, request.device)[:, points]

    squeeze: torch.Tensor | float = 0.0
    if tumor is not None:
        squeeze = tumor.squeeze(world)
    # Borders are blurred over a voxel, as partial volume does it, and over 0.8 mm at least.
    width = max(request.spacing, 0.8)
    healthy = atlas.tissues(positions[:, points], width, squeeze)
    mixture, label = _add_lesions(request, healthy, tumor, world, textures)
    has_uptake = tumor is None or tumor.plan.enhancing
    signals, means = mix_signals(
        request.draw("contrast"), mixture, request.style, has_uptake, request.kind
    )

    surface = BrainSurface(healthy.hull, healthy.pial, world[2])
    mask = strip_skull(request.draw("strip"), surface, textures[2], request.style)
    label = _on_grid(label * mask, points, size)
    may_be_edema = _on_grid(mask & _is_solid(mixture), points, size)
    images = _background(request, math.prod(size))
    images[:, points] = signals
    return _Scene(
        signals=images.reshape(len(MODALITIES), *size),
        label=simplify_edema(label, may_be_edema, request.spacing),
        brain=_on_grid(mask, points, size),
        means=means,
    )


def _is_solid(mixture: Mixture) -> torch.Tensor:
    """[N] bool: where edema may be drawn. Readers call fluid CSF, not edema."""
    fluid = mixture.parts[_FLUID].sum(0)
    return fluid < 0.6


def _add_lesions(
    request: _Request,
    healthy: HealthyTissue,
    tumor: Tumor | None,
    world: torch.Tensor,
    textures: torch.Tensor,
) -> tuple[Mixture, torch.Tensor]:
    """Paint distractors, tumor and residue of dura over healthy tissue, in place.

    Returns:
        the mixture of tissues, and [N] uint8 labels.
    """
    parts = healthy.parts
    hull = healthy.hull
    probability = request.style.distractors
    add_distractors(request.draw("distractors"), parts, world, hull, textures[0], probability)

    enhancing = torch.zeros_like(hull)
    label = torch.zeros_like(hull, dtype=torch.uint8)
    if tumor is not None:
        lesion = tumor.at(world, parts, textures[0])
        enhancing = lesion.enhancing
        label = _paint_lesion(parts, lesion)
    leave_residue(request.draw("residue"), parts, hull, textures[2])
    return Mixture(parts, enhancing, textures), label


_FLUID = [TISSUES.index("csf"), TISSUES.index("ventricle")]


def _textures(draw: Draw, axes: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """[len(TEXTURE_WAVELENGTHS_MM), I * J * K] unit-variance fields, finest first."""
    coarse = []
    for wavelength in TEXTURE_WAVELENGTHS_MM:
        coarse.append(random_field(draw, WORLD_GRID, wavelength, 0.4, device))
    fields = upsample(torch.stack(coarse), WORLD_GRID, axes)
    return fields.reshape(len(coarse), -1)


def _background(request: _Request, count: int) -> torch.Tensor:
    """[4, count] signals outside the brain: they mix into its border through the blur."""
    draw = request.draw("rim")
    levels = [draw.uniform(0.03, 0.5) for _ in MODALITIES]
    column = torch.tensor(levels, device=request.device)[:, None]
    background = torch.zeros(len(MODALITIES), count, device=request.device)
    return background + column


def _on_grid(values: torch.Tensor, points: torch.Tensor, size: Shape) -> torch.Tensor:
    """Values at listed points -> [I, J, K], zero elsewhere."""
    count = math.prod(size)
    flat = torch.zeros(count, dtype=values.dtype, device=values.device)
    flat[points] = values
    return flat.reshape(size)


def simplify_edema(label: torch.Tensor, allowed: torch.Tensor, spacing: float) -> torch.Tensor:
    """Edema as people delineate it: no holes, threads or specks finer than about 5 mm.

    The core stays exact. A network that learns from the physical edema would outline more detail
    than any reference segmentation has.

    Args:
        label: [I, J, K] uint8 class indices.
        allowed: [I, J, K] bool, where edema may be added: brain that is not fluid.
        spacing: in mm.

    Returns:
        [I, J, K] uint8.
    """
    reach = int(2.5 / spacing)
    if not reach or not bool(label.any()):
        return label

    width = 2 * reach + 1
    is_tumor = (label > 0)[None, None].float()
    tumor_share = functional.avg_pool3d(is_tumor, width, 1, reach)[0, 0]

    # Readers draw edema without holes ...
    is_hole = (label == 0) & allowed
    is_hole &= tumor_share > 0.55
    label = torch.where(is_hole, torch.full_like(label, 2), label)

    # ... and without threads.
    is_thread = (label == 2) & (tumor_share < 0.3)
    return torch.where(is_thread, torch.zeros_like(label), label)


def _paint_lesion(parts: torch.Tensor, lesion: Lesion) -> torch.Tensor:
    """Paint the tumor over healthy tissue, in place, and return its [N] uint8 labels."""
    paint(parts, "ed", lesion.edema)
    paint(parts, "solid", lesion.core)
    paint(parts, "necrosis", lesion.necrosis)
    paint(parts, "blood", lesion.blood)
    label = torch.zeros_like(lesion.edema, dtype=torch.uint8)
    # Readers include the faint margin of edema: the threshold is below one half.
    label[lesion.edema > 0.4] = 2
    label[lesion.core > 0.5] = 1
    label[lesion.enhancing > 0.5] = 3
    return label


def _scale(
    request: _Request, images: torch.Tensor, brain: torch.Tensor, box: Box
) -> dict[str, torch.Tensor]:
    """Full volumes with the gain of each modality; positive in the brain, 0 outside."""
    draw = request.draw("gain")
    # Uniform in the logarithm: no decade of gains is more frequent than another.
    smallest, largest = np.log(GAIN)
    volumes = {}
    for modality, image in zip(MODALITIES, images, strict=True):
        log_gain = draw.uniform(smallest, largest)
        gain = float(np.exp(log_gain))
        intensities = image * gain
        # Zero is the background; the darkest voxels of the brain stay above it.
        intensities = intensities.clamp(min=1e-3 * gain)
        volumes[modality] = _pad(intensities * brain, request.shape, box)
    return volumes


def _pad(part: torch.Tensor, shape: Shape, box: Box) -> torch.Tensor:
    """The full volume of which ``part`` is the box; zero outside."""
    volume = torch.zeros(shape, dtype=part.dtype, device=part.device)
    volume[box] = part
    return volume


def _volume_facts(label: torch.Tensor, brain: torch.Tensor, spacing: float) -> dict[str, Any]:
    """Volumes of the labels, the tumor and the brain, in ml."""
    voxel_ml = spacing**3 / 1000.0
    counts = torch.bincount(label.flatten().long(), minlength=4).tolist()
    volumes_ml = {}
    for index, name in ((1, "NCR"), (2, "ED"), (3, "ET")):
        volumes_ml[name] = counts[index] * voxel_ml
    brain_voxels = int(brain.sum())
    return {
        "volumes_ml": volumes_ml,
        "tumor_ml": sum(volumes_ml.values()),
        "brain_ml": brain_voxels * voxel_ml,
    }
