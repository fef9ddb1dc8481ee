"""What the panel is about, observed: choices, model, inputs, result. No Qt.

Sections read and change a ``PanelState`` and are notified of every change; they do not know
each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from medmap.errors import MedMAPError
from medmap.preparation.plan import PreparationPlan
from medmap.task import Task

from .i18n.sentences import errorText
from .inputs import Inputs, readSlots
from .logic import SegmentationLogic
from .models.catalog import DEFAULT, ModelEntry
from .mrml import choices
from .mrml.geometry_checks import GeometryReport, checkGeometry
from .mrml.nodes import ROLE_EDITED, derivedNode, hideDerived, inScene
from .mrml.patient import Patient, TagLookup, mark, patientOf
from .mrml.preparation_plan import Planner
from .mrml.scene import addFindings, provenanceOf
from .preparation import obstacleOf, withoutSteps
from .request import Request

if TYPE_CHECKING:
    from medmap.inference import Segmentation


class PanelLogic(SegmentationLogic):
    """A logic that knows where the panel's choices are kept."""

    def scriptedNode(self) -> Any:
        """The vtkMRMLScriptedModuleNode of the choices."""
        raise NotImplementedError


class Observer(Protocol):
    """What a part of the panel does about a change."""

    def rebuild(self) -> None:
        """Another model: its task says which modalities, labels and regions there are."""

    def update(self) -> None:
        """Anything changed; called after every click, so it must be quick."""

    def resultArrived(self) -> None:
        """A computation has ended with a new result."""

    def clear(self) -> None:
        """The scene was closed."""


