"""Checks on images before anything is computed from them. numpy only; it runs inside Slicer.

Unusable inputs are refused (``InputDataError``, ``UsageError``). Usable inputs with a remark
yield a ``Finding`` that goes into the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from medmap.checks.affine import affine_problem
from medmap.checks.brain import (
    MAX_BRAIN_ML,
    brain_ml,
    check_apart,
    check_brain_volume,
    check_field_of_view,
    check_modality_appearance,
    check_skull_strip,
    more_than_brain,
)
from medmap.checks.finding import Finding
from medmap.checks.grids import (
    SAME_GRID_VOXELS,
    brain_overlap,
    check_coverage,
    check_grids,
    check_overlap,
    check_slice_thickness,
    describe_grid,
)
from medmap.checks.values import (
    MIN_RELATIVE_CONTRAST,
    check_array,
    check_contrast,
    check_label_map,
    check_same_image,
    replace_not_finite,
)
from medmap.errors import UsageError
from medmap.task import Task
from medmap.volume import Volume

__all__ = [
    "CHECKS",
    "MAX_BRAIN_ML",
    "MIN_RELATIVE_CONTRAST",
    "SAME_GRID_VOXELS",
    "Check",
    "Finding",
    "affine_problem",
    "brain_ml",
    "brain_overlap",
    "check_array",
    "check_contrast",
    "check_coverage",
    "check_inputs",
    "check_modality_appearance",
    "check_overlap",
    "check_same_image",
    "check_skull_strip",
    "describe_grid",
    "more_than_brain",
    "replace_not_finite",
]

Check = Callable[[dict[str, Volume], Task], Iterable[Finding]]
CHECKS: tuple[Check, ...] = (
    check_array,
    check_contrast,
    check_same_image,
    check_label_map,
    check_overlap,
    check_grids,
    check_skull_strip,
    check_apart,
    check_modality_appearance,
    check_brain_volume,
    check_field_of_view,
    check_slice_thickness,
)
"""Refusals first: later checks rely on what earlier ones made sure of."""


def check_inputs(volumes: Mapping[str, Volume], task: Task) -> tuple[Finding, ...]:
    """Check all images of one case.

    Args:
        volumes: modality name -> image, any non-empty subset of the task's modalities.
        task: the modalities.

    Returns:
        The notes that the volumes carry from reading, then the findings of the checks, in the
        task's modality order.

    Raises:
        UsageError: no modality is given, or one that the task does not have.
        InputDataError: an image cannot be used, two are the same, or two show different places.
    """
    if not volumes:
        raise UsageError(
            "No image was given.", f"Use at least one of {', '.join(task.modality_names)}."
        )
    ordered = {name: volumes[name] for name in sorted(volumes, key=task.index)}
    findings: list[Finding] = []
    for volume in ordered.values():
        findings.extend(volume.notes)
    for check in CHECKS:
        findings.extend(check(ordered, task))
    return tuple(findings)
