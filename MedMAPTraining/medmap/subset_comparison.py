"""Modality comparison: the results of other subsets, and where the result is uncertain.

Each modality is encoded once and decoded for every subset, as in ``segment``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from medmap.boxes import bounding_box
from medmap.bundle.loading import Bundle
from medmap.checks import check_inputs
from medmap.comparison_names import (
    ADD_BACK,
    CURRENT,
    DISAGREEMENT,
    ENTROPY,
    LEAVE_ONE_OUT,
    OTHER,
    REGION_DISAGREEMENT,
)
from medmap.devices import AUTO, resolve_device
from medmap.errors import Cancelled, UsageError
from medmap.inference import in_task_order, predictions
from medmap.metrics import dice_of_counts, region_masks
from medmap.postprocess.prediction import Prediction, probabilities
from medmap.postprocess.reference_labels import label_map
from medmap.preprocess import Prepared, prepare
from medmap.progress import Cancel, Progress, ignore_progress, never_cancel
from medmap.resampling import to_grid
from medmap.sliding_window import SlidingWindow
from medmap.task import Task
from medmap.tensors import to_array
from medmap.volume import Grid, Volume


@dataclass(frozen=True)
class Variant:
    """The result that one subset of the scans would have given.

    Attributes:
        key: ``Task.subset_key`` of the subset.
        modalities: the subset, in task order.
        kind: ``current``, ``leave-one-out`` (the current subset without one), ``add-back`` (with
            one more), ``other``.
        volumes_ml: volume of each region in ml.
        change_ml: that minus the current result's volume.
        dice: agreement of each region with the current result; both empty counts as 1 (see
            ``medmap.metrics``).
    """

    key: str
    modalities: tuple[str, ...]
    kind: str
    volumes_ml: dict[str, float]
    change_ml: dict[str, float]
    dice: dict[str, float]


@dataclass(frozen=True)
class WhatIf:
    """What every subset would have given, and where the current result is uncertain.

    Attributes:
        task: the bundle's task.
        current: the subset that everything is compared with.
        labels: [I, J, K] label values of the current subset, on ``grid``.
        grid: the reference scan's grid.
        reference: name of the reference modality.
        variants: the current subset first, then by size from large to small.
        maps: name -> [I, J, K] float32 in 0..1 on ``grid``. ``entropy``: -sum p log p / log C of
            the current subset's class probabilities (Shannon, normalized; 0 certain, 1 all classes
            alike). ``disagreement``: share of the other subsets that give the voxel another label.
            ``region disagreement``: share of the other subsets that differ about the task's first
            region (BraTS: WT). The latter two are absent when there is no other subset.
        region_entropy: mean entropy inside each region of the current result; nan for an empty one.
    """

    task: Task
    current: tuple[str, ...]
    labels: np.ndarray
    grid: Grid
    reference: str
    variants: tuple[Variant, ...]
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    region_entropy: dict[str, float] = field(default_factory=dict)


def subsets_of(names: Sequence[str], task: Task) -> tuple[tuple[str, ...], ...]:
    """All non-empty subsets of the given modalities in task order, large ones first: 15 of four."""
    ordered = _ordered(set(names), task)
    subsets: list[tuple[str, ...]] = []
    for size in range(len(ordered), 0, -1):
        subsets += combinations(ordered, size)
    return tuple(subsets)


def what_if(
    volumes: Mapping[str, Volume],
    bundle: Bundle,
    *,
    current: Sequence[str] | None = None,
    subsets: Sequence[Sequence[str]] | None = None,
    reference: str | None = None,
    device: str = "cpu",
    precision: str = AUTO,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> WhatIf:
    """Segment one patient from many subsets of the given scans, each scan encoded once.

    The crop is common to all subsets (the box around the head in all given scans), so the current
    subset gives exactly the labels of ``inference.segment`` when it is all of ``volumes``, and up
    to window effects otherwise.

    Args:
        volumes: every scan there is, by modality name.
        bundle: a loaded bundle.
        current: the scans that the current result was made from; None for all.
        subsets: what to try; None for every non-empty subset of ``volumes``. Subsets that the
            bundle has no network for are left out.
        reference: modality whose grid carries the results; None chooses as ``segment`` does.
        device: a torch device, or ``auto``.
        precision: as for ``inference.segment``.
        progress: called with a fraction in 0..1 and a text.
        cancel: asked before every step; True stops the run.

    Raises:
        UsageError, InputDataError: the inputs cannot be used as they are; or a subset names a scan
            that is not there.
        UnavailableError: the device is not there, or its memory does not suffice.
        Cancelled: ``cancel`` said so.
    """
    report = progress or ignore_progress
    stop = cancel or never_cancel
    task = bundle.task
    report(0.0, "checking the scans")
    volumes = in_task_order(volumes, task)
    check_inputs(volumes, task)
    plan = _plan(volumes, bundle, current, subsets)
    torch_device = resolve_device(device)
    report(0.05, "bringing the scans to one grid")
    prepared = prepare(
        volumes, task, bundle.preprocess, reference=reference, multiple=bundle.stride
    )
    collector = _Collector(prepared, bundle, plan)

    # Progress of the network and of the comparisons that follow each subset, in one number.
    network_fraction = 0.0

    def network_progress(fraction: float, text: str) -> None:
        nonlocal network_fraction
        network_fraction = fraction
        compared_fraction = len(collector.variants) / len(plan)
        report(0.1 + 0.7 * fraction + 0.2 * compared_fraction, text)

    windows = SlidingWindow(
        task, bundle.inference, bundle.stride, torch_device, network_progress, stop, precision
    )
    for positions, prediction in predictions(bundle, windows, prepared, plan):
        if stop():
            raise Cancelled()
        text = f"comparing {len(collector.variants) + 1} of {len(plan)}"
        network_progress(network_fraction, text)
        collector.add(positions, prediction)
    result = collector.result()
    report(1.0, "done")
    return result


def normalized_entropy(probability: Tensor) -> Tensor:
    """[C, *S] probabilities -> [*S] Shannon entropy / log C: 0 certain, 1 all classes alike."""
    entropy = torch.special.entr(probability).sum(0)
    largest = np.log(probability.shape[0])
    # Rounding may leave the interval by a hair.
    return entropy.div_(largest).clamp_(0, 1)


def _plan(
    volumes: Mapping[str, Volume],
    bundle: Bundle,
    current: Sequence[str] | None,
    subsets: Sequence[Sequence[str]] | None,
) -> list[tuple[str, ...]]:
    """The subsets to run, the current one first."""
    task = bundle.task
    if current is None:
        current = tuple(volumes)
    current_subset = _ordered(current, task)
    requested = list(subsets_of(list(volumes), task))
    mentioned = set(current)
    if subsets is not None:
        requested = [_ordered(subset, task) for subset in subsets]
        mentioned.update(*subsets)
    for name in mentioned:
        if task.index(name) >= 0 and name not in volumes:
            raise UsageError(
                f"A subset needs {task.modality(name).title}, but no such scan was given.",
                "Add the scan, or remove the modality from the subset.",
            )
    if not current_subset or not all(requested):
        raise UsageError("A subset names no modality.", "Name at least one modality.")
    trained = set(bundle.modalities)
    supported = []
    for subset in requested:
        if trained.issuperset(subset) and bundle.find_entry(subset):
            supported.append(subset)
    # Without repetitions, in order: the current subset may be requested, too.
    return list(dict.fromkeys([current_subset, *supported]))


def _ordered(names: Collection[str], task: Task) -> tuple[str, ...]:
    """The task's modalities among some names, in its order."""
    return tuple(name for name in task.modality_names if name in names)


