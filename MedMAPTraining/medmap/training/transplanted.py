"""Cases that carry the tumor of another case: more patients than there are.

Copying lesions between cases follows Yang et al., TumorCP, MICCAI 2021, and Zhang et al., CarveMix,
NeuroImage 2023. Here the tumor arrives with the contrast of its new brain and fades into it, so
that its border is no sign of a tumor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate, max_pool3d

from medmap.training.cache import PreparedArrays
from medmap.training.dataset import Augmentation, PatchSampler, sparse_voxels
from medmap.training.missingness import Missingness

FADING_VOXELS = (1, 3)
"""Half the width of the rim in which donor and host are mixed, least and largest."""

SCALE = (0.6, 1.1)
"""Size of the transplanted tumor, relative to the donor's: mostly smaller, since small tumors are
what networks miss."""

JITTER_VOXELS = 8
"""Largest shift along each axis from the corresponding place in the host's brain."""

TRIALS = 8
"""Places that are tried for a tumor before the host is used as it is."""

LEAST_INSIDE = 0.9
"""Share of the tumor that must lie within the host's brain."""

CONTRAST_RATIO = (0.67, 1.5)
"""Limits of the change of contrast, against brains of which hardly anything is healthy."""


@dataclass(frozen=True)
class Contrast:
    """Intensities of the healthy brain of one scan: median and half the range of 68 %."""

    median: float
    spread: float


@dataclass(frozen=True)
class Graft:
    """A tumor with its surroundings, ready to be placed.

    Attributes:
        image: by modality, [d, h, w] in z-scores of the donor; None where the donor lacks it.
        label: [d, h, w] class indices.
        weight: [d, h, w] from 0 (host) to 1 (donor); 1 wherever ``label`` is a tumor.
        center: [3] of the tumor's box in the donor's brain, from 0 to 1 along each axis.
    """

    image: tuple[np.ndarray | None, ...]
    label: np.ndarray
    weight: np.ndarray
    center: np.ndarray


class TransplantedSampler(PatchSampler):
    """Random patches of cases into which the tumor of another case was transplanted.

    Modalities are those that host and donor have. A sample is a pure function of seed, step and its
    number, as with ``PatchSampler``.

    Args:
        hosts: prepared cases that receive a tumor, with a tumor of their own or without one.
        donors: prepared cases with a tumor.
        missingness: which modalities a sample shows.
        seed: of everything drawn.
        augmentation: how strongly patches are augmented.
    """

    def __init__(
        self,
        hosts: Sequence[Path],
        donors: Sequence[Path],
        missingness: Missingness,
        seed: int,
        augmentation: Augmentation,
    ):
        super().__init__(hosts, missingness, seed, augmentation)
        self.donors = list(donors)
        self._contrasts: dict[Path, tuple[Contrast | None, ...]] = {}

    def _drawn_case(self, rng: np.random.Generator) -> tuple[Path, PreparedArrays, np.ndarray]:
        folder, host, tumor_voxels = super()._drawn_case(rng)
        other_donors = [donor for donor in self.donors if donor != folder]
        if not other_donors:
            return folder, host, tumor_voxels
        donor_folder = other_donors[rng.integers(len(other_donors))]
        donor = self._case(donor_folder)
        # A tumor can be shown only in modalities that both examinations have.
        common = host.available & donor.available
        if not common.any():
            return folder, host, tumor_voxels
        graft = cut_graft(donor, rng)
        donor_contrast = self._contrast(donor_folder)
        host_contrast = self._contrast(folder)
        graft = _in_contrast(graft, donor_contrast, host_contrast)
        case = transplanted(host, graft, rng)
        if case is None:
            return folder, host, tumor_voxels
        return folder, case, sparse_voxels(case.label)

    def _contrast(self, folder: Path) -> tuple[Contrast | None, ...]:
        if folder not in self._contrasts:
            self._contrasts[folder] = contrasts(self._case(folder))
        return self._contrasts[folder]


