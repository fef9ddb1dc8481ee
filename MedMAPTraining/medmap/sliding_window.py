"""A network over a prepared case, window by window.

Each modality is encoded once; each subset costs one pass of the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor

from medmap.bundle.format import InferenceSpec
from medmap.bundle.memory_estimate import USABLE
from medmap.devices import available_bytes, inference_precision
from medmap.errors import Cancelled, UnavailableError, is_out_of_memory
from medmap.networks import Backbone
from medmap.networks.base import Features
from medmap.preprocess import Prepared
from medmap.progress import Cancel, Progress, ignore_progress, never_cancel
from medmap.task import Task


class SlidingWindow:
    """Runs networks over prepared cases.

    A GPU reports when its memory does not suffice, and smaller windows are tried; on the CPU memory
    is estimated before, since a system out of memory ends the whole program.

    Args:
        task: names and order of the modalities.
        spec: window, overlap and memory per voxel.
        stride: spatial sizes of windows are multiples of it.
        device: where to compute.
        progress: called with the completed fraction of the run and a text.
        cancel: asked before every pass of an encoder or a decoder.
        precision: ``fp32``, ``bf16``, or ``auto`` (``medmap.devices.inference_precision``). In bf16
            convolutions take half the time and features half the memory; logits are float32.

    Attributes:
        window: size of the windows used last, in working voxels.
        used_precision: ``fp32`` or ``bf16``, as used last.
    """

    def __init__(
        self,
        task: Task,
        spec: InferenceSpec,
        stride: int,
        device: torch.device,
        progress: Progress = ignore_progress,
        cancel: Cancel = never_cancel,
        precision: str = "fp32",
    ):
        self.task = task
        self.spec = spec
        self.stride = stride
        self.device = device
        self.progress = progress
        self.cancel = cancel
        self.precision = precision
        self.window: tuple[int, ...] = ()
        self.used_precision = "fp32"
        self._share_start = 0.0
        self._share = 1.0

    def report_share(self, start: float, share: float) -> None:
        """Report the next ``logits`` as this part of the whole run."""
        self._share_start = start
        self._share = share

    def logits(
        self, network: Backbone, prepared: Prepared, subsets: Sequence[tuple[str, ...]]
    ) -> Iterator[Tensor]:
        """Logits of one subset after the other.

        Args:
            network: takes every one of the subsets.
            prepared: the case.
            subsets: modality names.

        Yields:
            [C, D, H, W] float32 on the CPU.

        Raises:
            UnavailableError: even small windows do not fit into memory.
            Cancelled: ``cancel`` returned True.
        """
        self.window = full_window(self.spec, prepared)
        self._shrink_to_free_memory(prepared)
        finished = 0
        while finished < len(subsets):
            try:
                remaining = subsets[finished:]
                for result in self._stitched(network.to(self.device), prepared, remaining):
                    finished += 1
                    yield result
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                torch.cuda.empty_cache()
                self._shrink(prepared, error)

    def _shrink_to_free_memory(self, prepared: Prepared) -> None:
        """On the CPU, take the largest window for which the memory suffices."""
        if self.device.type != "cpu":
            return
        free = available_bytes()
        if free is None:
            return
        while math.prod(self.window) * self.spec.bytes_per_voxel > USABLE * free:
            self._shrink(prepared)

    def _shrink(self, prepared: Prepared, error: Exception | None = None) -> None:
        """Halve the window, to no less than four strides."""
        smaller = []
        for size in self.window:
            half = max(4 * self.stride, size // 2 // self.stride * self.stride)
            smaller.append(min(size, half))
        window = _with_all_slices(smaller, prepared)
        if window == self.window:
            cause = "Out of memory, even with small windows."
            if self.device.type == "cpu":
                raise UnavailableError(cause, "Close other programs.") from error
            raise UnavailableError(cause, "Choose the CPU.", option="device cpu") from error
        self.window = window

    @torch.inference_mode()
    def _stitched(
        self, network: Backbone, prepared: Prepared, subsets: Sequence[tuple[str, ...]]
    ) -> Iterator[Tensor]:
        """Logits of whole volumes; overlapping windows are averaged as the bundle says."""
        shape = prepared.grid.shape
        sides = [size for axis, size in enumerate(self.window) if axis != prepared.slice_axis]
        deepest_grid = min(sides) // self.stride
        self.used_precision = inference_precision(self.precision, self.device, deepest_grid)
        is_uniform = self.spec.weighting == "uniform"
        # The plain mean is a published rule, which steps by half a window whatever the stride.
        grid_step = 1 if is_uniform else self.stride
        boxes = window_boxes(shape, self.window, self.spec.overlap, grid_step)
        if len(boxes) == 1:
            yield from self._decoded(network, prepared.image, prepared, subsets, 0, 1)
            return
        # Sums lie on the CPU: those of fifteen subsets of a whole brain at 1 mm take 2 GB.
        weight = torch.ones(self.window) if is_uniform else gaussian_weight(self.window)
        sums = [torch.zeros((self.task.num_classes, *shape)) for _ in subsets]
        total = torch.zeros(shape)
        for number, box in enumerate(boxes):
            all_channels = (slice(None), *box)
            image = prepared.image[all_channels]
            results = self._decoded(network, image, prepared, subsets, number, len(boxes))
            total[box] += weight
            for weighted_sum, logits in zip(sums, results, strict=True):
                weighted_sum[all_channels] += weight * logits
        while sums:
            yield sums.pop(0).div_(total)

    def _decoded(
        self,
        network: Backbone,
        image: Tensor,
        prepared: Prepared,
        subsets: Sequence[Sequence[str]],
        number: int,
        count: int,
    ) -> Iterator[Tensor]:
        """Encode each modality of one window once, then decode every subset."""
        task = self.task
        names: set[str] = set()
        for subset in subsets:
            names.update(subset)
        positions = sorted(task.index(name) for name in names)
        steps = len(positions) + len(subsets)
        features: dict[int, Features] = {}
        for step, m in enumerate(positions):
            text = f"encoding {task.modalities[m].title}"
            self._report((number + step / steps) / count, text, number, count)
            batch = as_batch(image[m], prepared.slice_axis).to(self.device)
            with self._autocast():
                features[m] = network.encode(batch, m)
        for step, subset in enumerate(subsets, len(positions)):
            text = f"segmenting from {task.subset_title(subset)}"
            self._report((number + step / steps) / count, text, number, count)
            # On the CPU at once: a GPU need not hold the logits while the caller works on them.
            logits = self._decode_subset(network, features, subset).float().cpu()
            yield as_volume(logits, prepared.slice_axis)

    def _decode_subset(
        self, network: Backbone, features: Mapping[int, Features], subset: Sequence[str]
    ) -> Tensor:
        """Logits [B, C, *S] of a modality subset from the features of each modality."""
        mask = self.task.presence(subset)
        subset_features: list[Features | None] = [None] * len(mask)
        batch_size = 0
        for m, is_present in enumerate(mask):
            if is_present:
                subset_features[m] = features[m]
                batch_size = features[m][0].shape[0]
        present = torch.tensor([mask] * batch_size, device=self.device)
        with self._autocast():
            return network.decode(subset_features, present).logits

    def _autocast(self) -> torch.autocast:
        """Precision of one pass. Never around a ``yield``: the caller would compute in it, too."""
        enabled = self.used_precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _report(self, fraction: float, text: str, window: int, count: int) -> None:
        if self.cancel():
            raise Cancelled()
        # A brain mostly fits into one window, whose number would tell a user nothing.
        if count > 1:
            text = f"window {window + 1} of {count}: {text}"
        self.progress(self._share_start + self._share * fraction, text)


def full_window(spec: InferenceSpec, prepared: Prepared) -> tuple[int, ...]:
    """Size of a bundle's windows, if memory suffices; slices all go through together."""
    sizes = []
    for width, size in zip(spec.window, prepared.grid.shape, strict=True):
        sizes.append(min(width, size))
    return _with_all_slices(sizes, prepared)