class PanelState:
    """The state that all sections of the panel share.

    Args:
        logic: segments; holds task and model.
        moduleNames: gives the names of all installed Slicer modules.
        dicomTags: gives DICOM values of a volume node from Slicer's database; also an attribute.

    Attributes:
        parameters: the typed parameter node; None while the panel is not shown.
        entry: the chosen model.
        status: the last message about what was done.
        isBusy: True while a computation is under way.
        report: checks of the present inputs; None if they were not checked.
    """

    def __init__(
        self,
        logic: PanelLogic,
        moduleNames: Callable[[], Iterable[str]] = tuple,
        dicomTags: TagLookup | None = None,
    ):
        self.logic = logic
        self.entry = ModelEntry(DEFAULT, Path(), "")
        self.parameters: Any = None
        self.status = ""
        self.isBusy = False
        self.report: GeometryReport | None = None
        self._checked: Any = None
        self._previousResults: list[str | None] = []
        self._planner = Planner()
        self._moduleNames = moduleNames
        self.dicomTags = dicomTags
        self._observers: list[Observer] = []

    def observe(self, observer: Observer) -> None:
        """Tell an observer of every change from now on, after those that came before it."""
        self._observers.append(observer)

    def stopTelling(self) -> None:
        """Tell nobody any more: scene and widgets may be about to go."""
        self._observers = []

    def changed(self) -> None:
        """Tell the observers; not while a scene is read, whose nodes are still empty."""
        if self.scene.IsImporting():
            return
        if self.report is not None and self._checked != self._checkKey():
            self.report = None
        for observer in list(self._observers):
            observer.update()

    def say(self, text: str) -> None:
        """Show a message about what was done."""
        self.status = text
        self.changed()

    def clear(self) -> None:
        """Forget what belonged to a scene that is closed."""
        self.status = ""
        self.report = None
        self._previousResults = []
        self._planner.clear()
        self.logic.forgetResults()
        for observer in list(self._observers):
            observer.clear()

    @property
    def scene(self) -> Any:
        """The vtkMRMLScene."""
        return self.logic.scene

    @property
    def task(self) -> Task:
        """The task of the chosen model."""
        return self.logic.task

    @property
    def isShown(self) -> bool:
        """Whether the panel is open, so that choices can be made."""
        return self.parameters is not None

    def parameterNode(self, always: bool = False) -> Any:
        """The vtkMRMLScriptedModuleNode of the choices; while the panel is not shown, None.

        Args:
            always: give it while the panel is not shown, too.
        """
        if self.parameters is not None:
            return self.parameters.parameterNode
        return self.logic.scriptedNode() if always else None

    def useModel(self, entry: ModelEntry, loader: Callable[[], Any]) -> None:
        """Segment with another model from now on."""
        self.entry = entry
        if entry.task is not None:
            self.logic.setModel(loader, entry.task)

    def rebuild(self) -> None:
        """Make everything fit the model."""
        for observer in list(self._observers):
            observer.rebuild()
        self.changed()

    @property
    def reference(self) -> str | None:
        """Modality whose grid the result is wanted on; None leaves the choice to the core."""
        name = self.parameters.reference
        return name if name in self.task.modality_names else None

    @property
    def inputs(self) -> Inputs | None:
        """The slots as chosen; None while the panel is not shown."""
        node = self.parameterNode()
        if node is None:
            return None
        excluded = choices.leftOut(node) & set(self.task.modality_names)
        return readSlots(self.task, choices.scans(node, self.task), excluded, self.reference)

    @property
    def usedVolumes(self) -> dict[str, Any]:
        """Modality name -> volume node of the slots that count; empty while the panel is closed."""
        inputs = self.inputs
        return inputs.used if inputs is not None else {}

    @property
    def patient(self) -> Patient:
        """What is known of the patient: from DICOM, and what the user marked."""
        node = self.parameterNode(always=True)
        return patientOf(self.scene, self.usedVolumes.values(), node, self.dicomTags)

    def markPatient(self, name: str, marked: bool) -> None:
        """Mark the patient, or take a mark away: ``patient.SURGERY`` or ``patient.OTHER_TUMOR``.

        A result that was made from the selected volumes gets the warning, too. It keeps the warning
        when the mark is taken away: the next patient begins like that.
        """
        mark(self.parameterNode(), name, marked)
        result = self.result
        if result is not None and self._isOfThisPatient():
            addFindings(result, self.patient.warnings)
            edited = derivedNode(self.scene, "vtkMRMLSegmentationNode", ROLE_EDITED, result)
            if edited is not None:
                addFindings(edited, self.patient.warnings)
        self.changed()

    def _isOfThisPatient(self) -> bool:
        """Whether the result was made from volumes that are still selected."""
        used = self.provenance.get("modalities", {}).get("used", {})
        selected = {node.GetID() for node in self.usedVolumes.values()}
        return bool(used) and selected.issuperset(used.values())

    @property
    def brainMask(self) -> Any:
        """Segmentation or label volume with a brain mask that was made elsewhere, or None."""
        return self._chosen(choices.BRAIN_MASK)

    @property
    def neededPlan(self) -> PreparationPlan | None:
        """Every step of preparation that the used scans need; None without usable scans."""
        if not self.isShown:
            return None
        return self._planner.plan(self.usedVolumes, self.task, self.reference, self.brainMask)

    @property
    def plan(self) -> PreparationPlan | None:
        """The steps of preparation that Apply takes: those needed, without those cleared."""
        return self._withoutSkipped(self.neededPlan)

    @property
    def isPrepared(self) -> bool:
        """Whether Apply will use the prepared scans of the last run again."""
        plan = self.plan
        if plan is None:
            return False
        return self.logic.isPrepared(self.usedVolumes, plan, self.brainMask)

    def planFor(self, volumes: Mapping[str, Any]) -> PreparationPlan | None:
        """The steps that some volume nodes need, by modality name, without those cleared."""
        return self._withoutSkipped(self._planner.plan(volumes, self.task, self.reference))

    def _withoutSkipped(self, plan: PreparationPlan | None) -> PreparationPlan | None:
        if plan is None:
            return None
        return withoutSteps(plan, choices.skippedSteps(self.parameterNode(always=True)))

    def preparationObstacle(self) -> str:
        """Why the planned preparation cannot work, as a sentence; empty if it can."""
        plan = self.plan
        if plan is None:
            return ""
        hasMask = self.brainMask is not None
        return obstacleOf(plan, self.usedVolumes, self.task, hasMask)

    def segmentationArguments(self) -> dict[str, Any]:
        """Arguments for ``SegmentationLogic.prepare`` as chosen in the panel."""
        return {
            "inputs": self.usedVolumes,
            "reference": self.reference,
            "outputNode": self.parameters.outputSegmentation,
            "plan": self.plan,
            "maskNode": self.brainMask,
        }

    def checkInputs(self) -> GeometryReport:
        """Compare the chosen volumes with each other; the report stays until the choice changes."""
        used = self.usedVolumes
        plan = None
        if not self.preparationObstacle():
            plan = self.plan
        self.report = checkGeometry(used, self.task, self.reference, self._moduleNames(), plan)
        self._checked = self._checkKey()
        self.changed()
        return self.report

    def _checkKey(self) -> tuple:
        used = self.usedVolumes
        nodes = {name: (node.GetID(), node.GetTransformNodeID()) for name, node in used.items()}
        return nodes, self.plan

    @property
    def result(self) -> Any:
        """The latest result's vtkMRMLSegmentationNode, or None."""
        return self._chosen(choices.RESULT)

    @property
    def reviewReference(self) -> Any:
        """The segmentation or label volume that the result is compared with, or None."""
        return self._chosen(choices.REFERENCE)

    @property
    def earlierResult(self) -> Any:
        """The segmentation of an earlier examination, or None."""
        return self._chosen(choices.EARLIER)

    def _chosen(self, role: str) -> Any:
        return inScene(self.scene, choices.nodeOf(self.parameterNode(always=True), role))

    def choose(self, role: str, node: Any) -> bool:
        """Choose a node, or None, for a role of ``choices``. Returns whether anything changed."""
        if not choices.choose(self.parameterNode(always=True), role, node):
            return False
        self.changed()
        return True

    @property
    def provenance(self) -> dict:
        """What made the latest result; empty without one, or when nothing is recorded."""
        node = self.result
        if node is None:
            return {}
        return provenanceOf(node) or {}

    def takeResult(self, request: Request, result: Segmentation) -> Any:
        """Put a result into the scene and show it; the previous one stays there, hidden.

        Returns the vtkMRMLSegmentationNode.
        """
        previous = self.result
        if previous is not None:
            # They are drawn from labels that are no longer the latest.
            hideDerived(self.scene, previous)
        node = self.logic.apply(request, result)
        self._previousResults.append(previous.GetID() if previous is not None else None)
        if previous is not None and previous is not node:
            _show(previous, False)
        self._useResult(node)
        for observer in list(self._observers):
            observer.resultArrived()
        return node

    def undoResult(self) -> None:
        """Remove the last result and show the one before it."""
        before = self._previousResults.pop() if self._previousResults else None
        restored = self.logic.undo()
        if restored is None and before is not None:
            restored = self.scene.GetNodeByID(before)
        self._useResult(restored)

    def _useResult(self, node: Any) -> None:
        if node is not None:
            _show(node, True)
        if not self.choose(choices.RESULT, node):
            self.changed()

    def obstacles(self) -> list[str]:
        """Every reason, as a sentence, why Apply cannot work."""
        if not self.isShown:
            return []
        output = self.parameters.outputSegmentation
        try:
            problems = self.logic.problems(self.usedVolumes, self.reference, output)
        except MedMAPError as error:
            problems = [errorText(error)]
        obstacle = self.preparationObstacle()
        if obstacle:
            problems.append(obstacle)
        return problems


def _show(node: Any, visible: bool) -> None:
    if node.GetDisplayNode() is not None:
        node.GetDisplayNode().SetVisibility(visible)
