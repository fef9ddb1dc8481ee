"""The preparation of one case, without files: volumes in, prepared volumes and steps out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from medmap.checks import Finding
from medmap.errors import Cancelled, InputDataError
from medmap.preparation import registration
from medmap.preparation.availability import simple_itk_is_installed
from medmap.preparation.brain_extraction import (
    BORROWED,
    CONTRASTS,
    GIVEN,
    METHODS,
    OTHER_CONTRAST,
    BrainMask,
    apply_mask,
    extract_brain,
)
from medmap.preparation.fusion import Ballot, fuse_masks
from medmap.preparation.misalignment import measure_misalignment
from medmap.preparation.plan import MISALIGNED_MM, Mode, PreparationPlan, plan_preparation
from medmap.progress import Cancel, Progress, ignore_progress, never_cancel
from medmap.resampling import resample_nearest
from medmap.task import Task
from medmap.volume import Grid, Volume

TRUSTED_WEIGHT = 10.0
"""Vote of a mask that was made elsewhere, or of a scan that was stripped elsewhere: it decides."""

BORROWED_WEIGHT = 0.01
"""Vote of a mask that was borrowed before the alignment: it decides nothing, but covers its
grid."""

EXTRACTION = "brain extraction"
ALIGNMENT = "alignment"


@dataclass(frozen=True)
class Step:
    """One step of a preparation, as it was carried out.

    Attributes:
        kind: ``EXTRACTION`` or ``ALIGNMENT``.
        modality: name of the scan.
        method: how it was done.
        is_applied: False where a step was tried and its result rejected.
        summary: the outcome in one sentence.
        figures: measurements by name, units in the name.
        seconds: run time.
    """

    kind: str
    modality: str
    method: str
    is_applied: bool
    summary: str
    figures: dict[str, float]
    seconds: float

    def to_dict(self) -> dict:
        """JSON-ready form."""
        return {
            "step": self.kind,
            "modality": self.modality,
            "method": self.method,
            "applied": self.is_applied,
            "summary": self.summary,
            "figures": dict(self.figures),
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class Preparation:
    """Outcome of preparing one case.

    Attributes:
        volumes: by modality; scans that needed nothing are the same objects. The reference has its
            own grid, aligned scans have their own voxels and a moved affine.
        plan: the steps that were planned.
        steps: the steps that were carried out, in order.
        masks: [I, J, K] bool brain of the scans from which it was extracted.
        movements: [4, 4] rigid motion in world RAS, mm, of the scans that were moved.
        seconds: run time of all steps.
        mode: what was asked for.
        is_reused: the steps were carried out for an earlier run, whose outcome serves again.
    """

    volumes: dict[str, Volume]
    plan: PreparationPlan
    steps: tuple[Step, ...] = ()
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    movements: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0
    mode: Mode = "auto"
    is_reused: bool = False

    def to_dict(self) -> dict:
        """JSON-ready form for reports."""
        movements = {name: matrix.round(6).tolist() for name, matrix in self.movements.items()}
        return {
            "mode": self.mode,
            "reference": self.plan.reference,
            "steps": [step.to_dict() for step in self.steps],
            "movements_world_ras_mm": movements,
            "seconds": round(self.seconds, 2),
            "reused": self.is_reused,
        }


def prepare_case(
    volumes: Mapping[str, Volume],
    task: Task,
    mode: Mode = "auto",
    *,
    reference: str | None = None,
    brain_masks: Mapping[str, Volume] | None = None,
    method: str | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Preparation:
    """Plan the preparation of one case and carry it out; ``seconds`` counts both.

    Args:
        volumes, task, mode, reference: as for ``plan_preparation``.
        brain_masks, method, progress, cancel: as for ``prepare_scans``.

    Raises:
        As both.
    """
    started = time.perf_counter()
    masked = tuple(brain_masks or ())
    plan = plan_preparation(volumes, task, mode, reference=reference, masked=masked)
    preparation = prepare_scans(
        volumes,
        task,
        plan,
        brain_masks=brain_masks,
        method=method,
        progress=progress,
        cancel=cancel,
    )
    return replace(preparation, seconds=time.perf_counter() - started, mode=mode)


def prepare_scans(
    volumes: Mapping[str, Volume],
    task: Task,
    plan: PreparationPlan,
    *,
    brain_masks: Mapping[str, Volume] | None = None,
    method: str | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> Preparation:
    """Carry out a plan: extract brains, align scans to the reference, and let the masks vote.

    Each scan with a skull gets its own mask first. Aligned scans then vote on each other's masks,
    so that all show the same brain. No voxel is interpolated: alignment changes affines, and the
    reference stays where it is.

    Args:
        volumes: scans by modality name.
        task: for the titles of modalities in messages.
        plan: from ``plan_preparation``, possibly edited.
        brain_masks: masks made elsewhere, by modality, on any grid; positive is brain.
        method: name in ``METHODS`` for every scan; None takes the default of each contrast.
        progress: called with the completed fraction and a text.
        cancel: asked before every step; True stops the run.

    Raises:
        UnavailableError: a step needs what is not installed.
        InputDataError: no brain was found in a scan.
        Cancelled: ``cancel`` returned True.
    """
    if plan.is_empty:
        return Preparation(dict(volumes), plan)
    started = time.perf_counter()
    # In the task's order: sums of votes do not depend on the order in which scans are given.
    scans = {name: volumes[name] for name in task.modality_names if name in volumes}
    run = _Run(scans, task, plan, progress or ignore_progress, cancel or never_cancel)
    masks_by_name = brain_masks or {}
    # Scans with a mask first: the others may borrow it.
    extraction_order = sorted(plan.extract, key=lambda name: name not in masks_by_name)
    for name in extraction_order:
        run.extract(name, masks_by_name.get(name), method)
    for name in plan.align:
        run.align(name)
    run.fuse()
    return Preparation(
        volumes=run.prepared(),
        plan=plan,
        steps=tuple(run.steps),
        masks=run.masks,
        movements=run.movements,
        seconds=time.perf_counter() - started,
    )


class _Run:
    """A preparation under way."""

    def __init__(
        self,
        volumes: dict[str, Volume],
        task: Task,
        plan: PreparationPlan,
        progress: Progress,
        cancel: Cancel,
    ):
        self.volumes = volumes
        self.task = task
        self.plan = plan
        self.progress = progress
        self.cancel = cancel
        self.steps: list[Step] = []
        self.masks: dict[str, np.ndarray] = {}
        self.movements: dict[str, np.ndarray] = {}
        self.notes: dict[str, list[Finding]] = {}
        self.given: set[str] = set()
        self.borrowed: set[str] = set()
        self.apart: set[str] = set()

    def extract(self, name: str, given: Volume | None, method: str | None) -> None:
        """Mask of one scan."""
        title = self.task.modality(name).title
        self._begin(f"extracting the brain from {title}")
        volume = self.volumes[name]
        lender = self._lender(method)
        if given is not None:
            brain = _given_mask(given, volume, title)
            self.given.add(name)
        elif lender is not None:
            lender_grid = self.volumes[lender].grid
            brain = _borrowed_mask(self._brain(lender), lender_grid, volume, title)
            self.borrowed.add(name)
        else:
            brain = extract_brain(volume, name, method=method, keeps_stripped=False)
        self.masks[name] = brain.mask
        step = Step(
            kind=EXTRACTION,
            modality=name,
            method=brain.method,
            is_applied=True,
            summary=f"The brain in {title} has {brain.volume_ml:.0f} ml ({brain.method}).",
            figures={"brain_ml": round(brain.volume_ml, 1)},
            seconds=brain.seconds,
        )
        self._record(step, "info")

    def align(self, name: str) -> None:
        """Motion of one scan to the reference."""
        title = self.task.modality(name).title
        self._begin(f"aligning {title}")
        if not simple_itk_is_installed():
            self._measure_only(name, title)
            return
        reference = self.plan.reference
        moving_mask: np.ndarray | None = self._brain(name)
        if name in self.borrowed or reference in self.borrowed:
            # A borrowed mask says where the lender's brain is, not where this one is.
            moving_mask = None
        result = registration.register(
            self.volumes[reference],
            self.volumes[name],
            self._brain(reference),
            moving_mask,
            threads=torch.get_num_threads(),
        )
        level: Literal["info", "warning"] = "info"
        if result.is_accepted:
            self.movements[name] = result.movement
        elif not result.is_unchanged:
            self.apart.add(name)
            level = "warning"
        onto = self.task.modality(reference).title
        step = Step(
            kind=ALIGNMENT,
            modality=name,
            method="SimpleITK",
            is_applied=result.is_accepted,
            summary=_alignment_summary(result, title, onto),
            figures=result.figures(),
            seconds=result.seconds,
        )
        self._record(step, level)

    def fuse(self) -> None:
        """Let the masks of aligned scans vote; scans that could not be aligned keep their own."""
        if not self.masks or len(self.volumes) < 2:
            return
        self.progress(0.95, "comparing the brain masks")
        ballots = {}
        for name in self.volumes:
            if name in self.apart:
                continue
            is_trusted = name not in self.masks or name in self.given
            weight = CONTRASTS.get(name, OTHER_CONTRAST).weight
            if is_trusted:
                weight = TRUSTED_WEIGHT
            elif name in self.borrowed:
                weight = BORROWED_WEIGHT
            ballots[name] = Ballot(self._brain(name), self._moved_grid(name), weight)
        for name, mask in fuse_masks(ballots).items():
            if name in self.masks and name not in self.given:
                self.masks[name] = mask

    def prepared(self) -> dict[str, Volume]:
        """The scans after all steps."""
        result = {}
        for name, volume in self.volumes.items():
            mask = self.masks.get(name)
            array = volume.array
            if mask is not None:
                array = apply_mask(volume, mask)
            is_moved = name in self.movements
            # An untouched scan stays the same object, with what was computed from it.
            if array is volume.array and not is_moved and name not in self.notes:
                result[name] = volume
                continue
            notes = (*volume.notes, *self.notes.get(name, ()))
            affine = self._moved_grid(name).affine
            result[name] = replace(volume, array=array, affine=affine, notes=notes)
        return result

    def _begin(self, text: str) -> None:
        """Report the next step, and stop before it if asked to."""
        if self.cancel():
            raise Cancelled()
        step_count = len(self.plan.extract) + len(self.plan.align)
        # The last 5 % are the fusion of the masks.
        fraction = 0.95 * len(self.steps) / step_count
        self.progress(fraction, text)

    def _record(self, step: Step, level: Literal["info", "warning"]) -> None:
        self.steps.append(step)
        remedy = ""
        if level == "warning":
            remedy = "Look at the alignment, align the scan yourself, or leave it out."
        finding = Finding(level, step.kind, step.summary, remedy, (step.modality,))
        self.notes.setdefault(step.modality, []).append(finding)

    def _measure_only(self, name: str, title: str) -> None:
        """Without SimpleITK: go on where a scan lies on the reference, refuse where it does not.

        Raises UnavailableError.
        """
        started = time.perf_counter()
        reference = self.plan.reference
        onto = self.task.modality(reference).title
        misalignment = measure_misalignment(
            self.volumes[reference], self.volumes[name], self._brain(reference)
        )
        if misalignment.mm > MISALIGNED_MM:
            raise registration.unavailable(title, onto, misalignment.mm)
        step = Step(
            ALIGNMENT,
            name,
            "measured only",
            False,
            f"{title} lies on {onto} within the {MISALIGNED_MM:g} mm that can be measured.",
            {"displacement_mm": round(misalignment.mm, 1)},
            time.perf_counter() - started,
        )
        self._record(step, "info")

    def _lender(self, method: str | None) -> str | None:
        """A scan with a mask from elsewhere, from which scans without one borrow it; None to
        extract.

        Masks that the user gives come first. A scan that was stripped elsewhere lends its brain
        where no method of extraction is installed.
        """
        if self.given:
            return next(name for name in self.plan.extract if name in self.given)
        if method is not None:
            return None
        if any(entry.is_available() for entry in METHODS.values()):
            return None
        for name in self.volumes:
            if name not in self.plan.extract:
                return name
        return None

    def _brain(self, name: str) -> np.ndarray:
        if name in self.masks:
            return self.masks[name]
        return self.volumes[name].foreground

    def _moved_grid(self, name: str) -> Grid:
        volume = self.volumes[name]
        if name not in self.movements:
            return volume.grid
        affine = self.movements[name] @ volume.affine
        return Grid(volume.grid.shape, affine)


def _alignment_summary(result: registration.Registration, title: str, onto: str) -> str:
    """What became of one scan's alignment, as a sentence."""
    if result.is_accepted:
        return (
            f"{title} was moved by {result.displacement_mm:.1f} mm "
            f"({result.degrees:.1f} degrees) onto {onto}."
        )
    if result.is_unchanged:
        return f"{title} lies on {onto} already: {result.reason}."
    return f"{title} was not aligned to {onto}: {result.reason}."