def contrasts(case: PreparedArrays) -> tuple[Contrast | None, ...]:
    """The healthy brain's intensities in each modality; None where the case lacks it."""
    is_healthy = (np.asarray(case.brain) > 0) & (np.asarray(case.label) == 0)
    result: list[Contrast | None] = []
    for scan in case.image:
        if scan is None or not is_healthy.any():
            result.append(None)
            continue
        healthy_values = np.asarray(scan)[is_healthy].astype(np.float32)
        low, median, high = np.percentile(healthy_values, (16, 50, 84))
        # Half the way from the 16th to the 84th percentile: one normal standard deviation.
        spread = max(float(high - low) / 2, 1e-3)
        result.append(Contrast(float(median), spread))
    return tuple(result)


def cut_graft(donor: PreparedArrays, rng: np.random.Generator) -> Graft:
    """The donor's tumor, scaled, perhaps mirrored, with a rim that fades.

    Args:
        donor: with a tumor.
        rng: of the sample.

    Returns:
        The graft, still with the donor's contrast.
    """
    fading = int(rng.integers(FADING_VOXELS[0], FADING_VOXELS[1] + 1))
    scale = float(rng.uniform(*SCALE))
    is_mirrored = bool(rng.random() < 0.5)
    label = np.asarray(donor.label)
    brain = np.asarray(donor.brain) > 0
    # The box is scaled afterwards: a rim of 2 fading voxels must remain around the tumor.
    margin = int(np.ceil(2 * fading / scale)) + 1
    box = bounding_box(label > 0, margin)
    size = [max(1, round((part.stop - part.start) * scale)) for part in box]
    classes = _resized(label[box], size, "nearest")
    inside = _resized(brain[box], size, "nearest") > 0
    images: list[np.ndarray | None] = []
    for scan in donor.image:
        if scan is None:
            images.append(None)
            continue
        images.append(_resized(np.asarray(scan[box]), size, "trilinear"))
    tumor = torch.from_numpy(classes > 0)
    weight = fading_weight(tumor, fading).numpy() * inside
    brain_box = bounding_box(brain, 0)
    center = _relative_center(box, brain_box)
    if is_mirrored:
        # The first axis runs from left to right.
        classes = classes[::-1].copy()
        weight = weight[::-1].copy()
        images = [image if image is None else image[::-1].copy() for image in images]
        center[0] = 1 - center[0]
    return Graft(tuple(images), classes.astype(np.uint8), weight, center)


def transplanted(
    host: PreparedArrays, graft: Graft, rng: np.random.Generator
) -> PreparedArrays | None:
    """The host with the graft near the corresponding place of its brain.

    Args:
        host: receives the tumor; its own stays, apart from what the graft covers.
        graft: with the host's contrast.
        rng: of the sample.

    Returns:
        Arrays in memory, without modalities that the graft lacks; None if the tumor did not fit
        into the brain anywhere that was tried.
    """
    brain = np.asarray(host.brain) > 0
    brain_box = bounding_box(brain, 0)
    low = np.array([part.start for part in brain_box])
    high = np.array([part.stop for part in brain_box])
    size = np.array(graft.label.shape)
    tumor = graft.label > 0
    least_inside = LEAST_INSIDE * np.count_nonzero(tumor)
    center = low + graft.center * (high - low)
    unshifted_corner = np.round(center - size / 2).astype(int)
    for _ in range(TRIALS):
        jitter = rng.integers(-JITTER_VOXELS, JITTER_VOXELS + 1, 3)
        corner = unshifted_corner + jitter
        target, source = _overlap(corner, size, brain.shape)
        inside = np.count_nonzero(tumor[source] & brain[target])
        if inside and inside >= least_inside:
            return _merged(host, graft, target, source, brain)
    return None


def _merged(
    host: PreparedArrays,
    graft: Graft,
    target: tuple[slice, ...],
    source: tuple[slice, ...],
    brain: np.ndarray,
) -> PreparedArrays:
    """The host's arrays with the part ``source`` of the graft in their part ``target``."""
    weight = graft.weight[source] * brain[target]
    images: list[np.ndarray | None] = []
    for host_scan, graft_scan in zip(host.image, graft.image, strict=True):
        if host_scan is None or graft_scan is None:
            images.append(None)
        else:
            images.append(_mixed(host_scan, graft_scan[source], target, weight))
    label = np.array(host.label)
    # Where the images are mixed, the larger share names the class.
    is_donor = weight >= 0.5
    donor_label = graft.label[source]
    label[target] = np.where(is_donor, donor_label, label[target])
    return PreparedArrays(
        case_id=host.case_id,
        image=tuple(images),
        available=np.array([scan is not None for scan in images]),
        label=label,
        brain=np.asarray(host.brain),
    )


