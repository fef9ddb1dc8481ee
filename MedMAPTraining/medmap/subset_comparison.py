"""What if a scan had been missing, or one more had been there? And where is the result uncertain?

Every scan is encoded once and decoded for every subset, by the same ``inference.Run`` that ``segment`` uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from medmap.bundle.loading import Bundle
from medmap.checks import check_inputs
from medmap.devices import resolve_device
from medmap.errors import Cancelled, UsageError
from medmap.foreground import bounding_box
from medmap.inference import Run
from medmap.metrics import region_masks
from medmap.postprocess import label_map, probabilities
from medmap.preprocess import Prepared, prepare, to_grid
from medmap.progress import Cancel, Progress, ignore_progress, never_cancel
from medmap.resampling import canonical_grid, restore_orientation
from medmap.task import Task
from medmap.volume import Grid, Volume

CURRENT, LEAVE_ONE_OUT, ADD_BACK, OTHER = "current", "leave-one-out", "add-back", "other"
ENTROPY, DISAGREEMENT, REGION_DISAGREEMENT = "entropy", "disagreement", "region disagreement"
"""Names of the uncertainty maps."""


@dataclass(frozen=True)
class Variant:
    """The result that one subset of the scans would have given.

    Attributes:
        key: ``Task.subset_key`` of the subset.
        modalities: the subset, in task order.
        kind: ``current``, ``leave-one-out`` (the current subset without one), ``add-back`` (with one more), ``other``.
        volumes_ml: volume of each region in ml.
        change_ml: that minus the current result's volume.
        dice: agreement of each region with the current result; both empty counts as 1 (see ``medmap.metrics``).
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
        maps: name -> [I, J, K] float32 in 0..1 on ``grid``. ``entropy``: -sum p log p / log C of the current subset's
            class probabilities (Shannon, normalized; 0 certain, 1 all classes alike). ``disagreement``: share of the
            other subsets that give the voxel another label. ``region disagreement``: share of the other subsets that
            differ about the task's first region (BraTS: WT). The latter two are absent when there is no other subset.
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
    names = [n for n in task.modality_names if n in set(names)]
    return tuple(c for size in range(len(names), 0, -1) for c in combinations(names, size))


def one_step(
    current: Sequence[str], available: Sequence[str], task: Task
) -> tuple[tuple[str, ...], ...]:
    """The current subset, every subset with one scan less, and every one with one more of those available."""
    current = set(current)
    steps = [
        current,
        *(current - {n} for n in current),
        *(current | {n} for n in set(available) - current),
    ]
    return tuple(s for s in subsets_of({*available, *current}, task) if set(s) in steps)


