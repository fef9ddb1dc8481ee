"""Segment one patient: the one way of panel, command line and tests. Needs torch, numpy and safetensors only."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from medmap.bundle.loading import Bundle, Entry
from medmap.bundle.memory_estimate import USABLE
from medmap.checks import Finding, check_inputs
from medmap.confidence import without_doubtful
from medmap.devices import available_bytes, resolve_device
from medmap.errors import Cancelled, UnavailableError, is_out_of_memory
from medmap.metrics import region_volumes_ml
from medmap.networks import Backbone
from medmap.postprocess import label_map
from medmap.preprocess import Prepared, prepare
from medmap.progress import Cancel, Progress, ignore_progress, never_cancel
from medmap.provenance import provenance
from medmap.task import Task
from medmap.volume import Grid, Volume


@dataclass(frozen=True)
class Segmentation:
    """A result.

    Attributes:
        labels: [I, J, K] label values of the task's files (BraTS: 0, 1, 2, 4) on the reference scan's grid, of
            ``Task.label_dtype``.
        grid: that grid.
        reference: name of the reference modality.
        volumes_ml: volume of each region in ml, from voxels.
        findings: what the checks and the run found worth saying.
        provenance: JSON-ready record of how the result was made.
        task: the bundle's task.
    """

    labels: np.ndarray
    grid: Grid
    reference: str
    volumes_ml: dict[str, float]
    findings: tuple[Finding, ...]
    provenance: dict
    task: Task


def segment(
    volumes: Mapping[str, Volume],
    bundle: Bundle,
    *,
    reference: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Segmentation:
    """Segment one patient from whatever scans there are.

    Args:
        volumes: scans by modality name; absent ones are simply not there.
        bundle: a loaded bundle.
        reference: modality whose grid carries the result; None takes the finest, T1ce among equals.
        device: a torch device, or ``auto``.
        progress: called with a fraction in 0..1 and a text.
        cancel: asked before every window; True stops the run.

    Raises:
        UsageError, InputDataError: the inputs cannot be used as they are.
        UnavailableError: the device is not there, or its memory does not suffice.
        Cancelled: ``cancel`` said so.
    """
    started = time.perf_counter()
    report = progress or ignore_progress
    report(0.0, "checking the scans")
    volumes = {
        name: volumes[name] for name in bundle.task.modality_names if name in volumes
    } | dict(volumes)
    findings = list(check_inputs(volumes, bundle.task))
    entry = bundle.entry_for(volumes)
    findings += [
        *unused_warnings(volumes, bundle.task, entry),
        *absence_warnings(entry.modalities, bundle.task),
    ]
    place = resolve_device(device)
    report(0.05, "bringing the scans to one grid")
    prepared = prepare(
        volumes, bundle.task, bundle.preprocess, reference=reference, multiple=bundle.stride
    )
    run = Run(
        bundle,
        place,
        lambda fraction, text: report(0.15 + 0.75 * fraction, text),
        cancel or never_cancel,
    )
    logits = run.logits(prepared, [tuple(volumes)])[0]
    report(0.92, "returning to the reference scan's grid")
    labels = label_map(logits, prepared, bundle.postprocess, bundle.task)
    if run.window != window_for(bundle, prepared):
        shown = " x ".join(map(str, run.window))
        message = f"Memory sufficed only for windows of {shown} voxels; labels may differ slightly."
        findings.append(
            Finding("warning", "memory", message, "Free memory on the device, or use the CPU.")
        )
    findings += doubt_warnings(run.left_out_ml.get(0, 0.0), bundle.task)
    if not labels.any():
        findings.append(
            Finding(
                "warning",
                "result",
                f"No {bundle.task.target} was found.",
                "Review the scans yourself.",
            )
        )
    details = {
        "device": str(place),
        "window": list(run.window),
        "working_grid": {
            "shape": list(prepared.grid.shape),
            "spacing_mm": bundle.preprocess.spacing,
        }
        | ({"slices": True} if bundle.preprocess.slices else {}),
        "left_out_ml": round(run.left_out_ml.get(0, 0.0), 2),
        "seconds": round(time.perf_counter() - started, 2),
    }
    report(1.0, "done")
    return Segmentation(
        labels=labels,
        grid=prepared.reference_grid,
        reference=prepared.reference,
        volumes_ml=region_volumes_ml(labels, bundle.task, prepared.reference_grid.voxel_ml),
        findings=tuple(findings),
        provenance=provenance(bundle, volumes, entry, findings, prepared.reference, details),
        task=bundle.task,
    )


def segment_subsets(
    volumes: Mapping[str, Volume],
    bundle: Bundle,
    subsets: Sequence[Sequence[str]],
    *,
    reference: str | None = None,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """Label maps of one patient for many subsets of the given scans, each scan encoded once.

    The crop is common to all subsets: the box around the head in all given scans.

    Returns:
        [I, J, K] label values by ``Task.subset_key``, on the reference scan's grid.
    """
    check_inputs(volumes, bundle.task)
    prepared = prepare(
        volumes, bundle.task, bundle.preprocess, reference=reference, multiple=bundle.stride
    )
    run = Run(bundle, resolve_device(device), ignore_progress, never_cancel)
    keys = [bundle.task.subset_key(subset) for subset in subsets]
    labels: dict[str, np.ndarray] = dict.fromkeys(keys)
    for positions, logits in run.each(prepared, subsets):
        found = label_map(logits, prepared, bundle.postprocess, bundle.task)
        labels.update((keys[n], found) for n in positions)
    return labels


def unused_warnings(names: Iterable[str], task: Task, entry: Entry) -> list[Finding]:
    """What to say of scans that are there while the bundle has no network for exactly this set."""
    unused = [name for name in names if name not in entry.modalities]
    if not unused:
        return []
    message = (
        f"The bundle has no network for exactly these scans: the one for {task.titles(entry.modalities)} was used, "
        f"and {task.titles(unused)} was not."
    )
    return [Finding("warning", "entry", message)]


def absence_warnings(names: Collection[str], task: Task) -> list[Finding]:
    """What a reader of the result must know about the scans that are missing."""
    absent = (m for m in task.modalities if m.name not in names and m.warning_if_absent)
    return [
        Finding(
            "warning", "missing-modality", m.warning_if_absent, f"Add {m.title} if there is one."
        )
        for m in absent
    ]


def doubt_warnings(left_out_ml: float, task: Task) -> list[Finding]:
    """What to say of pieces that were left out because the network was not sure of them."""
    if left_out_ml < 0.05:
        return []
    message = f"{left_out_ml:.1f} ml that might be {task.target} were left out: the network is not sure of them."
    return [Finding("warning", "doubt", message, "Review the scans yourself, or add one.")]


class Run:
    """One pass of a bundle over a prepared case: windows, encoders once, a decoder a subset.

    Attributes:
        window: size of the windows used, in working voxels.
        left_out_ml: volume left out in doubt, by position of the subset; no entry where nothing was.
    """

    def __init__(self, bundle: Bundle, device: torch.device, progress: Progress, cancel: Cancel):
        self.bundle, self.device, self.progress, self.cancel = bundle, device, progress, cancel
        self.window: tuple[int, ...] = ()
        self.left_out_ml: dict[int, float] = {}
        self._part = (0.0, 1.0)

    def logits(self, prepared: Prepared, subsets: Sequence[Sequence[str]]) -> list[Tensor]:
        """[C, D, H, W] logits on the CPU, one a subset; subsets that share a result get the same one. See ``each``."""
        found: dict[int, Tensor] = {}
        for positions, result in self.each(prepared, subsets):
            found.update(dict.fromkeys(positions, result))
        return [found[n] for n in range(len(subsets))]

    def each(
        self, prepared: Prepared, subsets: Sequence[Sequence[str]]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Logits one after the other, so that fifteen subsets need not be held at once where one window suffices.

        A GPU says itself when memory does not suffice, and smaller windows are tried; on the CPU it is estimated
        before, since a system out of memory ends the whole program. Each subset gets the bundle's entry for it;
        subsets of which an entry takes the same scans share one result.

        Yields:
            Positions in ``subsets``, and their [C, D, H, W] logits on the CPU. The first subset is among the first.

        Raises:
            BundleError: the bundle is not made for one of the subsets.
            UnavailableError: even small windows do not fit.
        """
        plan: dict[str, dict[tuple[str, ...], list[int]]] = {}
        networks: dict[str, Backbone] = {}
        for n, subset in enumerate(subsets):
            entry = self.bundle.entry_for(subset)
            networks[entry.name] = entry.network
            plan.setdefault(entry.name, {}).setdefault(entry.modalities, []).append(n)
        self.window = window_for(self.bundle, prepared)
        self._estimate(prepared)
        for n, (name, wanted) in enumerate(plan.items()):
            self._part = (n / len(plan), 1 / len(plan))
            answers = self._fitting(networks[name], prepared, list(wanted))
            for (subset, positions), logits in zip(wanted.items(), answers, strict=True):
                bundle = self.bundle
                kept, left_out = without_doubtful(
                    logits, prepared, subset, bundle.task, bundle.postprocess, bundle.doubt
                )
                self.left_out_ml.update(dict.fromkeys(positions, left_out) if left_out else {})
                yield positions, kept

    def _estimate(self, prepared: Prepared) -> None:
        """On the CPU, the largest window for which the memory suffices, by what the bundle says it needs."""
        free = available_bytes() if self.device.type == "cpu" else None
        while (
            free is not None
            and math.prod(self.window) * self.bundle.inference.bytes_per_voxel > USABLE * free
        ):
            self._shrink(prepared)

    def _fitting(
        self, network: Backbone, prepared: Prepared, subsets: Sequence[tuple[str, ...]]
    ) -> Iterator[Tensor]:
        """The same of one network, with windows that the memory suffices for."""
        done = 0
        while done < len(subsets):
            try:
                for result in self._windows(network.to(self.device), prepared, subsets[done:]):
                    done += 1
                    yield result
            except (RuntimeError, MemoryError) as error:  # of a device or of the CPU
                if not is_out_of_memory(error):
                    raise
                torch.cuda.empty_cache()
                self._shrink(prepared, error)

    def _shrink(self, prepared: Prepared, error: Exception | None = None) -> None:
        stride = self.bundle.stride
        smaller = tuple(min(n, max(4 * stride, n // 2 // stride * stride)) for n in self.window)
        smaller = _all_slices(smaller, prepared)
        if smaller == self.window:
            cause = "The memory does not suffice even for small windows."
            if self.device.type == "cpu":
                raise UnavailableError(cause, "Close other programs.") from error
            raise UnavailableError(cause, "Choose the CPU.", option="device cpu") from error
        self.window = smaller

    @torch.inference_mode()
    def _windows(
        self, network: Backbone, prepared: Prepared, subsets: Sequence[tuple[str, ...]]
    ) -> Iterator[Tensor]:
        boxes = window_boxes(
            prepared.grid.shape, self.window, self.bundle.inference.overlap, self.bundle.stride
        )
        if len(boxes) == 1:
            yield from self._window(network, prepared.image, prepared, subsets, 0, 1)
            return
        weight = gaussian_weight(self.window)
        classes = self.bundle.task.num_classes
        sums = [torch.zeros((classes, *prepared.grid.shape)) for _ in subsets]
        total = torch.zeros(prepared.grid.shape)
        for n, box in enumerate(boxes):
            part = self._window(
                network, prepared.image[(slice(None), *box)], prepared, subsets, n, len(boxes)
            )
            total[box] += weight
            for result, logits in zip(sums, part, strict=True):
                result[(slice(None), *box)] += weight * logits
        while sums:
            yield sums.pop(0).div_(total)

    def _window(
        self,
        network: Backbone,
        image: Tensor,
        prepared: Prepared,
        subsets: Sequence[Sequence[str]],
        n: int,
        of: int,
    ) -> Iterator[Tensor]:
        """Encode each modality of one window once, then decode every subset."""
        task = self.bundle.task
        needed = sorted({task.index(name) for subset in subsets for name in subset})
        features: dict[int, list[Tensor]] = {}
        steps = len(needed) + len(subsets)
        for step, m in enumerate(needed):
            self._tick(
                (n + step / steps) / of,
                f"window {n + 1} of {of}: reading {task.modalities[m].title}",
            )
            features[m] = network.encode(as_batch(image[m], prepared.slice_axis).to(self.device), m)
        for step, subset in enumerate(subsets, len(needed)):
            self._tick((n + step / steps) / of, f"window {n + 1} of {of}: segmenting")
            mask = task.presence(subset)
            chosen = [features[m] if here else None for m, here in enumerate(mask)]
            size = next(f[0].shape[0] for f in chosen if f is not None)
            output = network.decode(chosen, torch.tensor([mask] * size, device=self.device))
            answer = as_volume(output.logits.float().cpu(), prepared.slice_axis)
            del output  # not held while the caller looks at the answer
            yield answer

    def _tick(self, fraction: float, text: str) -> None:
        if self.cancel():
            raise Cancelled()
        start, share = self._part
        self.progress(start + share * fraction, text)


def window_for(bundle: Bundle, prepared: Prepared) -> tuple[int, ...]:
    """Size of the windows that a bundle wants, where memory suffices; slices all go through together."""
    window = tuple(
        min(w, n) for w, n in zip(bundle.inference.window, prepared.grid.shape, strict=True)
    )
    return _all_slices(window, prepared)


def _all_slices(window: tuple[int, ...], prepared: Prepared) -> tuple[int, ...]:
    return tuple(
        prepared.grid.shape[a] if a == prepared.slice_axis else w for a, w in enumerate(window)
    )


def as_batch(image: Tensor, slice_axis: int | None) -> Tensor:
    """[D, H, W] of one modality -> what a network takes: [1, 1, D, H, W], or a batch of slices [N, 1, *S]."""
    return image[None, None] if slice_axis is None else image.movedim(slice_axis, 0)[:, None]


def as_volume(logits: Tensor, slice_axis: int | None) -> Tensor:
    """A network's answer, [1, C, D, H, W] or [N, C, *S] -> [C, D, H, W]: undoes ``as_batch``."""
    return logits[0] if slice_axis is None else logits.transpose(0, 1).movedim(1, slice_axis + 1)


def window_boxes(
    shape: Sequence[int], window: Sequence[int], overlap: float, stride: int
) -> list[tuple[slice, ...]]:
    """Boxes of size ``window`` that cover ``shape``; starts are multiples of the stride, the last ends the volume."""
    starts = []
    for size, width in zip(shape, window, strict=True):
        step = max(stride, int(width * (1 - overlap)) // stride * stride)
        starts.append(sorted({*range(0, max(size - width, 0), step), max(size - width, 0)}))
    return [
        tuple(slice(s, s + w) for s, w in zip(corner, window, strict=True))
        for corner in product(*starts)
    ]


def gaussian_weight(window: Sequence[int]) -> Tensor:
    """[*window] Gaussian importance with standard deviation window/8, as nnU-Net and MONAI weigh; never below 1e-3."""
    weight = torch.ones(())
    for size in window:
        x = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        weight = weight[..., None] * torch.exp(-0.5 * (x / (size / 8)) ** 2)
    return weight.clamp_min(1e-3)
