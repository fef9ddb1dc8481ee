"""Patches of prepared cases. Sampling is stateless: seed, step and sample number determine it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medmap.errors import InputDataError
from medmap.training.augmentation import StandardAugmentation, acquired, deformed
from medmap.training.batch import AugmentationParams, Batch
from medmap.training.cache import PreparedArrays, open_case
from medmap.training.missingness import Missingness

MOST_TUMOR_VOXELS = 4096
"""Tumor voxels that patches may be centered on: enough to cover it, few enough for memory."""


@dataclass(frozen=True)
class Augmentation:
    """How strongly a training patch is augmented, drawn per patch (per modality for intensities).

    Attributes:
        flip: probability of mirroring left and right.
        rotate: largest rotation of a slice in degrees; patches of three dimensions are not rotated.
        gain: largest relative change of the contrast.
        shift: largest change of the brightness, in z-scores.
        noise: largest standard deviation of added noise, in z-scores.
        foreground: share of patches centered on a labeled voxel.
        standard: further transforms (``StandardAugmentation``); None applies none of them.
    """

    flip: float = 0.5
    gain: float = 0.25
    shift: float = 0.25
    noise: float = 0.15
    foreground: float = 0.6
    rotate: float = 0.0
    standard: StandardAugmentation | None = None

    @staticmethod
    def from_dict(standard: dict | None = None, **numbers: Any) -> Augmentation:
        """From the plain data of a recipe. Raises TypeError for an unknown key."""
        if standard is None:
            return Augmentation(**numbers)
        values: dict[str, Any] = {}
        for key, value in standard.items():
            # JSON has no tuples.
            if isinstance(value, list):
                value = tuple(value)
            values[key] = value
        return Augmentation(**numbers, standard=StandardAugmentation(**values))


@dataclass(frozen=True)
class _Draw:
    """Random numbers of one sample's contrast, noise and side; arrays are [M]."""

    gain: np.ndarray
    shift: np.ndarray
    noise: np.ndarray
    flip: bool
    seed: int


@dataclass(frozen=True)
class _Patch:
    """One sample: [M, *S] float32, [M] bool, [*S] classes and [*S] bool."""

    image: np.ndarray
    present: np.ndarray
    label: np.ndarray
    brain: np.ndarray
    case_id: str
    draw: _Draw