def _borrowed_mask(brain: np.ndarray, grid: Grid, volume: Volume, title: str) -> BrainMask:
    """Another scan's mask on a scan's grid, by scanner coordinates.

    The vote after the alignment corrects it. Raises InputDataError if it misses the scan.
    """
    started = time.perf_counter()
    resampled = resample_nearest(brain.astype(np.uint8), grid, volume.grid)
    mask = resampled > 0
    if not mask.any():
        raise InputDataError(
            f"The brain mask does not overlap {title}.", "Use the mask of this patient's scan."
        )
    volume_ml = float(np.count_nonzero(mask)) * volume.grid.voxel_ml
    seconds = time.perf_counter() - started
    return BrainMask(mask, BORROWED, volume_ml, seconds)


def _given_mask(given: Volume, volume: Volume, title: str) -> BrainMask:
    """A mask made elsewhere, on a scan's grid. Raises InputDataError if it misses the scan."""
    started = time.perf_counter()
    mask = (given.array > 0).astype(np.uint8)
    # By nearest neighbors: a mask has no values in between.
    if given.grid.distance(volume.grid) > 0:
        mask = resample_nearest(mask, given.grid, volume.grid)
    volume_ml = float(np.count_nonzero(mask)) * volume.grid.voxel_ml
    if not mask.any():
        raise InputDataError(
            f"The brain mask does not overlap {title}.", "Use the mask of this patient's scan."
        )
    return BrainMask(mask > 0, GIVEN, volume_ml, time.perf_counter() - started)
