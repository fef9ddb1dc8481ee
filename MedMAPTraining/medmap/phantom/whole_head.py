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
    draw = Draw(seed, "head")
    path = label_maps[int(draw.uniform() * len(label_maps)) % len(label_maps)]
    classes, brain = _read(path)
    positions = _positions(Draw(seed, "head placement"), classes.shape, spacing / RENDER_FACTOR)
    rows = _sampled(classes, positions)
    inside = _sampled(brain, positions).float()
    intensities = _intensities(Draw(seed, "head contrast"), contrast)
    image = intensities[rows.long()]
    image = _with_lesions(Draw(seed, "head lesions"), image, inside)
    image = _with_dura(Draw(seed, "head dura"), image, inside)
    image = functional.avg_pool3d(image[None, None], RENDER_FACTOR)[0, 0]
    inside = functional.avg_pool3d(inside[None, None], RENDER_FACTOR)[0, 0]
    image = _acquired(Draw(seed, "head scanner"), image, spacing)
    box = _field_of_view(Draw(seed, "head field of view"), inside > 0.5)
    return WholeHead(image[box].contiguous(), (inside > 0.5)[box].contiguous(), spacing)


def require_label_maps(label_maps: Sequence[Path]) -> None:
    """Raise UsageError if there is no label map to generate heads from."""
    if not label_maps:
        raise UsageError(
            "Whole heads are generated from label maps, and there are none.",
            "Name a folder of label maps with structures outside the brain.",
            option="anatomy",
        )