def _mixed(
    host_scan: np.ndarray, graft_part: np.ndarray, target: tuple[slice, ...], weight: np.ndarray
) -> np.ndarray:
    """A copy of a scan with a part of a graft in it."""
    scan = np.array(host_scan)
    host_part = scan[target].astype(np.float32)
    scan[target] = weight * graft_part + (1 - weight) * host_part
    return scan


def _in_contrast(
    graft: Graft, donor: Sequence[Contrast | None], host: Sequence[Contrast | None]
) -> Graft:
    """The graft as if the host's examination had shown it: healthy tissue looks alike in both."""
    images: list[np.ndarray | None] = []
    for image, of_donor, of_host in zip(graft.image, donor, host, strict=True):
        if image is None or of_donor is None or of_host is None:
            images.append(None)
            continue
        spread_ratio = of_host.spread / of_donor.spread
        ratio = float(np.clip(spread_ratio, *CONTRAST_RATIO))
        centered = image - of_donor.median
        images.append(centered * ratio + of_host.median)
    return Graft(tuple(images), graft.label, graft.weight, graft.center)


def fading_weight(tumor: Tensor, fading: int) -> Tensor:
    """How much of a tumor's image counts.

    Args:
        tumor: [d, h, w] bool.
        fading: half the width of the rim in voxels.

    Returns:
        [d, h, w] float32: 1 in the tumor, falling to 0 within ``2 * fading`` voxels around it.
    """
    width = 2 * fading + 1
    mask = tumor.float()[None, None]
    # The mean over a window is 1 wherever the whole window lies in the widened tumor.
    widened = max_pool3d(mask, width, stride=1, padding=fading)
    return avg_pool3d(widened, width, stride=1, padding=fading)[0, 0]


def _resized(array: np.ndarray, size: Sequence[int], mode: str) -> np.ndarray:
    """[*size] float32 of an array [d, h, w]."""
    floats = np.ascontiguousarray(array).astype(np.float32)
    volume = torch.from_numpy(floats)[None, None]
    align_corners: bool | None = False
    if mode == "nearest":
        # torch accepts no statement about corners with this mode.
        align_corners = None
    resized = interpolate(volume, tuple(size), mode=mode, align_corners=align_corners)
    return resized[0, 0].numpy()


def bounding_box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The box around a mask, ``margin`` voxels wider, within the array."""
    box = []
    for axis, size in enumerate(mask.shape):
        other_axes = tuple(number for number in range(mask.ndim) if number != axis)
        indices = np.flatnonzero(mask.any(axis=other_axes))
        if not indices.size:
            return tuple(slice(0, side) for side in mask.shape)
        start = max(int(indices[0]) - margin, 0)
        stop = min(int(indices[-1]) + 1 + margin, size)
        box.append(slice(start, stop))
    return tuple(box)


def _relative_center(box: Sequence[slice], brain_box: Sequence[slice]) -> np.ndarray:
    """[3] center of a box within the brain's box, from 0 to 1."""
    center = []
    for part, brain_part in zip(box, brain_box, strict=True):
        middle = (part.start + part.stop) / 2
        brain_length = brain_part.stop - brain_part.start
        center.append((middle - brain_part.start) / brain_length)
    return np.array(center)


def _overlap(
    corner: np.ndarray, size: np.ndarray, shape: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of an array that a box covers, and the part of the box that lies in the array."""
    target = []
    source = []
    for start, width, side in zip(corner.tolist(), size.tolist(), shape, strict=True):
        low = min(max(start, 0), side)
        high = max(min(start + width, side), low)
        target.append(slice(low, high))
        source.append(slice(low - start, high - start))
    return tuple(target), tuple(source)
