"""Cached cases -> patches. Sampling is stateless: seed, step and the sample's number determine everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medmap.errors import InputDataError
from medmap.io.cohorts import Case, find_cases
from medmap.training.augmentation import StandardAugmentation, acquired, deformed
from medmap.training.cache import cache_case, read_label
from medmap.training.missingness import Missingness

__all__ = [
    "Augmentation",
    "Batch",
    "Case",
    "PatchSampler",
    "Sampler",
    "Variation",
    "cache_case",
    "find_cases",
    "read_label",
]


@dataclass(frozen=True)
class Batch:
    """What a network trains on.

    Attributes:
        image: [B, M, *S] float32; absent channels are zero.
        present: [B, M] bool, True = present.
        label: [B, *S] int64 class indices.
        brain: [B, *S] bool.
        case_id: B names.
        known: positions of the modalities that some sample has, for ``Backbone.forward``; None where nobody knows
            without asking the device.
        variation: what is still to be done to the image (``varied``); None when nothing is.
    """

    image: Tensor
    present: Tensor
    label: Tensor
    brain: Tensor
    case_id: tuple[str, ...]
    known: tuple[int, ...] | None = None
    variation: Variation | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        known = self.known
        if known is None and self.present.device.type == "cpu":
            known = tuple(self.present.any(0).nonzero().flatten().tolist())
        return replace(self._each(lambda t: t.to(device, non_blocking=True)), known=known)

    def pin_memory(self, device: object = None) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU overlap with computing."""
        return self._each(lambda t: t.pin_memory() if t.device.type == "cpu" else t)

    def varied(self) -> Batch:
        """The batch with its variation carried out, on the device where it lies."""
        return self if self.variation is None else self.variation.applied(self)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        names = ("image", "present", "label", "brain")
        return replace(self, **{name: change(getattr(self, name)) for name in names})


@dataclass(frozen=True)
class Variation:
    """How the samples of a batch are varied at random: drawn already, carried out where the batch lies.

    Attributes:
        gain, shift, noise: [B, M] factor, offset and standard deviation of the noise, in z-scores.
        flip: B times whether left and right change places.
        seed: B seeds of the noise.
    """

    gain: np.ndarray
    shift: np.ndarray
    noise: np.ndarray
    flip: tuple[bool, ...]
    seed: tuple[int, ...]

    def applied(self, batch: Batch) -> Batch:
        """The batch, varied. What is exactly 0 (background, absent modalities) stays 0."""
        image, label, brain = torch.zeros_like(batch.image), batch.label, batch.brain
        for n, seed in enumerate(self.seed):
            generator = torch.Generator(image.device).manual_seed(seed)
            for m in np.flatnonzero(self.noise[n] >= 0):
                scan = batch.image[n, m]
                noise = torch.randn(scan.shape, generator=generator, device=scan.device).mul_(
                    float(self.noise[n, m])
                )
                varied = noise.add_(scan, alpha=float(self.gain[n, m])).add_(
                    float(self.shift[n, m])
                )
                image[n, m] = varied.masked_fill_(scan == 0, 0)
        if any(self.flip):
            label, brain = label.clone(), brain.clone()
            across = -(label.ndim - 1)
            for n in np.flatnonzero(self.flip):
                for tensor in (image, label, brain):
                    tensor[n] = tensor[n].flip(across)
        return replace(batch, image=image, label=label, brain=brain, variation=None)


class Sampler(Protocol):
    """Where a training takes its batches from: cases on disk, generated ones, slices."""

    case_ids: tuple[str, ...]

    def shows(self, case_id: str) -> np.ndarray:
        """[M] bool: the modalities that training may ever show of a case."""

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """Samples ``first`` to ``first + size - 1`` of a step.

        Each sample is a pure function of the sampler's seed, the step and its own number, so that several processes,
        each with its part of the step, see together what one process would see.
        """