class _Collector:
    """Compares one prediction after the other with the first, which is the current subset's.

    Attributes:
        variants: what has been compared, by position in the plan.
    """

    def __init__(self, prepared: Prepared, bundle: Bundle, plan: Sequence[tuple[str, ...]]):
        self.prepared = prepared
        self.task = bundle.task
        self.postprocess = bundle.postprocess
        self.plan = plan
        self.current = plan[0]
        self.variants: dict[int, Variant] = {}
        self.maps: dict[str, np.ndarray] = {}
        self.region_entropy: dict[str, float] = {}
        self.region_bits = _region_bits(bundle.task)

    def add(self, positions: Sequence[int], prediction: Prediction) -> None:
        """Compare the prediction that some of the subsets share with the current one."""
        labels = label_map(prediction, self.prepared, self.postprocess, self.task)
        if not self.variants:
            self._start(labels, prediction)
        # Nothing is compared where both label maps are background: most of the volume.
        occupied = (labels | self.labels) != 0
        box = bounding_box(occupied) or (slice(0, 0),) * 3
        bits = self.region_bits[labels[box]]
        current_bits = self.region_bits[self.labels[box]]
        self._count_differences(labels, box, bits ^ current_bits, len(positions))
        counts = self._counts(bits, current_bits)
        for position in positions:
            self.variants[position] = self._variant(self.plan[position], counts)

    def _count_differences(
        self, labels: np.ndarray, box: tuple[slice, ...], changed_bits: np.ndarray, count: int
    ) -> None:
        """Add a label map that ``count`` subsets share to the maps of disagreement."""
        differs = labels[box] != self.labels[box]
        # The first region's bit is the lowest one.
        region_differs = changed_bits & 1
        # Counts fit in bytes: eight modalities have 255 subsets.
        differing = differs.astype(np.uint8)
        region_differing = region_differs.astype(np.uint8)
        self.differing[box] += count * differing
        self.region_differing[box] += count * region_differing

    def _variant(self, subset: tuple[str, ...], counts: Mapping[str, _Counts]) -> Variant:
        voxel_ml = self.prepared.reference_grid.voxel_ml
        volumes_ml = {}
        change_ml = {}
        dice = {}
        for name, region in counts.items():
            change = region.voxels - region.current_voxels
            volumes_ml[name] = region.voxels * voxel_ml
            change_ml[name] = change * voxel_ml
            dice[name] = dice_of_counts(region.overlap, region.voxels, region.current_voxels)
        return Variant(
            key=self.task.subset_key(subset),
            modalities=subset,
            kind=_kind(subset, self.current),
            volumes_ml=volumes_ml,
            change_ml=change_ml,
            dice=dice,
        )

    def _counts(self, bits: np.ndarray, current_bits: np.ndarray) -> dict[str, _Counts]:
        """Voxels of each region, all counted in one pass over the voxels.

        The bits of both label maps together make a number per voxel; a histogram of these numbers
        has every overlap in it.
        """
        size = len(self.task.regions)
        # Low bits: regions of this result; high bits: regions of the current one.
        codes = bits | current_bits << size
        histogram = np.bincount(codes.ravel(), minlength=4**size)
        code = np.arange(histogram.size)
        counts = {}
        for n, region in enumerate(self.task.regions):
            inside = code >> n & 1 == 1
            inside_current = code >> (n + size) & 1 == 1
            in_both = inside & inside_current
            counts[region.name] = _Counts(
                voxels=int(histogram[inside].sum()),
                current_voxels=int(histogram[inside_current].sum()),
                overlap=int(histogram[in_both].sum()),
            )
        return counts

    def _start(self, labels: np.ndarray, prediction: Prediction) -> None:
        self.labels = labels
        self.differing = np.zeros(labels.shape, np.uint8)
        self.region_differing = np.zeros(labels.shape, np.uint8)
        working_entropy = self._entropy(prediction)
        entropy = self._on_reference(working_entropy)
        self.maps[ENTROPY] = entropy
        for name, mask in region_masks(labels, self.task).items():
            self.region_entropy[name] = float("nan")
            if mask.any():
                self.region_entropy[name] = float(entropy[mask].mean())

    def _entropy(self, prediction: Prediction) -> np.ndarray:
        """[D, H, W] entropy of the network's own probabilities.

        Low-confidence components are no part of the result, but uncertain is just what they are:
        the map shows them.
        """
        if prediction.suppressed is not None:
            excluded = prediction.excluded & ~prediction.suppressed
            prediction = replace(prediction, excluded=excluded)
        probability = probabilities(prediction, self.prepared, self.postprocess, self.task)
        return to_array(normalized_entropy(probability))

    def _on_reference(self, values: np.ndarray) -> np.ndarray:
        """[D, H, W] on the working grid -> [I, J, K] float32 on the reference grid; 0 outside."""
        orientation = self.prepared.orientation
        moved = to_array(to_grid(values, self.prepared.grid, orientation.canonical))
        return np.ascontiguousarray(orientation.restore(moved), dtype=np.float32)

    def result(self) -> WhatIf:
        """Everything that has been compared."""
        other_subsets = len(self.variants) - 1
        variants = [self.variants[position] for position in range(len(self.plan))]
        if other_subsets:
            differing = self.differing.astype(np.float32)
            region_differing = self.region_differing.astype(np.float32)
            self.maps[DISAGREEMENT] = differing / other_subsets
            self.maps[REGION_DISAGREEMENT] = region_differing / other_subsets
        return WhatIf(
            task=self.task,
            current=self.current,
            labels=self.labels,
            grid=self.prepared.reference_grid,
            reference=self.prepared.reference,
            variants=tuple(variants),
            maps=self.maps,
            region_entropy=self.region_entropy,
        )


@dataclass(frozen=True)
class _Counts:
    """Voxels of a region: in one label map, in the current one, and in both."""

    voxels: int
    current_voxels: int
    overlap: int


def _region_bits(task: Task) -> np.ndarray:
    """Label value -> one bit per region, for ``_Collector._counts``."""
    values = np.array(task.label_values())
    bits = np.zeros(values.max() + 1, np.uint16)
    masks = region_masks(values, task)
    for n, mask in enumerate(masks.values()):
        region_values = values[mask]
        bits[region_values] |= 1 << n
    return bits


def _kind(subset: Sequence[str], current: Sequence[str]) -> str:
    removed = set(current) - set(subset)
    added = set(subset) - set(current)
    if not removed and not added:
        return CURRENT
    if len(removed) == 1 and not added:
        return LEAVE_ONE_OUT
    if len(added) == 1 and not removed:
        return ADD_BACK
    return OTHER
