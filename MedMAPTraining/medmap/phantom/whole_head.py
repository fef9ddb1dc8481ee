"""Whole heads of random contrast from label maps: what brain extraction learns from.

As SynthStrip does (Hoopes et al., NeuroImage 2022, 260:119474), every structure gets a random
intensity, so that a network learns shapes and no contrast. Half of the heads have intensities in
the order of a real sequence instead, with jitter. Tumors, enhancing dura, thick slices and limited
fields of view are drawn as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from medmap.errors import InputDataError, UsageError
from medmap.io.nifti import read_nifti
from medmap.phantom.fields import Draw
from medmap.phantom.labelmap import IDS
from medmap.resampling import reorient

OUTSIDE_IDS: dict[str, tuple[int, ...]] = {
    "vessel": (502,),
    "eye": (506,),
    "soft tissue": (507,),
    "optic nerve": (508, 530),
    "nasal mucosa": (509,),
    "skin": (511,),
    "spinal cord": (512,),
    "dura": (514,),
    "compact bone": (515,),
    "spongy bone": (516,),
}
"""Structures outside the brain -> ids of SynthSeg's label maps. They are documented nowhere; these
names come from looking at the twenty maps: two globes of 7 ml each, shells of 2 to 6 mm, and so
on."""

BRAIN_CLASSES = ("white", "gray", "fluid", "deep gray", "stem")
CLASSES = ("air", *BRAIN_CLASSES, *OUTSIDE_IDS)

_BRAIN_IDS: dict[str, tuple[str, ...]] = {
    "white": ("wm", "wmh"),
    "gray": ("gm", "cb_gm"),
    "fluid": ("csf", "ventricle", "choroid"),
    "deep gray": ("striatum", "pallidum", "thalamus"),
    "stem": ("stem",),
}

SEQUENCES: dict[str, tuple[float, ...]] = {
    "t1": (0.0, 0.9, 0.65, 0.2, 0.72, 0.85, 0.3, 0.2, 0.6, 0.7, 0.5, 1.2, 0.8, 0.5, 0.08, 0.7),
    "t1ce": (0.0, 0.85, 0.65, 0.2, 0.7, 0.82, 1.3, 0.25, 0.65, 0.7, 1.1, 1.2, 0.8, 1.1, 0.08, 0.7),
    "t2": (0.0, 0.4, 0.55, 1.2, 0.42, 0.42, 0.15, 1.2, 0.4, 0.5, 0.9, 0.7, 0.45, 0.3, 0.06, 0.45),
    "flair": (0.0, 0.6, 0.75, 0.15, 0.65, 0.62, 0.2, 0.2, 0.5, 0.6, 0.8, 0.9, 0.6, 0.4, 0.06, 0.5),
}
"""Intensity of each class, relative to the brightest tissue, in the order of ``CLASSES``."""

RENDER_FACTOR = 2
"""Heads are rendered at half of the voxel size and averaged: borders get partial volumes."""

MARGIN_MM = 6
"""Air kept around the head of a label map."""

MIN_BRAIN_VOXELS = 400_000


@dataclass(frozen=True)
class WholeHead:
    """A synthetic head.

    Attributes:
        image: [I, J, K] float32 intensities; axes run to right, anterior, superior.
        brain: [I, J, K] bool: all inside the dura, fluid included, filled.
        spacing: mm.
    """

    image: torch.Tensor
    brain: torch.Tensor
    spacing: float


def generate_head(
    seed: int, label_maps: Sequence[Path], spacing: float, contrast: str | None = None
) -> WholeHead:
    """A head of random shape and contrast; a pure function of its arguments.

    Args:
        seed: of everything that is drawn.
        label_maps: maps with FreeSurfer's ids inside the brain and SynthSeg's outside.
        spacing: edge of the voxels in mm.
        contrast: name in ``SEQUENCES``; None draws one, or random intensities.

    Raises:
        UsageError: there is no label map.
        InputDataError: a map shows no brain or nothing around it.
    """
    require_label_maps(label_maps)
    choice = int(Draw(seed, "head").uniform() * len(label_maps))
    path = label_maps[choice % len(label_maps)]
    classes, brain = read_head(path)
    # Rendered on a finer grid and averaged: voxels at borders hold parts of several tissues.
    fine_step = spacing / RENDER_FACTOR
    positions = _positions(Draw(seed, "head placement"), classes.shape, fine_step)
    rows = _sampled(classes, positions)
    inside = _sampled(brain, positions).float()
    intensities = draw_intensities(Draw(seed, "head contrast"), contrast)
    image = intensities[rows.long()]
    image = _with_lesions(Draw(seed, "head lesions"), image, inside)
    image = with_dura(Draw(seed, "head dura"), image, inside)
    image = _averaged(image)
    is_brain = _averaged(inside) > 0.5
    image = _acquired(Draw(seed, "head scanner"), image, spacing)
    box = _field_of_view(Draw(seed, "head field of view"), is_brain)
    return WholeHead(
        image=image[box].contiguous(),
        brain=is_brain[box].contiguous(),
        spacing=spacing,
    )


def _averaged(fine: torch.Tensor) -> torch.Tensor:
    """Means over blocks of ``RENDER_FACTOR`` voxels along every axis."""
    return functional.avg_pool3d(fine[None, None], RENDER_FACTOR)[0, 0]


def smooth_noise(draw: Draw, nodes: tuple[int, int, int], size: torch.Size) -> torch.Tensor:
    """White noise on a coarse grid of nodes, interpolated linearly to a volume."""
    noise = draw.white(1, 1, *nodes)
    return _interpolated(noise, size)[0, 0]


def _interpolated(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """[1, C, *nodes] -> [1, C, *size]; the outermost nodes lie on the outermost voxels."""
    return functional.interpolate(maps, list(size), mode="trilinear", align_corners=True)


def require_label_maps(label_maps: Sequence[Path]) -> None:
    """Raise UsageError if there is no label map to generate heads from."""
    if not label_maps:
        raise UsageError(
            "Whole heads are generated from label maps, and there are none.",
            "Name a folder of label maps with structures outside the brain.",
            option="anatomy",
        )


@lru_cache(maxsize=32)
def read_head(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """[I, J, K] uint8 rows of ``CLASSES``, and [I, J, K] bool brain, at 1 mm, around the head."""
    volume = read_nifti(path, modality="labels")
    array, _ = reorient(np.asarray(volume.array), volume.grid)
    ids = np.rint(array).astype(np.int32)
    rows = _class_rows(ids)
    occupied = np.argwhere(rows > 0)
    if not len(occupied):
        raise InputDataError(f"The label map {path.name} is empty.", "Choose another file.")
    # Voxels are 1 mm wide: millimeters and voxels are one.
    low = np.maximum(occupied.min(0) - MARGIN_MM, 0)
    high = occupied.max(0) + 1 + MARGIN_MM
    box = tuple(slice(first, stop) for first, stop in zip(low, high, strict=True))
    rows = np.ascontiguousarray(rows[box])
    brain = _brain(rows)
    is_outside = rows > len(BRAIN_CLASSES)
    has_brain = brain.sum() >= MIN_BRAIN_VOXELS
    has_outside = is_outside.sum() >= MIN_BRAIN_VOXELS
    if not (has_brain and has_outside):
        raise InputDataError(
            f"The label map {path.name} shows no whole head.",
            "Use maps with structures outside the brain (SynthSeg's ids from 500 on).",
        )
    return torch.from_numpy(rows), torch.from_numpy(brain)


def _class_rows(ids: np.ndarray) -> np.ndarray:
    """[I, J, K] uint8 rows of ``CLASSES`` for ids of FreeSurfer and SynthSeg; 0 is air."""
    largest_id = max(int(ids.max()), 5000)
    table = np.zeros(largest_id + 1, np.uint8)
    # Ids of small structures in no table are gray matter; ids from 500 on lie outside the brain.
    table[1:500] = CLASSES.index("gray")
    table[1000:] = CLASSES.index("gray")
    for name, tissues in _BRAIN_IDS.items():
        for tissue in tissues:
            table[list(IDS[tissue])] = CLASSES.index(name)
    for name, values in OUTSIDE_IDS.items():
        table[list(values)] = CLASSES.index(name)
    return table[np.clip(ids, 0, None)]


def _brain(rows: np.ndarray) -> np.ndarray:
    """[I, J, K] bool: tissue and fluid, closed by 2 mm and filled, without the spinal canal."""
    from scipy.ndimage import binary_closing, binary_fill_holes, label

    is_brain = (rows > 0) & (rows <= len(BRAIN_CLASSES))
    is_tissue = is_brain & (rows != CLASSES.index("fluid"))
    # Below the lowest tissue there is the spinal canal, whose fluid has the label of CSF.
    lowest = int(np.flatnonzero(is_tissue.any(axis=(0, 1)))[0])
    is_brain[:, :, :lowest] = False
    closed = binary_closing(is_brain, iterations=2)
    parts, count = label(binary_fill_holes(closed | is_brain))
    if count > 1:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        return parts == sizes.argmax()
    return parts > 0


def _positions(draw: Draw, shape: torch.Size, step: float) -> torch.Tensor:
    """[I, J, K, 3] positions in voxels of the label map, after rotation, scale and a warp."""
    size = [RENDER_FACTOR * int(length / (step * RENDER_FACTOR)) for length in shape]
    points = _centered_points(size, step)
    matrix = torch.eye(3)
    for axis in range(3):
        matrix = matrix @ _rotation(axis, draw.normal(0.0, 7.0))
    scale = torch.tensor([draw.uniform(0.9, 1.12) for _ in range(3)])
    # Mirrored half of the time: brains are nearly symmetric, and label maps are few.
    if draw.chance(0.5):
        scale[0] = -scale[0]
    middle = torch.tensor([(length - 1) / 2 for length in shape])
    moved = points @ (matrix * scale).T + middle
    strength = draw.uniform(0.0, 5.0)
    # Nodes about 25 mm apart: the warp bends the head and does not crumple it.
    coarse = strength * draw.white(3, 7, 8, 7)
    warp = _interpolated(coarse[None], size)[0]
    return moved + warp.permute(1, 2, 3, 0)


def _centered_points(size: Sequence[int], step: float) -> torch.Tensor:
    """[I, J, K, 3] positions of a grid around its center, in units of ``step``."""
    axes = []
    for count in size:
        middle = (count - 1) / 2
        offsets = torch.arange(count) - middle
        axes.append(offsets * step)
    grids = torch.meshgrid(*axes, indexing="ij")
    return torch.stack(grids, -1)


def _rotation(axis: int, degrees: float) -> torch.Tensor:
    """[3, 3] rotation about one axis."""
    angle = torch.deg2rad(torch.tensor(degrees))
    cos = torch.cos(angle)
    sin = torch.sin(angle)
    first = (axis + 1) % 3
    second = (axis + 2) % 3
    rotation = torch.eye(3)
    rotation[first, first] = cos
    rotation[second, second] = cos
    rotation[second, first] = sin
    rotation[first, second] = -sin
    return rotation


def _sampled(volume: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Nearest values at positions; 0 outside."""
    index = positions.round().long()
    limits = torch.tensor(volume.shape)
    coordinate_inside = (index >= 0) & (index < limits)
    is_inside = coordinate_inside.all(-1)
    # Indices must be valid everywhere; what they read outside is set to 0 below.
    valid = index.clamp(min=0).minimum(limits - 1)
    i, j, k = valid.unbind(-1)
    values = volume[i, j, k]
    return values * is_inside.to(values.dtype)


