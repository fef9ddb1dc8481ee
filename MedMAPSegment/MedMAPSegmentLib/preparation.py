"""The steps that precede a segmentation, as a person chooses them. No Slicer, no Qt.

The plan is that of ``medmap segment``; here, steps are left out of it, and what prevents a step is
reported before anything is computed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from medmap.preparation.availability import can_extract_brains
from medmap.preparation.plan import PreparationPlan
from medmap.task import Task

EXTRACT = "extract"
ALIGN = "align"
KINDS = (EXTRACT, ALIGN)
"""Kinds of steps, in their order; also the names of the plan's fields."""


@dataclass(frozen=True)
class Step:
    """One step of a preparation.

    Attributes:
        kind: one of ``KINDS``.
        modality: name of the scan.
    """

    kind: str
    modality: str


def stepsOf(plan: PreparationPlan) -> tuple[Step, ...]:
    """The steps of a plan, in order."""
    extraction = [Step(EXTRACT, name) for name in plan.extract]
    alignment = [Step(ALIGN, name) for name in plan.align]
    return (*extraction, *alignment)


def withoutSteps(plan: PreparationPlan, skipped: Collection[Step]) -> PreparationPlan:
    """The plan without some of its steps."""
    extract = tuple(name for name in plan.extract if Step(EXTRACT, name) not in skipped)
    align = tuple(name for name in plan.align if Step(ALIGN, name) not in skipped)
    return replace(plan, extract=extract, align=align)


def obstacleOf(
    plan: PreparationPlan, used: Collection[str], task: Task, hasMask: bool = False
) -> str:
    """Why the brain extraction of a plan cannot work, as a sentence; empty if it can.

    Args:
        plan: as chosen.
        used: modalities of all scans.
        task: gives titles.
        hasMask: whether a brain mask is given, which scans without one take over.
    """
    # A scan that was stripped elsewhere lends its brain to the others.
    isLent = set(used) != set(plan.extract)
    if not plan.extract or hasMask or isLent or can_extract_brains():
        return ""
    return (
        f"Nothing that extracts the brain from {task.titles(plan.extract)} is installed: choose a "
        "brain mask, use a skull-stripping module, or clear the check box of this step."
    )