@lru_cache(maxsize=32)
def _read(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """[I, J, K] uint8 rows of ``CLASSES``, and [I, J, K] bool brain, at 1 mm, around the head."""
    volume = read_nifti(path, modality="labels")
    array, _ = reorient(np.asarray(volume.array), volume.grid)
    ids = np.rint(array).astype(np.int32)
    table = np.zeros(max(int(ids.max()), 5000) + 1, np.uint8)
    # Ids of small structures in no table are gray matter; ids from 500 on lie outside the brain.
    table[1:500] = CLASSES.index("gray")
    table[1000:] = CLASSES.index("gray")
    for name, tissues in _BRAIN_IDS.items():
        for tissue in tissues:
            table[list(IDS[tissue])] = CLASSES.index(name)
    for name, values in OUTSIDE_IDS.items():
        table[list(values)] = CLASSES.index(name)
    rows = table[np.clip(ids, 0, None)]
    occupied = np.argwhere(rows > 0)
    if not len(occupied):
        raise InputDataError(f"The label map {path.name} is empty.", "Choose another file.")
    low = np.maximum(occupied.min(0) - MARGIN_MM, 0)
    high = occupied.max(0) + 1 + MARGIN_MM
    rows = np.ascontiguousarray(rows[low[0] : high[0], low[1] : high[1], low[2] : high[2]])
    brain = _brain(rows)
    is_outside = rows > len(BRAIN_CLASSES)
    if brain.sum() < MIN_BRAIN_VOXELS or is_outside.sum() < MIN_BRAIN_VOXELS:
        raise InputDataError(
            f"The label map {path.name} shows no whole head.",
            "Use maps with structures outside the brain (SynthSeg's ids from 500 on).",
        )
    return torch.from_numpy(rows), torch.from_numpy(brain)


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
    axes = []
    for count in size:
        axes.append((torch.arange(count) - (count - 1) / 2) * step)
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    matrix = torch.eye(3)
    for axis in range(3):
        matrix = matrix @ _rotation(axis, draw.normal(0.0, 7.0))
    scale = torch.tensor([draw.uniform(0.9, 1.12) for _ in range(3)])
    # Mirrored half of the time: brains are nearly symmetric, and label maps are few.
    if draw.chance(0.5):
        scale[0] = -scale[0]
    middle = torch.tensor([(length - 1) / 2 for length in shape])
    warped = points @ (matrix * scale).T + middle
    strength = draw.uniform(0.0, 5.0)
    coarse = strength * draw.white(3, 7, 8, 7)
    warp = functional.interpolate(coarse[None], size, mode="trilinear", align_corners=True)[0]
    return warped + warp.permute(1, 2, 3, 0)


def _rotation(axis: int, degrees: float) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    first = (axis + 1) % 3
    second = (axis + 2) % 3
    rotation = torch.eye(3)
    rotation[first, first] = rotation[second, second] = torch.cos(angle)
    rotation[second, first] = torch.sin(angle)
    rotation[first, second] = -torch.sin(angle)
    return rotation


def _sampled(volume: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Nearest values at positions; 0 outside."""
    index = positions.round().long()
    limits = torch.tensor(volume.shape)
    is_inside = ((index >= 0) & (index < limits)).all(-1)
    index = index.clamp(min=0).minimum(limits - 1)
    values = volume[index[..., 0], index[..., 1], index[..., 2]]
    return values * is_inside.to(values.dtype)


def _intensities(draw: Draw, contrast: str | None) -> torch.Tensor:
    """[len(CLASSES)] intensities: of a sequence with jitter, or at random."""
    names = list(SEQUENCES)
    if contrast is not None:
        names = [contrast]
    if contrast is not None or draw.chance(0.5):
        base = SEQUENCES[names[int(draw.uniform() * len(names)) % len(names)]]
        values = [level * float(np.exp(draw.normal(0.0, 0.25))) for level in base]
    else:
        values = [0.0] + [draw.uniform(0.0, 1.2) for _ in CLASSES[1:]]
    return torch.tensor(values)


def _with_lesions(draw: Draw, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Up to two ellipsoids in the brain, at the surface as well, some of them with a bright rim."""
    if draw.chance(0.45):
        return image
    voxels = inside.nonzero()
    axes = [torch.arange(size).float() for size in image.shape]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    for _ in range(1 + int(draw.chance(0.3))):
        center = voxels[int(draw.uniform() * len(voxels)) % len(voxels)].float()
        radii = torch.tensor([draw.uniform(6.0, 26.0) for _ in range(3)])
        distance = ((grid - center) / radii).square().sum(-1).sqrt()
        wobble = functional.interpolate(
            draw.white(1, 1, 12, 14, 12), image.shape, mode="trilinear", align_corners=True
        )[0, 0]
        distance = distance + 0.25 * wobble
        level = draw.uniform(0.0, 1.3)
        image = torch.where((distance < 1) & (inside > 0), torch.tensor(level), image)
        if draw.chance(0.5):
            rim = draw.uniform(0.3, 1.6)
            is_rim = (distance < 1) & (distance > 0.75) & (inside > 0)
            image = torch.where(is_rim, torch.tensor(rim), image)
    return image


def _with_dura(draw: Draw, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """A bright shell about the brain: enhancing dura and sinuses, which are no brain."""
    if draw.chance(0.6):
        return image
    grown = functional.max_pool3d(inside[None, None], 3, 1, 1)[0, 0]
    patchy = functional.interpolate(
        draw.white(1, 1, 9, 10, 9), image.shape, mode="trilinear", align_corners=True
    )[0, 0]
    is_dura = (grown > 0) & (inside == 0) & (patchy > draw.uniform(-1.0, 0.8))
    return torch.where(is_dura, torch.tensor(draw.uniform(0.6, 1.6)), image)


def _acquired(draw: Draw, image: torch.Tensor, spacing: float) -> torch.Tensor:
    """Bias field, thick slices, blur, noise, and air of noise or of exact zeros."""
    bias = functional.interpolate(
        draw.white(1, 1, 4, 4, 4), image.shape, mode="trilinear", align_corners=True
    )[0, 0]
    image = image * torch.exp(draw.uniform(0.0, 0.35) * bias)
    texture = draw.white(*image.shape)
    image = image * (1 + draw.uniform(0.0, 0.12) * texture)
    image = _thick_slices(draw, image, spacing)
    if draw.chance(0.4):
        image = functional.avg_pool3d(image[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    sigma = draw.uniform(0.002, 0.06)
    real = image + sigma * draw.white(*image.shape)
    imaginary = sigma * draw.white(*image.shape)
    # Magnitude images have Rician noise; scanners and tools often set the air to zero.
    image = (real.square() + imaginary.square()).sqrt()
    if draw.chance(0.4):
        image = torch.where(image < 3 * sigma, torch.zeros(()), image)
    return image


def _thick_slices(draw: Draw, image: torch.Tensor, spacing: float) -> torch.Tensor:
    """Average along one axis over a slice thickness, and interpolate back."""
    if draw.chance(0.5):
        return image
    axis = 2 if draw.chance(0.7) else int(draw.uniform() * 3) % 3
    count = max(1, round(draw.uniform(3.0, 7.0) / spacing))
    if count == 1:
        return image
    kernel = [1, 1, 1]
    kernel[axis] = count
    thick = functional.avg_pool3d(
        image[None, None], kernel, ceil_mode=True, count_include_pad=False
    )
    return functional.interpolate(thick, image.shape, mode="trilinear", align_corners=False)[0, 0]


def _field_of_view(draw: Draw, inside: torch.Tensor) -> tuple[slice, ...]:
    """A box that cuts off the neck mostly, and the brain in some heads."""
    box = []
    for axis in range(3):
        length = inside.shape[axis]
        occupied = inside.any(dim=tuple(other for other in range(3) if other != axis)).nonzero()
        first = int(occupied[0])
        last = int(occupied[-1])
        extent = last - first + 1
        start = 0
        stop = length
        if axis == 2 or draw.chance(0.3):
            start = int(first * draw.uniform(0.0, 1.0))
        if draw.chance(0.25):
            start = first + int(extent * draw.uniform(0.0, 0.35))
        if draw.chance(0.15):
            stop = last + 1 - int(extent * draw.uniform(0.0, 0.35))
        box.append(slice(start, stop))
    return tuple(box)
