"""Segment one patient: the same code for panel, command line and tests.

Needs torch, numpy and safetensors only, so that it also runs inside Slicer.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medmap.bundle.loading import Bundle, Entry
from medmap.checks import Finding, check_coverage, check_inputs
from medmap.devices import AUTO, resolve_device
from medmap.metrics import region_volumes_ml
from medmap.networks import Backbone
from medmap.postprocess.prediction import Prediction, predict
from medmap.postprocess.reference_labels import label_map
from medmap.postprocess.region_probabilities import region_probabilities
from medmap.preparation.workflow import Preparation
from medmap.preprocess import Prepared, prepare
from medmap.progress import Cancel, Progress, ignore_progress, never_cancel
from medmap.provenance import Provenance, RunRecord, provenance_of
from medmap.sliding_window import SlidingWindow, full_window
from medmap.task import Task
from medmap.volume import Grid, Volume

IMPLAUSIBLE_SHARE = 0.33
"""Share of the brain from which a result is implausible: 95 % of 123 BraTS tumors, edema included,
are smaller than 194 ml, an eighth of a brain."""

LEAST_REPORTED_ML = 0.05
"""Suppressed volumes below this are not worth a warning."""


@dataclass(frozen=True)
class Segmentation:
    """A result.

    Attributes:
        labels: [I, J, K] label values of the task's files (BraTS: 0, 1, 2, 4) on the reference
            scan's grid, of ``Task.label_dtype``.
        grid: that grid.
        reference: name of the reference modality.
        volumes_ml: volume of each region in ml, from voxels.
        findings: what the checks and the run report.
        provenance: how the result was made.
        task: the bundle's task.
        preparation: brain extraction and alignment before the segmentation; None where none was
            asked for.
        probabilities: [I, J, K] float32 of each region on ``grid``, where they were asked for.
    """

    labels: np.ndarray
    grid: Grid
    reference: str
    volumes_ml: dict[str, float]
    findings: tuple[Finding, ...]
    provenance: Provenance
    task: Task
    preparation: Preparation | None = None
    probabilities: dict[str, np.ndarray] = field(default_factory=dict)


def segment(
    volumes: Mapping[str, Volume],
    bundle: Bundle,
    *,
    reference: str | None = None,
    device: str = "cpu",
    precision: str = AUTO,
    with_probabilities: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Segmentation:
    """Segment one patient from whatever scans there are.

    Args:
        volumes: scans by modality name; absent ones are simply not there.
        bundle: a loaded bundle.
        reference: modality whose grid carries the result; None takes the finest, T1ce among equals.
        device: a torch device, or ``auto``.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the device computes it, in half the
            time (Dice of the labels with those of fp32 about .998, unchanged against experts).
        with_probabilities: also return the probability of each region.
        progress: called with the completed fraction and a text.
        cancel: asked before every window; True stops the run.

    Raises:
        UsageError, InputDataError: the inputs cannot be used as they are.
        UnavailableError: the device does not exist, or its memory does not suffice.
        Cancelled: ``cancel`` returned True.
    """
    started = time.perf_counter()
    report = progress or ignore_progress
    task = bundle.task
    report(0.0, "checking the scans")
    volumes = in_task_order(volumes, task)
    findings = list(check_inputs(volumes, task))
    entry = bundle.entry_for(volumes)
    findings += unused_warnings(volumes, task, entry)
    findings += absence_warnings(entry.modalities, task)
    torch_device = resolve_device(device)
    report(0.05, "bringing the scans to one grid")
    prepared = prepare(
        volumes, task, bundle.preprocess, reference=reference, multiple=bundle.stride
    )
    findings += check_coverage(volumes, prepared.reference, task)
    scan_names = {name: volume.name for name, volume in volumes.items()}
    # From here on the prepared case suffices. Four scans and their masks take 170 MiB, which the
    # network can use where the caller has no use for them either.
    del volumes
    windows = SlidingWindow(
        task,
        bundle.inference,
        bundle.stride,
        torch_device,
        lambda fraction, text: report(0.15 + 0.75 * fraction, text),
        cancel or never_cancel,
        precision,
    )
    logits = next(windows.logits(entry.network, prepared, [entry.modalities]))
    prediction = predict(
        logits,
        prepared,
        entry.modalities,
        task,
        bundle.postprocess,
        bundle.confidence,
        bundle.offsets,
    )
    report(0.92, "returning to the reference scan's grid")
    labels = label_map(prediction, prepared, bundle.postprocess, task)
    probabilities = {}
    if with_probabilities:
        probabilities = region_probabilities(prediction, prepared, bundle.postprocess, task)
    if windows.window != full_window(bundle.inference, prepared):
        findings.append(_memory_warning(windows.window))
    volumes_ml = region_volumes_ml(labels, task, prepared.reference_grid.voxel_ml)
    findings += suppression_warnings(prediction.suppressed_ml, task)
    brain_ml = float(prepared.brain.sum()) * prepared.grid.voxel_ml
    findings += plausibility_warnings(volumes_ml, brain_ml, task)
    if not labels.any():
        findings.append(_empty_warning(task))
    run = RunRecord(
        device=str(torch_device),
        precision=windows.used_precision,
        window=windows.window,
        working_shape=prepared.grid.shape,
        working_spacing_mm=bundle.preprocess.spacing,
        slices=bundle.preprocess.slices,
        suppressed_ml=round(prediction.suppressed_ml, 2),
        seconds=round(time.perf_counter() - started, 2),
    )
    report(1.0, "done")
    return Segmentation(
        labels=labels,
        grid=prepared.reference_grid,
        reference=prepared.reference,
        volumes_ml=volumes_ml,
        findings=tuple(findings),
        provenance=provenance_of(bundle, scan_names, entry, findings, prepared.reference, run),
        task=task,
        probabilities=probabilities,
    )


def segment_subsets(
    volumes: Mapping[str, Volume],
    bundle: Bundle,
    subsets: Sequence[Sequence[str]],
    *,
    reference: str | None = None,
    device: str = "cpu",
    precision: str = AUTO,
) -> dict[str, np.ndarray]:
    """Label maps of one patient for many subsets of the given scans, each scan encoded once.

    The crop is common to all subsets: the box around the brain in all given scans. The other
    arguments are those of ``segment``.

    Returns:
        [I, J, K] label values by ``Task.subset_key``, on the reference scan's grid.
    """
    task = bundle.task
    check_inputs(volumes, task)
    prepared = prepare(
        volumes, task, bundle.preprocess, reference=reference, multiple=bundle.stride
    )
    windows = SlidingWindow(
        task, bundle.inference, bundle.stride, resolve_device(device), precision=precision
    )
    keys = [task.subset_key(subset) for subset in subsets]
    labels: dict[str, np.ndarray] = {}
    for positions, prediction in predictions(bundle, windows, prepared, subsets):
        shared = label_map(prediction, prepared, bundle.postprocess, task)
        for position in positions:
            labels[keys[position]] = shared
    return {key: labels[key] for key in keys}


@dataclass(frozen=True)
class _EntryPlan:
    """One network of a bundle: the subsets that it decodes, and who asked for each of them."""

    network: Backbone
    positions: dict[tuple[str, ...], list[int]]


def predictions(
    bundle: Bundle,
    windows: SlidingWindow,
    prepared: Prepared,
    subsets: Sequence[Sequence[str]],
) -> Iterator[tuple[list[int], Prediction]]:
    """One prediction after the other, so that fifteen subsets need not be held in memory at once.

    Each subset gets the bundle's entry for it; subsets of which an entry takes the same modalities
    share one prediction.

    Yields:
        Positions in ``subsets``, and their prediction. The first subset is among the first.

    Raises:
        BundleError: the bundle is not made for one of the subsets.
        UnavailableError: even small windows do not fit into memory.
    """
    plans: dict[str, _EntryPlan] = {}
    for position, subset in enumerate(subsets):
        entry = bundle.entry_for(subset)
        plan = plans.setdefault(entry.name, _EntryPlan(entry.network, {}))
        plan.positions.setdefault(entry.modalities, []).append(position)
    for number, plan in enumerate(plans.values()):
        windows.report_share(number / len(plans), 1 / len(plans))
        decoded = list(plan.positions)
        for subset, logits in zip(
            decoded, windows.logits(plan.network, prepared, decoded), strict=True
        ):
            prediction = predict(
                logits,
                prepared,
                subset,
                bundle.task,
                bundle.postprocess,
                bundle.confidence,
                bundle.offsets,
            )
            yield plan.positions[subset], prediction


def in_task_order(volumes: Mapping[str, Volume], task: Task) -> dict[str, Volume]:
    """The scans in the task's order of modalities; names that the task does not know come last."""
    ordered = {name: volumes[name] for name in task.modality_names if name in volumes}
    return ordered | dict(volumes)


