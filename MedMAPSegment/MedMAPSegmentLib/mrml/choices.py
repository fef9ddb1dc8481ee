"""What the parameter node wrapper cannot hold: the scans, whose slots come from the model and not
from the code.

Kept in the same vtkMRMLScriptedModuleNode, by modality name, so that a saved scene brings them back
with any model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from medmap.task import Task

from ..preparation import KINDS, Step

REFERENCE = "reviewReference"
"""Role of the segmentation that results are compared with."""
RESULT = "result"
"""Role of the latest result."""
EARLIER = "earlierResult"
"""Role of the segmentation of an earlier examination."""
BRAIN_MASK = "brainMask"
"""Role of a brain mask that was made elsewhere."""
SKIPPED = "skippedPreparation"
"""Parameter of the scene: steps of the preparation that are not to be done."""
MEANINGS = "referenceMeanings"
"""Parameter of the scene: what segments or values of the reference were assigned to by hand."""
CONVENTION = "labelConvention"
"""Parameter of the scene: the chosen label convention of the reference."""
LEFT_OUT = "leftOut"
_SCAN = "scan_"
_PANEL_ROLES = (REFERENCE, EARLIER, BRAIN_MASK)


def nodeOf(parameterNode: Any, role: str) -> Any:
    """The node that was chosen for a role, or None."""
    return parameterNode.GetNodeReference(role)


def choose(parameterNode: Any, role: str, node: Any) -> bool:
    """Choose a node, or None, for a role. Returns whether anything changed."""
    identifier = node.GetID() if node is not None else None
    if parameterNode.GetNodeReferenceID(role) == identifier:
        return False
    parameterNode.SetNodeReferenceID(role, identifier)
    return True


def forget(parameterNode: Any, node: Any) -> bool:
    """Choose None wherever a node is chosen, whichever model the slot belongs to. Returns whether
    anything changed.
    """
    roles = [
        parameterNode.GetNthNodeReferenceRole(n)
        for n in range(parameterNode.GetNumberOfNodeReferenceRoles())
    ]
    panelRoles = [role for role in roles if role in _PANEL_ROLES or role.startswith(_SCAN)]
    chosen = [role for role in panelRoles if nodeOf(parameterNode, role) is node]
    for role in chosen:
        choose(parameterNode, role, None)
    return bool(chosen)


def scanRole(modality: str) -> str:
    """Role of the scan of a modality."""
    return f"{_SCAN}{modality}"


def scans(parameterNode: Any, task: Task) -> dict[str, Any]:
    """Modality name -> chosen volume node or None, of every slot."""
    return {name: nodeOf(parameterNode, scanRole(name)) for name in task.modality_names}


def leftOut(parameterNode: Any) -> frozenset[str]:
    """Modalities that are not to be used although a volume may be chosen."""
    return frozenset(
        name for name in (parameterNode.GetParameter(LEFT_OUT) or "").split(",") if name
    )


def leaveOut(parameterNode: Any, modality: str, out: bool = True) -> None:
    """Leave a modality out, or use it again."""
    names: Iterable[str] = (
        leftOut(parameterNode) | {modality} if out else leftOut(parameterNode) - {modality}
    )
    parameterNode.SetParameter(LEFT_OUT, ",".join(sorted(names)))


def skippedSteps(parameterNode: Any) -> frozenset[Step]:
    """Steps of the preparation that the user does not want."""
    entries = (parameterNode.GetParameter(SKIPPED) or "").split(",")
    steps = set()
    for entry in entries:
        kind, _, modality = entry.partition(":")
        if kind in KINDS and modality:
            steps.add(Step(kind, modality))
    return frozenset(steps)


def skipStep(parameterNode: Any, step: Step, skipped: bool = True) -> None:
    """Skip a step of the preparation, or do it again."""
    steps = skippedSteps(parameterNode) | {step}
    if not skipped:
        steps = steps - {step}
    entries = sorted(f"{entry.kind}:{entry.modality}" for entry in steps)
    parameterNode.SetParameter(SKIPPED, ",".join(entries))


def wordOf(parameterNode: Any, name: str, words: Sequence[str]) -> str:
    """The chosen one of some words; the first where none of them was chosen.

    Args:
        parameterNode: vtkMRMLScriptedModuleNode, or None while no choice can be made.
        name: of the parameter.
        words: that can be chosen.
    """
    word = ""
    if parameterNode is not None:
        word = parameterNode.GetParameter(name)
    if word in words:
        return word
    return words[0]


def meaningsOf(parameterNode: Any) -> dict[str, str]:
    """Segment ID or label value of the reference -> label or region that it was assigned to by
    hand; "" for what is ignored.
    """
    try:
        meanings = json.loads(parameterNode.GetParameter(MEANINGS) or "{}")
    except ValueError:  # a scene may hold anything
        return {}
    if not isinstance(meanings, dict):
        return {}
    return {str(key): str(target) for key, target in meanings.items()}


def setMeanings(parameterNode: Any, meanings: Mapping[str, str]) -> None:
    """Keep what was assigned by hand."""
    parameterNode.SetParameter(MEANINGS, json.dumps(dict(meanings), sort_keys=True))
