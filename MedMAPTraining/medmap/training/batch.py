"""A training mini-batch, and the random augmentation that is still to be applied to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A training mini-batch.

    Attributes:
        image: [B, M, *S] float32; absent channels are zero.
        present: [B, M] bool, True = present.
        label: [B, *S] int64 class indices.
        brain: [B, *S] bool.
        case_id: B names.
        modalities: positions of the modalities that some sample has, for ``Backbone.forward``; None
            where only the device could say. Asking it would make the host wait.
        augmentation: what ``augmented`` still has to do to the batch; None when there is nothing.
    """

    image: Tensor
    present: Tensor
    label: Tensor
    brain: Tensor
    case_id: tuple[str, ...]
    modalities: tuple[int, ...] | None = None
    augmentation: AugmentationParams | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        modalities = self.modalities
        if modalities is None and self.present.device.type == "cpu":
            positions = self.present.any(0).nonzero().flatten()
            modalities = tuple(positions.tolist())
        moved = self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, modalities=modalities)

    def pin_memory(self, device: object = None) -> Batch:
        """The same batch in page-locked memory, whose copies to a GPU overlap with computing."""
        return self._map_tensors(_pinned)

    def augmented(self) -> Batch:
        """The batch with its augmentation applied, on the device where it lies."""
        if self.augmentation is None:
            return self
        return self.augmentation.apply(self)

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            image=change(self.image),
            present=change(self.present),
            label=change(self.label),
            brain=change(self.brain),
        )


def _pinned(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor.pin_memory()
    return tensor


@dataclass(frozen=True)
class AugmentationParams:
    """Random changes of contrast, noise and side, drawn already and applied where the batch lies.

    Attributes:
        gain, shift, noise: [B, M] factor, offset and standard deviation of the noise, in z-scores;
            a negative ``noise`` marks an absent modality.
        flip: B times whether left and right change places.
        seed: B seeds of the noise.
    """

    gain: np.ndarray
    shift: np.ndarray
    noise: np.ndarray
    flip: tuple[bool, ...]
    seed: tuple[int, ...]

    def apply(self, batch: Batch) -> Batch:
        """The augmented batch. What is exactly 0 (background, absent modalities) stays 0."""
        image = self._changed_intensities(batch.image)
        label = batch.label
        brain = batch.brain
        if any(self.flip):
            label = label.clone()
            brain = brain.clone()
            self._mirror(image, label, brain)
        return replace(batch, image=image, label=label, brain=brain, augmentation=None)

    def _changed_intensities(self, image: Tensor) -> Tensor:
        result = torch.zeros_like(image)
        for n, seed in enumerate(self.seed):
            # One generator per sample: how many samples a process gets must not change the noise.
            generator = torch.Generator(image.device).manual_seed(seed)
            for m in np.flatnonzero(self.noise[n] >= 0):
                scan = image[n, m]
                noise = float(self.noise[n, m])
                gain = float(self.gain[n, m])
                shift = float(self.shift[n, m])
                # In place throughout: noise, then the scan, then the shift.
                changed = torch.randn(scan.shape, generator=generator, device=scan.device)
                changed.mul_(noise)
                changed.add_(scan, alpha=gain)
                changed.add_(shift)
                # The background stays exactly 0, as inference sees it.
                is_background = scan == 0
                result[n, m] = changed.masked_fill_(is_background, 0)
        return result

    def _mirror(self, *tensors: Tensor) -> None:
        """Exchange left and right in place, the first spatial axis of every tensor."""
        label = tensors[1]
        # Counted from the end: the image has one axis more, of the modalities.
        first_spatial = -(label.ndim - 1)
        for n in np.flatnonzero(self.flip):
            for tensor in tensors:
                tensor[n] = tensor[n].flip(first_spatial)


class Sampler(Protocol):
    """Where a training takes its batches from: cases on disk, generated ones, slices."""

    case_ids: tuple[str, ...]

    def available(self, case_id: str) -> np.ndarray:
        """[M] bool: the modalities that training may ever show of a case."""

    def batch(self, step: int, size: int, patch: Sequence[int], first: int = 0) -> Batch:
        """Samples ``first`` to ``first + size - 1`` of a step.

        Each sample is a pure function of the sampler's seed, the step and its own number, so that
        several processes, each with its part of the step, see together what one process would see.
        """