def what_if(
    volumes: Mapping[str, Volume],
    bundle: Bundle,
    *,
    current: Sequence[str] | None = None,
    subsets: Sequence[Sequence[str]] | None = None,
    reference: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> WhatIf:
    """Segment one patient from many subsets of the given scans, each scan encoded once.

    The crop is common to all subsets (the box around the head in all given scans), so the current subset gives exactly
    the labels of ``inference.segment`` when it is all of ``volumes``, and up to window effects otherwise.

    Args:
        volumes: every scan there is, by modality name.
        bundle: a loaded bundle.
        current: the scans that the current result was made from; None for all.
        subsets: what to try; None for every non-empty subset of ``volumes``. Subsets that the bundle has no
            network for are left out.
        reference: modality whose grid carries the results; None chooses as ``segment`` does.
        device: a torch device, or ``auto``.
        progress: called with a fraction in 0..1 and a text.
        cancel: asked before every step; True stops the run.

    Raises:
        UsageError, InputDataError: the inputs cannot be used as they are; or a subset names a scan that is not there.
        UnavailableError: the device is not there, or its memory does not suffice.
        Cancelled: ``cancel`` said so.
    """
    report = progress or ignore_progress
    stop = cancel or never_cancel
    report(0.0, "checking the scans")
    task = bundle.task
    volumes = {name: volumes[name] for name in task.modality_names if name in volumes} | dict(
        volumes
    )
    check_inputs(volumes, task)
    wanted = _plan(volumes, bundle, current, subsets)
    place = resolve_device(device)
    report(0.05, "bringing the scans to one grid")
    prepared = prepare(
        volumes, task, bundle.preprocess, reference=reference, multiple=bundle.stride
    )
    collector, share = _Collector(prepared, bundle, wanted), [0.0]

    def computed(fraction: float, text: str) -> None:
        share[0] = fraction
        report(0.1 + 0.7 * fraction + 0.2 * len(collector.found) / len(wanted), text)

    for positions, logits in Run(bundle, place, computed, stop).each(prepared, wanted):
        if stop():
            raise Cancelled()
        computed(share[0], f"comparing {len(collector.found) + 1} of {len(wanted)}")
        collector.add(positions, logits)
    result = collector.result()
    report(1.0, "done")
    return result


def normalized_entropy(probability: Tensor) -> Tensor:
    """[C, *S] probabilities -> [*S] Shannon entropy divided by log C: 0 certain, 1 all classes alike."""
    return torch.special.entr(probability).sum(0).div_(np.log(probability.shape[0])).clamp_(0, 1)


def _plan(volumes, bundle: Bundle, current, subsets) -> list[tuple[str, ...]]:
    """What to run, the current subset first."""
    task = bundle.task
    order = task.modality_names
    first = tuple(n for n in order if n in (volumes if current is None else current))
    asked = (
        subsets_of(volumes, task)
        if subsets is None
        else [tuple(n for n in order if n in s) for s in subsets]
    )
    for name in {n for s in (subsets or ()) for n in s} | set(current or ()):
        if task.index(name) >= 0 and name not in volumes:
            title = task.modality(name).title
            raise UsageError(
                f"A subset needs {title}, but no such scan was given.", "Give it, or leave it out."
            )
    if not first or not all(asked):
        raise UsageError("A subset names no scan.", "Name at least one modality.")
    fitting = [s for s in asked if bundle.find_entry(s)]
    return list(dict.fromkeys([first, *fitting]))


class _Collector:
    """Takes the logits of one subset after the other, the current one, which is the first wanted, first."""

    def __init__(self, prepared: Prepared, bundle: Bundle, wanted: Sequence[tuple[str, ...]]):
        task = bundle.task
        self.prepared, self.task, self.postprocess, self.wanted = (
            prepared,
            task,
            bundle.postprocess,
            wanted,
        )
        values = np.array(task.label_values())
        # Label value -> one bit a region, so that one pass over the voxels counts all overlaps at once.
        self.bits = np.zeros(values.max() + 1, np.uint16)
        for n, mask in enumerate(region_masks(values, task).values()):
            self.bits[values[mask]] |= 1 << n
        self.current = wanted[0]
        self.found: dict[int, Variant] = {}
        self.maps: dict[str, np.ndarray] = {}
        self.region_entropy: dict[str, float] = {}

    def add(self, positions: Sequence[int], logits: Tensor) -> None:
        """Compare what some of the subsets share with the current one."""
        labels = label_map(logits, self.prepared, self.postprocess, self.task)
        if not self.found:
            self._start(labels, probabilities(logits, self.prepared, self.postprocess, self.task))
        box = bounding_box((labels | self.labels) != 0) or (slice(0, 0),) * 3
        ours, before = self.bits[labels[box]], self.bits[self.labels[box]]
        self.differing[box] += len(positions) * (labels[box] != self.labels[box]).astype(np.uint8)
        self.region_differing[box] += len(positions) * ((ours ^ before) & 1).astype(np.uint8)
        volumes, change, score = {}, {}, {}
        for name, (mine, theirs, common) in self._counts(ours, before).items():
            ml = self.prepared.reference_grid.voxel_ml
            volumes[name], change[name] = mine * ml, (mine - theirs) * ml
            score[name] = (
                2.0 * common / (mine + theirs) if mine + theirs else 1.0
            )  # as metrics.dice
        for n in positions:
            subset = self.wanted[n]
            kind = _kind(subset, self.current)
            self.found[n] = Variant(
                self.task.subset_key(subset), subset, kind, volumes, change, score
            )

    def _counts(self, ours: np.ndarray, before: np.ndarray) -> dict[str, tuple[int, int, int]]:
        """Voxels of each region in ours, in the other, and in both."""
        size = len(self.task.regions)
        table = np.bincount((ours | before << size).ravel(), minlength=4**size)
        code = np.arange(table.size)
        counts = {}
        for n, region in enumerate(self.task.regions):
            mine, theirs = code >> n & 1 == 1, code >> (n + size) & 1 == 1
            counts[region.name] = tuple(int(table[m].sum()) for m in (mine, theirs, mine & theirs))
        return counts

    def _start(self, labels: np.ndarray, probability: Tensor) -> None:
        self.labels = labels
        self.differing, self.region_differing = (
            np.zeros(labels.shape, np.uint8),
            np.zeros(labels.shape, np.uint8),
        )
        entropy = self._on_reference(normalized_entropy(probability).numpy())
        self.maps[ENTROPY] = entropy
        masks = region_masks(labels, self.task)
        self.region_entropy = {
            n: float(entropy[m].mean()) if m.any() else float("nan") for n, m in masks.items()
        }

    def _on_reference(self, values: np.ndarray) -> np.ndarray:
        """[D, H, W] on the working grid -> [I, J, K] float32 on the reference grid; 0 outside."""
        reference = self.prepared.reference_grid
        moved = to_grid(values, self.prepared.grid, canonical_grid(reference)).numpy()
        return np.ascontiguousarray(restore_orientation(moved, reference), dtype=np.float32)

    def result(self) -> WhatIf:
        """Everything that came in."""
        others = len(self.found) - 1
        if others:
            self.maps[DISAGREEMENT] = self.differing.astype(np.float32) / others
            self.maps[REGION_DISAGREEMENT] = self.region_differing.astype(np.float32) / others
        return WhatIf(
            task=self.task,
            current=self.current,
            labels=self.labels,
            grid=self.prepared.reference_grid,
            reference=self.prepared.reference,
            variants=tuple(self.found[n] for n in range(len(self.wanted))),
            maps=self.maps,
            region_entropy=self.region_entropy,
        )


def _kind(subset: Sequence[str], current: Sequence[str]) -> str:
    less, more = set(current) - set(subset), set(subset) - set(current)
    if not less and not more:
        return CURRENT
    if len(less) == 1 and not more:
        return LEAVE_ONE_OUT
    return ADD_BACK if len(more) == 1 and not less else OTHER
