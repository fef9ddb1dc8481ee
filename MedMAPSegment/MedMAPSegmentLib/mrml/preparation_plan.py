"""Which preparation the chosen scans need: MRML nodes in, the core's plan out; nothing changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmap.errors import MedMAPError
from medmap.preparation.plan import Mode, PreparationPlan, plan_preparation
from medmap.task import Task
from medmap.volume import choose_reference

from .brain_mask import scansOfMask
from .sampling import ScanSamples, gridOf, stateOf


class Planner:
    """Plans the preparation of the chosen scans, and keeps the plan until one of them changes.

    Sampled voxels decide, so that the plan can follow every click; what it says is carried out.

    Args:
        mode: ``auto``, ``always`` or ``never``.
    """

    def __init__(self, mode: Mode = "auto") -> None:
        self.mode = mode
        self._samples = ScanSamples()
        self._key: tuple | None = None
        self._plan: PreparationPlan | None = None

    def plan(
        self,
        nodes: Mapping[str, Any],
        task: Task,
        reference: str | None = None,
        maskNode: Any = None,
    ) -> PreparationPlan | None:
        """What the scans lack; None without scans, or where one of them cannot be used at all.

        Args:
            nodes: modality name -> volume node.
            task: nothing is prepared for tasks whose scans are not skull-stripped.
            reference: modality that gives the output geometry; None takes the finest grid.
            maskNode: segmentation or label volume with a brain mask, or None.
        """
        if not nodes:
            return None
        try:
            key = scansKey(nodes, task, reference, maskNode)
            if key != self._key:
                self._plan = self._planned(nodes, task, reference, maskNode)
                self._key = key
        except MedMAPError:
            # Apply names what is wrong with the scans.
            return None
        return self._plan

    def _planned(
        self, nodes: Mapping[str, Any], task: Task, reference: str | None, maskNode: Any
    ) -> PreparationPlan:
        if reference is None or reference not in nodes:
            # By all voxels: what is skipped must not decide which grid is the finest.
            reference = choose_reference({name: gridOf(node) for name, node in nodes.items()})
        volumes = {name: self._samples.volume(node) for name, node in nodes.items()}
        masked = scansOfMask(maskNode, nodes, reference)
        return plan_preparation(volumes, task, self.mode, reference=reference, masked=masked)

    def clear(self) -> None:
        """Forget everything: the scene is closed."""
        self._samples.clear()
        self._key = None
        self._plan = None


def scansKey(nodes: Mapping[str, Any], task: Task, reference: str | None, maskNode: Any) -> tuple:
    """Changes whenever one of the scans, the mask or what is made of them does.

    Args:
        nodes: modality name -> volume node.
        task: of the model.
        reference: modality that gives the output geometry, or None.
        maskNode: segmentation or label volume with a brain mask, or None.

    Raises:
        InputDataError: a scan cannot be used at all.
    """
    states = tuple((name, node.GetID(), stateOf(node)) for name, node in nodes.items())
    mask = None
    if maskNode is not None:
        mask = (maskNode.GetID(), maskNode.GetMTime())
    return states, task.name, reference, mask