@dataclass(frozen=True)
class Augmentation:
    """How much a training patch is varied, drawn per patch (and per modality for intensities).

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
    def from_dict(standard: dict | None = None, **numbers) -> Augmentation:
        """From the plain data of a recipe. Raises TypeError for an unknown key."""
        if standard is None:
            return Augmentation(**numbers)
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in standard.items()}
        return Augmentation(**numbers, standard=StandardAugmentation(**values))


class PatchSampler:
    """Random patches of cached cases, or of their slices where a patch has two sides.

    A sample is a pure function of seed, step and its number.

    Args:
        folders: cached cases (``cache_case``).
        missingness: which modalities a sample shows.
        seed: of everything drawn.
        augmentation: how patches are varied.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        missingness: Missingness,
        seed: int,
        augmentation: Augmentation,
    ):
        self.folders, self.missingness, self.seed, self.augmentation = (
            list(folders),
            missingness,
            seed,
            augmentation,
        )
        self.case_ids = tuple(folder.name for folder in self.folders)
        self._open: dict[Path, tuple] = {}
        self._tumor: dict[Path, np.ndarray] = {}

    def shows(self, case_id: str) -> np.ndarray:
        """[M] bool: the modalities that the case has on disk."""
        return self._arrays(self.folders[self.case_ids.index(case_id)])[3]

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """Patches ``first`` to ``first + size - 1``, of ``patch`` voxels, of one optimization step."""
        return self.plain_batch(step, size, patch, first).varied()

    def plain_batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """The same patches with their random variation drawn, but not yet carried out."""
        numbers = range(first, first + size)
        samples = [
            self._sample(np.random.default_rng([self.seed, step, n]), step, patch) for n in numbers
        ]
        image, present, label, brain, names, drawn = zip(*samples, strict=True)
        gain, shift, noise, flip, seed = zip(*drawn, strict=True)
        return Batch(
            torch.from_numpy(np.stack(image)),
            torch.from_numpy(np.stack(present)),
            torch.from_numpy(np.stack(label).astype(np.int64)),
            torch.from_numpy(np.stack(brain)),
            names,
            tuple(np.flatnonzero(np.any(present, axis=0)).tolist()),
            Variation(np.stack(gain), np.stack(shift), np.stack(noise), flip, seed),
        )

    def _sample(self, rng: np.random.Generator, step: int, patch: Sequence[int]) -> tuple:
        folder = self.folders[rng.integers(len(self.folders))]
        image, label, brain, available = self._arrays(folder)
        present = self._present(folder, step, available, rng)
        box = (*(1,) * (label.ndim - len(patch)), *patch)
        low = self._corner(folder, label, rng, box)
        if self.augmentation.standard is not None:
            return self._standard_sample(folder, present, low, patch, rng)
        sample = np.zeros((len(image), *box), np.float32)
        for m in np.flatnonzero(present):
            sample[m] = _cut(image[m], low, box)
        label, brain = _cut(label, low, box), _cut(brain, low, box).astype(bool)
        sample, label, brain = (
            sample.reshape(-1, *patch),
            label.reshape(patch),
            brain.reshape(patch),
        )
        if self.augmentation.rotate and len(patch) == 2:
            degrees = self.augmentation.rotate * rng.uniform(-1, 1)
            sample, label, brain = (rotated(a, degrees) for a in (sample, label, brain))
        return sample, present, label, brain, folder.name, self._draw(present, rng)

    def _standard_sample(
        self,
        folder: Path,
        present: np.ndarray,
        low: Sequence[int],
        patch: Sequence[int],
        rng: np.random.Generator,
    ) -> tuple:
        """A patch under the standard augmentation; gain, shift, noise and mirroring follow as for any other."""
        spec = self.augmentation.standard
        image, label, brain, _ = self._arrays(folder)
        box = (*(1,) * (label.ndim - len(patch)), *patch)
        shown = [scan if there else None for scan, there in zip(image, present, strict=True)]
        result = deformed(shown, label, brain, low, box, spec, rng)
        if result is None:
            sample = torch.zeros((len(image), *box))
            for m in np.flatnonzero(present):
                sample[m] = torch.from_numpy(_cut(image[m], low, box).astype(np.float32))
            classes, inside = _cut(label, low, box), _cut(brain, low, box).astype(bool)
        else:
            sample, classes, inside = result[0], result[1].numpy(), result[2].numpy()
        renewed = acquired(sample, present, spec, rng)
        gain, shift, noise, flip, seed = self._draw(present, rng)
        gain[renewed], shift[renewed] = 1.0, 0.0
        values = (sample.numpy().reshape(-1, *patch), classes.reshape(patch), inside.reshape(patch))
        return (
            values[0],
            present,
            values[1],
            values[2],
            folder.name,
            (gain, shift, noise, flip, seed),
        )

    def _present(
        self, folder: Path, step: int, available: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """What a sample shows. Draws that miss what is on disk are repeated: alike stays alike among what is left."""
        for _ in range(1000):
            present = available & self.missingness(folder.name, step // len(self.folders), rng)
            if present.any():
                return present
        raise InputDataError(
            f"The case {folder.name} has none of the scans that the missingness shows.",
            "Leave it out, or change the missingness.",
        )

    def _arrays(
        self, folder: Path
    ) -> tuple[list[np.ndarray | None], np.ndarray, np.ndarray, np.ndarray]:
        """Images by modality (None = not there), label, brain, and [M] bool: what is there."""
        if folder not in self._open:
            stored = json.loads((folder / "spec.json").read_text())
            names, shown = stored["modalities"], stored["shown"]
            image = [
                np.load(folder / f"{name}.npy", mmap_mode="r") if name in shown else None
                for name in names
            ]
            label, brain = (
                np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("label", "brain")
            )
            self._open[folder] = (image, label, brain, np.array([name in shown for name in names]))
            found = np.flatnonzero(np.asarray(self._open[folder][1]))
            self._tumor[folder] = found[:: max(1, found.size // 4096)]
        return self._open[folder]

    def _corner(
        self, folder: Path, label: np.ndarray, rng: np.random.Generator, patch: Sequence[int]
    ) -> list[int]:
        """Lower corner of a patch; may be negative where the patch is larger than the case (centered then)."""
        tumor = self._tumor[folder]
        center = None
        if tumor.size and rng.random() < self.augmentation.foreground:
            center = np.unravel_index(tumor[rng.integers(tumor.size)], label.shape)
        corner = []
        for axis, (size, width) in enumerate(zip(label.shape, patch, strict=True)):
            if width >= size:
                corner.append(-((width - size) // 2))
            elif center is None:
                corner.append(int(rng.integers(size - width + 1)))
            else:
                jitter = rng.integers(-(width // 4), width // 4 + 1)
                corner.append(int(np.clip(center[axis] - width // 2 + jitter, 0, size - width)))
        return corner

    def _draw(self, present: np.ndarray, rng: np.random.Generator) -> tuple:
        """Gain, shift and noise by modality (noise -1: absent), whether to flip, and the noise's seed."""
        amount = self.augmentation
        gain = 1 + amount.gain * rng.uniform(-1, 1, len(present))
        shift = amount.shift * rng.uniform(-1, 1, len(present))
        noise = np.where(present, amount.noise * rng.random(len(present)), -1)
        return gain, shift, noise, bool(rng.random() < amount.flip), int(rng.integers(2**62))


def rotated(array: np.ndarray, degrees: float) -> np.ndarray:
    """[..., H, W] about its middle, zeros from outside; linear for floats, the nearest pixel for labels and masks."""
    height, width = array.shape[-2:]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    theta = torch.tensor(
        [[[cos, -sin * height / width, 0], [sin * width / height, cos, 0]]], dtype=torch.float32
    )
    planes = torch.from_numpy(np.ascontiguousarray(array)).reshape(1, -1, height, width)
    grid = torch.nn.functional.affine_grid(theta, [1, 1, height, width], align_corners=False)
    mode = "bilinear" if array.dtype == np.float32 else "nearest"
    turned = torch.nn.functional.grid_sample(planes.float(), grid, mode=mode, align_corners=False)
    return turned.reshape(array.shape).numpy().astype(array.dtype)


def _cut(array: np.ndarray, low: Sequence[int], patch: Sequence[int]) -> np.ndarray:
    """A patch from ``low``; zeros where it sticks out."""
    source = tuple(
        slice(max(c, 0), min(c + w, n)) for c, w, n in zip(low, patch, array.shape, strict=True)
    )
    target = tuple(slice(s.start - c, s.stop - c) for s, c in zip(source, low, strict=True))
    result = np.zeros(tuple(patch), array.dtype)
    result[target] = array[source]
    return result
