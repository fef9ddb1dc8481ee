"""Which preparation the scans of a case need.

numpy only: the panel shows the plan before PyTorch is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medmap.checks import SAME_GRID_VOXELS, brain_overlap, check_array, check_contrast
from medmap.errors import UsageError
from medmap.preparation.misalignment import measure_misalignment
from medmap.preparation.skull import has_skull
from medmap.task import Task
from medmap.volume import Volume, choose_reference

Mode = Literal["auto", "always", "never"]
MODES: tuple[Mode, ...] = ("auto", "always", "never")


def preparation_mode(word: str) -> Mode:
    """The mode of that name. Raises UsageError if there is none."""
    for mode in MODES:
        if word == mode:
            return mode
    raise UsageError(
        f"The preparation mode '{word}' does not exist.", f"Use one of {', '.join(MODES)}."
    )


SAME_BRAIN = 0.97
"""Share of the smaller brain that lies in the other one from which two stripped scans
count as aligned without a measurement. A displacement of 1 mm costs about 0.01."""

MISALIGNED_MM = 2.0
"""Stripped scans that lie closer count as aligned: the measurement is good to about 1 mm, and the
model is trained with residual displacements of this size."""


@dataclass(frozen=True)
class PreparationPlan:
    """The steps that a case needs; edit it with ``dataclasses.replace`` to skip some.

    Attributes:
        reference: modality that stays as it is in space; the label map lies on its grid.
        extract: modalities from which the brain is extracted.
        align: modalities that are aligned to the reference.
    """

    reference: str
    extract: tuple[str, ...] = ()
    align: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing needs doing."""
        return not self.extract and not self.align

    def text(self, task: Task) -> str:
        """The steps in words, as ``brain extraction of T1, T2; alignment of T2``; "" for none."""
        steps = []
        if self.extract:
            steps.append(f"brain extraction of {task.titles(self.extract)}")
        if self.align:
            steps.append(f"alignment of {task.titles(self.align)}")
        return "; ".join(steps)


def plan_preparation(
    volumes: Mapping[str, Volume],
    task: Task,
    mode: Mode = "auto",
    *,
    reference: str | None = None,
    masked: Collection[str] = (),
) -> PreparationPlan:
    """Find out what the scans of one case lack.

    Brain extraction is for scans that show a skull. A scan is aligned if it or the reference shows
    a skull, for then nobody has aligned them yet; or if both are stripped and lie apart,
    measurably.

    Args:
        volumes: scans by modality name.
        task: nothing is prepared for tasks whose scans are not skull-stripped.
        mode: ``auto`` plans what is missing, ``always`` both steps for every scan, ``never``
            nothing.
        reference: modality whose grid carries the result; None chooses as ``choose_reference``
            does.
        masked: modalities whose brain mask is given.

    Raises:
        UsageError: the mode is something else, or the reference is not among the scans.
        InputDataError: a scan cannot be used at all.
    """
    preparation_mode(mode)
    if not volumes:
        raise UsageError("No image was given.", "Give at least one modality.")
    if reference is None:
        reference = choose_reference({name: volume.grid for name, volume in volumes.items()})
    if reference not in volumes:
        raise UsageError(
            f"The reference '{reference}' is not among the given scans.",
            f"Choose one of {', '.join(volumes)}.",
        )
    if mode == "never" or not task.skull_stripped or task.organ != "brain":
        return PreparationPlan(reference)
    check_array(dict(volumes), task)
    check_contrast(dict(volumes), task)
    names = [name for name in task.modality_names if name in volumes]
    moving_names = [name for name in names if name != reference]
    if mode == "always":
        return PreparationPlan(reference, tuple(names), tuple(moving_names))
    extract = []
    for name in names:
        # A mask that is given is a wish: it is applied, whatever the scan looks like.
        if name in masked or has_skull(volumes[name]):
            extract.append(name)
    align = []
    for name in moving_names:
        is_raw = name in extract or reference in extract
        if is_raw or _lie_apart(volumes[reference], volumes[name]):
            align.append(name)
    return PreparationPlan(reference, tuple(extract), tuple(align))


def _lie_apart(fixed: Volume, moving: Volume) -> bool:
    """Whether two stripped scans are displaced from each other."""
    if not fixed.foreground.any() or not moving.foreground.any():
        return False
    # The cheap question first: overlap takes a moment, the search for a better position seconds.
    if _share_one_brain(fixed, moving):
        return False
    misalignment = measure_misalignment(fixed, moving, fixed.foreground)
    return misalignment.mm > MISALIGNED_MM


def _share_one_brain(fixed: Volume, moving: Volume) -> bool:
    """Whether the brains of two stripped scans lie in the same place."""
    tolerance_mm = SAME_GRID_VOXELS * float(fixed.grid.spacing.min())
    if fixed.grid.distance(moving.grid) > tolerance_mm:
        return brain_overlap(fixed, moving) >= SAME_BRAIN
    # Every fourth voxel along each axis is enough for a share.
    sampled = (slice(None, None, 4),) * 3
    fixed_brain = fixed.foreground[sampled]
    moving_brain = moving.foreground[sampled]
    common = np.count_nonzero(fixed_brain & moving_brain)
    smaller = min(np.count_nonzero(fixed_brain), np.count_nonzero(moving_brain))
    return bool(common >= SAME_BRAIN * smaller)