def draw_intensities(draw: Draw, contrast: str | None) -> torch.Tensor:
    """[len(CLASSES)] intensities: of a sequence with jitter, or at random."""
    is_sequence = contrast is not None or draw.chance(0.5)
    if not is_sequence:
        # Air stays dark; everything else may have any intensity.
        random_levels = [draw.uniform(0.0, 1.2) for _ in CLASSES[1:]]
        return torch.tensor([0.0, *random_levels])
    names = list(SEQUENCES)
    if contrast is not None:
        names = [contrast]
    choice = int(draw.uniform() * len(names))
    name = names[choice % len(names)]
    values = []
    for level in SEQUENCES[name]:
        jitter = float(np.exp(draw.normal(0.0, 0.25)))
        values.append(level * jitter)
    return torch.tensor(values)


def _with_lesions(draw: Draw, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Up to two ellipsoids in the brain, at the surface as well, some of them with a bright rim."""
    if draw.chance(0.45):
        return image
    voxels = inside.nonzero()
    axes = [torch.arange(size).float() for size in image.shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    is_brain = inside > 0
    for _ in range(1 + int(draw.chance(0.3))):
        distance = _distance_from_random_voxel(draw, grid, voxels)
        # Outlines are irregular; without the wobble a network would learn ellipsoids.
        distance = distance + 0.25 * smooth_noise(draw, (12, 14, 12), image.shape)
        level = draw.uniform(0.0, 1.3)
        is_lesion = (distance < 1) & is_brain
        image = torch.where(is_lesion, torch.tensor(level), image)
        if draw.chance(0.5):
            rim = draw.uniform(0.3, 1.6)
            is_rim = is_lesion & (distance > 0.75)
            image = torch.where(is_rim, torch.tensor(rim), image)
    return image


def _distance_from_random_voxel(
    draw: Draw, grid: torch.Tensor, voxels: torch.Tensor
) -> torch.Tensor:
    """[I, J, K] distances of [I, J, K, 3] positions in the metric of an ellipsoid: 1 on it."""
    choice = int(draw.uniform() * len(voxels))
    # The end of the interval can be drawn, and is no position.
    center = voxels[choice % len(voxels)].float()
    radii = torch.tensor([draw.uniform(6.0, 26.0) for _ in range(3)])
    offsets = (grid - center) / radii
    return offsets.square().sum(-1).sqrt()


def with_dura(draw: Draw, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """A bright shell about the brain: enhancing dura and sinuses, which are no brain."""
    if draw.chance(0.6):
        return image
    # A shell one voxel of the fine grid thick.
    grown = functional.max_pool3d(inside[None, None], 3, 1, 1)[0, 0]
    patchy = smooth_noise(draw, (9, 10, 9), image.shape)
    is_shell = (grown > 0) & (inside == 0)
    is_dura = is_shell & (patchy > draw.uniform(-1.0, 0.8))
    level = draw.uniform(0.6, 1.6)
    return torch.where(is_dura, torch.tensor(level), image)


def _acquired(draw: Draw, image: torch.Tensor, spacing: float) -> torch.Tensor:
    """Bias field, thick slices, blur, noise, and air of noise or of exact zeros."""
    bias = smooth_noise(draw, (4, 4, 4), image.shape)
    strength = draw.uniform(0.0, 0.35)
    # A bias field is drawn in the logarithm, thus positive.
    image = image * torch.exp(strength * bias)
    texture = draw.white(*image.shape)
    grain = draw.uniform(0.0, 0.12)
    image = image * (1 + grain * texture)
    image = _thick_slices(draw, image, spacing)
    if draw.chance(0.4):
        channel = image[None, None]
        image = functional.avg_pool3d(channel, 3, 1, 1, count_include_pad=False)[0, 0]
    sigma = draw.uniform(0.002, 0.06)
    image = with_rician_noise(draw, image, sigma)
    # Scanners and tools often set the air to zero.
    if draw.chance(0.4):
        image = torch.where(image < 3 * sigma, torch.zeros(()), image)
    return image


def with_rician_noise(draw: Draw, image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Magnitude of a complex image with Gaussian noise (Gudbjartsson and Patz, MRM 1995)."""
    real_noise = draw.white(*image.shape)
    real = image + sigma * real_noise
    imaginary_noise = draw.white(*image.shape)
    imaginary = sigma * imaginary_noise
    power = real.square() + imaginary.square()
    return power.sqrt()


def _thick_slices(draw: Draw, image: torch.Tensor, spacing: float) -> torch.Tensor:
    """Average along one axis over a slice thickness, and interpolate back."""
    if draw.chance(0.5):
        return image
    axis = 2
    if not draw.chance(0.7):
        axis = int(draw.uniform() * 3) % 3
    thickness_mm = draw.uniform(3.0, 7.0)
    count = max(1, round(thickness_mm / spacing))
    if count == 1:
        return image
    kernel = [1, 1, 1]
    kernel[axis] = count
    # The last slice may be thinner than the others: it averages the voxels that it has.
    thick = functional.avg_pool3d(
        image[None, None],
        kernel,
        ceil_mode=True,
        count_include_pad=False,
    )
    return functional.interpolate(thick, image.shape, mode="trilinear", align_corners=False)[0, 0]


def _field_of_view(draw: Draw, inside: torch.Tensor) -> tuple[slice, ...]:
    """A box that cuts off the neck mostly, and the brain in some heads."""
    box = []
    for axis in range(3):
        length = inside.shape[axis]
        first, last = _extent(inside, axis)
        extent = last - first + 1
        start = 0
        stop = length
        # Axis 2 runs upward: scans end somewhere in the neck.
        if axis == 2 or draw.chance(0.3):
            start = int(first * draw.uniform(0.0, 1.0))
        if draw.chance(0.25):
            start = first + int(extent * draw.uniform(0.0, 0.35))
        if draw.chance(0.15):
            stop = last + 1 - int(extent * draw.uniform(0.0, 0.35))
        box.append(slice(start, stop))
    return tuple(box)


def _extent(inside: torch.Tensor, axis: int) -> tuple[int, int]:
    """First and last position of the brain along an axis."""
    other_axes = tuple(other for other in range(3) if other != axis)
    occupied = inside.any(dim=other_axes).nonzero()
    return int(occupied[0]), int(occupied[-1])