class PatchSampler:
    """Random patches of prepared cases, or of their slices where a patch has two sides.

    A sample is a pure function of seed, step and its number.

    Args:
        folders: prepared cases (``medmap.training.cache.cache_case``).
        missingness: which modalities a sample shows.
        seed: of everything drawn.
        augmentation: how strongly patches are augmented.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        missingness: Missingness,
        seed: int,
        augmentation: Augmentation,
    ):
        self.folders = list(folders)
        self.missingness = missingness
        self.seed = seed
        self.augmentation = augmentation
        self.case_ids = tuple(folder.name for folder in self.folders)
        self._cases: dict[Path, PreparedArrays] = {}
        self._tumor_voxels: dict[Path, np.ndarray] = {}

    def available(self, case_id: str) -> np.ndarray:
        """[M] bool: the modalities that the case has on disk."""
        folder = self.folders[self.case_ids.index(case_id)]
        return self._case(folder).available

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """The augmented patches ``first`` to ``first + size - 1`` of one optimization step."""
        return self.plain_batch(step, size, patch, first).augmented()

    def plain_batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """The same patches with their contrast, noise and side drawn, but not yet applied."""
        samples = []
        for number in range(first, first + size):
            rng = np.random.default_rng([self.seed, step, number])
            samples.append(self._sample(rng, step, patch))
        image = np.stack([sample.image for sample in samples])
        present = np.stack([sample.present for sample in samples])
        label = np.stack([sample.label for sample in samples])
        brain = np.stack([sample.brain for sample in samples])
        # Modalities that no sample shows need not be encoded.
        shown_modalities = np.flatnonzero(present.any(axis=0))
        draws = [sample.draw for sample in samples]
        augmentation = AugmentationParams(
            gain=np.stack([draw.gain for draw in draws]),
            shift=np.stack([draw.shift for draw in draws]),
            noise=np.stack([draw.noise for draw in draws]),
            flip=tuple(draw.flip for draw in draws),
            seed=tuple(draw.seed for draw in draws),
        )
        return Batch(
            image=torch.from_numpy(image),
            present=torch.from_numpy(present),
            label=torch.from_numpy(label.astype(np.int64)),
            brain=torch.from_numpy(brain),
            case_id=tuple(sample.case_id for sample in samples),
            modalities=tuple(shown_modalities.tolist()),
            augmentation=augmentation,
        )

    def _sample(self, rng: np.random.Generator, step: int, patch: Sequence[int]) -> _Patch:
        folder, case, tumor_voxels = self._drawn_case(rng)
        present = self._present(folder, step, case.available, rng)
        # A slice is a box of one voxel's thickness in the case.
        flat_axes = case.label.ndim - len(patch)
        box = (*(1,) * flat_axes, *patch)
        corner = self._corner(tumor_voxels, case.label.shape, rng, box)
        standard = self.augmentation.standard
        if standard is not None:
            return self._standard_sample(case, present, corner, patch, rng, standard)
        image = np.zeros((len(case.image), *box), np.float32)
        for m in np.flatnonzero(present).tolist():
            image[m] = _crop(case.scan(m), corner, box)
        image = image.reshape(-1, *patch)
        label = _crop(case.label, corner, box).reshape(patch)
        brain = _crop(case.brain, corner, box).astype(bool).reshape(patch)
        is_slice = len(patch) == 2
        if self.augmentation.rotate and is_slice:
            degrees = self.augmentation.rotate * rng.uniform(-1, 1)
            image = rotated(image, degrees)
            label = rotated(label, degrees)
            brain = rotated(brain, degrees)
        draw = self._draw(present, rng)
        return _Patch(image, present, label, brain, folder.name, draw)

    def _drawn_case(self, rng: np.random.Generator) -> tuple[Path, PreparedArrays, np.ndarray]:
        """The case of a sample: its folder, its arrays, and flat indices of tumor voxels."""
        number = rng.integers(len(self.folders))
        folder = self.folders[number]
        case = self._case(folder)
        return folder, case, self._tumor_voxels[folder]

    def _standard_sample(
        self,
        case: PreparedArrays,
        present: np.ndarray,
        corner: Sequence[int],
        patch: Sequence[int],
        rng: np.random.Generator,
        spec: StandardAugmentation,
    ) -> _Patch:
        """A patch under the standard augmentation.

        Contrast, noise and side follow as for any other patch.
        """
        box = (*(1,) * (case.label.ndim - len(patch)), *patch)
        scans = []
        for scan, is_present in zip(case.image, present, strict=True):
            scans.append(scan if is_present else None)
        result = deformed(scans, case.label, case.brain, corner, box, spec, rng)
        if result is None:
            image = torch.zeros((len(case.image), *box))
            for m in np.flatnonzero(present).tolist():
                patch_values = _crop(case.scan(m), corner, box).astype(np.float32)
                image[m] = torch.from_numpy(patch_values)
            label = _crop(case.label, corner, box)
            brain = _crop(case.brain, corner, box).astype(bool)
        else:
            image = result[0]
            label = result[1].numpy()
            brain = result[2].numpy()
        renewed = acquired(image, present, spec, rng)
        draw = self._draw(present, rng)
        # A renewed z-score would undo a change of contrast and brightness.
        draw.gain[renewed] = 1.0
        draw.shift[renewed] = 0.0
        return _Patch(
            image.numpy().reshape(-1, *patch),
            present,
            label.reshape(patch),
            brain.reshape(patch),
            case.case_id,
            draw,
        )

    def _present(
        self, folder: Path, step: int, available: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """What a sample shows.

        Draws that miss what is on disk are repeated: subsets that are equally likely stay equally
        likely among what the case has.
        """
        for _ in range(1000):
            present = available & self.missingness(folder.name, step // len(self.folders), rng)
            if present.any():
                return present
        raise InputDataError(
            f"The case {folder.name} has none of the modalities that the missingness shows.",
            "Leave it out, or change the missingness.",
        )

    def _case(self, folder: Path) -> PreparedArrays:
        if folder not in self._cases:
            case = open_case(folder)
            self._cases[folder] = case
            self._tumor_voxels[folder] = sparse_voxels(np.asarray(case.label))
        return self._cases[folder]

    def _corner(
        self,
        voxels: np.ndarray,
        shape: Sequence[int],
        rng: np.random.Generator,
        box: Sequence[int],
    ) -> list[int]:
        """Lower corner of a patch.

        Negative where the patch is larger than the case, to center it.
        """
        center = None
        if voxels.size and rng.random() < self.augmentation.foreground:
            flat_index = voxels[rng.integers(voxels.size)]
            center = np.unravel_index(flat_index, shape)
        corner = []
        for axis, (size, width) in enumerate(zip(shape, box, strict=True)):
            middle = None
            if center is not None:
                middle = int(center[axis])
            corner.append(_patch_start(size, width, middle, rng))
        return corner

    def _draw(self, present: np.ndarray, rng: np.random.Generator) -> _Draw:
        strength = self.augmentation
        count = len(present)
        # The order of the draws is part of a recipe's result.
        gain = 1 + strength.gain * rng.uniform(-1, 1, count)
        shift = strength.shift * rng.uniform(-1, 1, count)
        noise = strength.noise * rng.random(count)
        flip = rng.random() < strength.flip
        seed = rng.integers(2**62)
        return _Draw(
            gain=gain,
            shift=shift,
            # Negative where the sample does not show the modality.
            noise=np.where(present, noise, -1),
            flip=bool(flip),
            seed=int(seed),
        )


def sparse_voxels(label: np.ndarray) -> np.ndarray:
    """Flat indices of at most ``MOST_TUMOR_VOXELS`` labeled voxels, evenly taken."""
    voxels = np.flatnonzero(label)
    return voxels[:: max(1, voxels.size // MOST_TUMOR_VOXELS)]


def _patch_start(size: int, width: int, middle: int | None, rng: np.random.Generator) -> int:
    """Where a patch begins along an axis: around ``middle``, or anywhere without one."""
    if width >= size:
        return -((width - size) // 2)
    if middle is None:
        return int(rng.integers(size - width + 1))
    # A quarter of the patch: the tumor is not always in its middle.
    jitter = rng.integers(-(width // 4), width // 4 + 1)
    start = middle - width // 2 + jitter
    return int(np.clip(start, 0, size - width))


def rotated(array: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate slices about their middle; zeros come in from outside.

    Args:
        array: [..., H, W]; interpolated linearly if float32, by the nearest pixel otherwise.
        degrees: counterclockwise.

    Returns:
        The same shape and dtype.
    """
    height, width = array.shape[-2:]
    theta = _rotation_of_slice(degrees, height, width)
    contiguous = torch.from_numpy(np.ascontiguousarray(array))
    planes = contiguous.reshape(1, -1, height, width).float()
    grid = torch.nn.functional.affine_grid(theta, [1, 1, height, width], align_corners=False)
    mode = "bilinear"
    if array.dtype != np.float32:
        # Labels and masks must not be mixed.
        mode = "nearest"
    turned = torch.nn.functional.grid_sample(planes, grid, mode=mode, align_corners=False)
    same_shape = turned.reshape(array.shape).numpy()
    return same_shape.astype(array.dtype)


def _rotation_of_slice(degrees: float, height: int, width: int) -> torch.Tensor:
    """[1, 2, 3] as ``affine_grid`` takes it."""
    radians = np.radians(degrees)
    cos = np.cos(radians)
    sin = np.sin(radians)
    # affine_grid works in units of half the side, hence the ratios of the sides.
    first_row = [cos, -sin * height / width, 0]
    second_row = [sin * width / height, cos, 0]
    return torch.tensor([[first_row, second_row]], dtype=torch.float32)


def _crop(array: np.ndarray, corner: Sequence[int], box: Sequence[int]) -> np.ndarray:
    """The box that begins at ``corner``; zeros where it sticks out of the array."""
    source = []
    target = []
    for start, width, size in zip(corner, box, array.shape, strict=True):
        low = max(start, 0)
        high = min(start + width, size)
        source.append(slice(low, high))
        target.append(slice(low - start, high - start))
    result = np.zeros(tuple(box), array.dtype)
    result[tuple(target)] = array[tuple(source)]
    return result