def _with_all_slices(window: Sequence[int], prepared: Prepared) -> tuple[int, ...]:
    sizes = list(window)
    if prepared.slice_axis is not None:
        sizes[prepared.slice_axis] = prepared.grid.shape[prepared.slice_axis]
    return tuple(sizes)


def as_batch(image: Tensor, slice_axis: int | None) -> Tensor:
    """One modality as a network takes it.

    Args:
        image: [D, H, W].
        slice_axis: axis of the slices that a network of two dimensions takes; None for volumes.

    Returns:
        [1, 1, D, H, W], or a batch of slices [N, 1, *S].
    """
    if slice_axis is None:
        return image[None, None]
    return image.movedim(slice_axis, 0)[:, None]


def as_volume(logits: Tensor, slice_axis: int | None) -> Tensor:
    """A network's logits, [1, C, D, H, W] or [N, C, *S] -> [C, D, H, W]: undoes ``as_batch``."""
    if slice_axis is None:
        return logits[0]
    return logits.transpose(0, 1).movedim(1, slice_axis + 1)


def window_boxes(
    shape: Sequence[int], window: Sequence[int], overlap: float, stride: int
) -> list[tuple[slice, ...]]:
    """Boxes of one size that cover a volume.

    They start at multiples of the stride, apart from the last, which ends with the volume.
    """
    starts_by_axis = []
    for size, width in zip(shape, window, strict=True):
        step = max(stride, int(width * (1 - overlap)) // stride * stride)
        last = max(size - width, 0)
        # The last window ends with the volume rather than beyond it: padding would be a border
        # that the network never saw in training.
        starts_by_axis.append(sorted({*range(0, last, step), last}))
    boxes = []
    for corner in product(*starts_by_axis):
        sides = zip(corner, window, strict=True)
        boxes.append(tuple(slice(start, start + width) for start, width in sides))
    return boxes


def gaussian_weight(window: Sequence[int]) -> Tensor:
    """[*window] Gaussian importance, at least 1e-3.

    Its standard deviation is an eighth of the window, as in nnU-Net and MONAI.
    """
    weight = torch.ones(())
    for size in window:
        distance = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (distance / (size / 8)) ** 2)
    return weight.clamp_min(1e-3)
