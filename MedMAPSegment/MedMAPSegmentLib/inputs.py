"""The panel's slots: which scan is used, which is missing, which is left out, and everything in the
way at once.

Which slots there are comes from the task of the chosen model. Quick enough to be called after every
click: no voxel is copied, and the range of a volume is kept by VTK until its voxels change.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from medmap.checks import MIN_RELATIVE_CONTRAST
from medmap.task import Task

from .mrml.scene import shapeOf


class SlotState(Enum):
    """What a slot contributes."""

    USED = "used"
    MISSING = "missing"
    LEFT_OUT = "excluded"


@dataclass(frozen=True)
class Slot:
    """One slot of the panel.

    Attributes:
        modality: name of the modality.
        title: as a person writes it.
        state: what it contributes.
        node: the chosen volume node, whatever the state; None if there is none.
        warning: why a chosen volume does not count, or should be checked; empty if all is well.
    """

    modality: str
    title: str
    state: SlotState
    node: Any = None
    warning: str = ""

    @property
    def text(self) -> str:
        """The state in words, with the warning."""
        return f"{self.state.value}: {self.warning}" if self.warning else self.state.value


@dataclass(frozen=True)
class Inputs:
    """All slots of a task.

    Attributes:
        slots: in the task's order.
        problems: every reason, as a sentence, why Apply cannot work; empty if it can.
    """

    slots: tuple[Slot, ...]
    problems: tuple[str, ...]

    @property
    def used(self) -> dict[str, Any]:
        """Modality name -> volume node, of the slots that count: what ``SegmentationLogic.prepare``
        takes.
        """
        return {slot.modality: slot.node for slot in self.slots if slot.state is SlotState.USED}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to say about slots that do not count although a volume is chosen."""
        return tuple(f"{slot.title}: {slot.warning}" for slot in self.slots if slot.warning)

    def slot(self, modality: str) -> Slot:
        """The slot of a modality."""
        return next(slot for slot in self.slots if slot.modality == modality)


def readSlots(
    task: Task,
    chosen: Mapping[str, Any],
    leftOut: Collection[str] = (),
    reference: str | None = None,
) -> Inputs:
    """State of every slot, and everything that is in the way.

    Args:
        task: its modalities are the slots.
        chosen: modality name -> volume node or None; slots that are not named are empty.
        leftOut: modalities that the user does not want to use although a volume may be chosen.
        reference: modality on whose grid the result is wanted; None leaves the choice open.

    Raises:
        UsageError: a name is no modality of the task.
    """
    for name in (*chosen, *leftOut, *([reference] if reference is not None else [])):
        task.index(name)
    slots, problems = [], []
    for modality in task.modalities:
        node = chosen.get(modality.name)
        if modality.name in leftOut:
            slots.append(Slot(modality.name, modality.title, SlotState.LEFT_OUT, node))
        elif node is None:
            slots.append(Slot(modality.name, modality.title, SlotState.MISSING))
        else:
            empty = emptiness(node)
            state = SlotState.MISSING if empty else SlotState.USED
            slots.append(Slot(modality.name, modality.title, state, node, empty))
            problems += [] if empty else _unusable(node)
    inputs = Inputs(tuple(slots), ())
    allProblems = [
        *_nothingToUse(inputs),
        *dict.fromkeys(problems),
        *_usedTwice(inputs),
        *_noReference(inputs, reference),
    ]
    return Inputs(inputs.slots, tuple(allProblems))


def emptiness(node: Any) -> str:
    """Why a volume counts as missing: every voxel has the same value. Empty if it has contrast, or
    no voxels at all.
    """
    if shapeOf(node) is None or node.GetImageData().GetNumberOfScalarComponents() != 1:
        return ""
    low, high = node.GetImageData().GetPointData().GetScalars().GetFiniteRange(0)
    if low > high:
        return f"'{node.GetName()}' contains no valid number and counts as missing."
    if high - low > MIN_RELATIVE_CONTRAST * max(abs(low), abs(high)):
        return ""
    return f"'{node.GetName()}' is {low:g} everywhere and counts as missing."


def _unusable(node: Any) -> list[str]:
    name = node.GetName()
    shape = shapeOf(node)
    if shape is None:
        return [f"The volume '{name}' has no voxels."]
    problems = []
    components = node.GetImageData().GetNumberOfScalarComponents()
    if components != 1:
        problems.append(f"The volume '{name}' has {components} values per voxel; one is needed.")
    if min(shape) < 2:
        problems.append(f"The volume '{name}' is a single slice; a 3D volume is needed.")
    transform = node.GetParentTransformNode()
    if transform is not None and not transform.IsTransformToWorldLinear():
        problems.append(
            f"The volume '{name}' is under the non-linear transform '{transform.GetName()}'; "
            "harden it."
        )
    return problems


def _nothingToUse(inputs: Inputs) -> list[str]:
    if inputs.used:
        return []
    if any(slot.warning for slot in inputs.slots):
        return ["None of the selected volumes has any contrast; select another volume."]
    if any(slot.node is not None for slot in inputs.slots):
        return ["Every selected volume is excluded; include at least one."]
    return ["Select at least one volume."]


def _usedTwice(inputs: Inputs) -> list[str]:
    """Slots that hold the same node, left-out ones aside."""
    titles: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for slot in inputs.slots:
        if slot.node is not None and slot.state is not SlotState.LEFT_OUT:
            titles.setdefault(slot.node.GetID(), []).append(slot.title)
            names[slot.node.GetID()] = slot.node.GetName()
    return [
        f"'{names[key]}' is selected for {' and '.join(slotTitles)}; each volume can be used for "
        "one modality only."
        for key, slotTitles in titles.items()
        if len(slotTitles) > 1
    ]


def _noReference(inputs: Inputs, reference: str | None) -> list[str]:
    if reference is None or reference in inputs.used:
        return []
    slot = inputs.slot(reference)
    if slot.state is SlotState.LEFT_OUT:
        return [f"The output geometry is set to {slot.title}, which is excluded."]
    return [f"The output geometry is set to {slot.title}, which is missing."]