def unused_warnings(names: Iterable[str], task: Task, entry: Entry) -> list[Finding]:
    """Warn of scans that no network of the bundle uses in this combination."""
    unused = [name for name in names if name not in entry.modalities]
    if not unused:
        return []
    message = (
        "The bundle has no network for exactly this modality subset: the one for "
        f"{task.titles(entry.modalities)} was used, and {task.titles(unused)} was not."
    )
    return [Finding("warning", "entry", message)]


def absence_warnings(names: Collection[str], task: Task) -> list[Finding]:
    """What a reader of the result must know about the modalities that are missing."""
    warnings = []
    for modality in task.modalities:
        if modality.name not in names and modality.warning_if_absent:
            remedy = f"Add {modality.title} if available."
            warnings.append(
                Finding("warning", "missing-modality", modality.warning_if_absent, remedy)
            )
    return warnings


def suppression_warnings(suppressed_ml: float, task: Task) -> list[Finding]:
    """Warn of low-confidence components that were removed from the result."""
    if suppressed_ml < LEAST_REPORTED_ML:
        return []
    message = (
        f"{suppressed_ml:.1f} ml of low-confidence candidate {task.target} "
        "was removed from the result."
    )
    remedy = "Review the scans: a faint tumor may have been removed. Another modality may help."
    return [Finding("warning", "low-confidence", message, remedy)]


def plausibility_warnings(
    volumes_ml: Mapping[str, float], brain_ml: float, task: Task
) -> list[Finding]:
    """Warn of a tumor that takes up more of the brain than tumors do.

    Args:
        volumes_ml: of each region.
        brain_ml: volume of the brain that the scans show.
        task: nothing is reported for organs other than the brain.
    """
    if task.organ != "brain" or not task.skull_stripped or brain_ml <= 0:
        return []
    share = max(volumes_ml.values()) / brain_ml
    if share < IMPLAUSIBLE_SHARE:
        return []
    message = (
        f"The result is implausible: {task.target} fills {share:.0%} "
        "of the brain that the scans show."
    )
    remedy = (
        "Check that the scans are skull-stripped, aligned, and in the slots of their modalities, "
        "and that nothing but background surrounds the brain."
    )
    return [Finding("warning", "implausible", message, remedy)]


def _memory_warning(window: Sequence[int]) -> Finding:
    size = " x ".join(map(str, window))
    message = f"Memory sufficed only for windows of {size} voxels; labels may differ slightly."
    return Finding("warning", "memory", message, "Free memory on the device, or use the CPU.")


def _empty_warning(task: Task) -> Finding:
    message = f"No {task.target} was found."
    return Finding("warning", "result", message, "Review the scans yourself.")
