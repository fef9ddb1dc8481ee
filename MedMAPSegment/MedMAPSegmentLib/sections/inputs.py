"""Inputs: one slot a modality of the model's task, each with its state; Detect; the patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from medmap.task import BRATS, Modality

from ..i18n.sentences import findingText, lines, sentence
from ..inputs import Slot, SlotState
from ..mrml import choices
from ..mrml.modality_detection import detectModalities, volumesOf
from ..mrml.patient import OTHER_TUMOR, SURGERY, isMarked
from ..mrml.reference import referenceCandidates
from ..mrml.sample import PhantomPatient, addPhantomPatient
from .common import Section, setChecked, showText, showVolume
from .dialogs import saying, waiting, warningLine


@dataclass(frozen=True)
class SlotWidgets:
    """The widgets of one slot.

    Attributes:
        checkBox: whether the volume is used.
        selector: the volume.
        state: label with the state in a word.
    """

    checkBox: Any
    selector: Any
    state: Any


class InputsSection(Section):
    """The slots. They are made in Python, because which there are depends on the model.

    Attributes:
        slots: modality name -> its widgets.
    """

    attribute = "inputs"
    box = "inputs"

    def setup(self) -> None:
        """Connect the buttons."""
        self.slots: dict[str, SlotWidgets] = {}
        self._rows = None
        self._following = False
        self.ui.detectButton.connect("clicked(bool)", self.onDetect)
        self.ui.sampleButton.connect("clicked(bool)", self.onSample)
        self.ui.surgeryCheckBox.connect("toggled(bool)", self.onSurgery)
        self.ui.otherTumorCheckBox.connect("toggled(bool)", self.onOtherTumor)

    def summary(self) -> str:
        """The modalities that are used: ``T1ce + FLAIR``."""
        return self.state.task.subset_title(self.state.usedVolumes)

    def rebuild(self) -> None:
        """One row a modality of the task."""
        if self._rows is not None:
            self._rows.setVisible(False)
            self._rows.deleteLater()
        self._rows = qt.QWidget()
        layout = qt.QGridLayout(self._rows)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setColumnStretch(1, 1)
        self.slots = {}
        for row, modality in enumerate(self.state.task.modalities):
            widgets = self._row(modality)
            layout.addWidget(widgets.checkBox, row, 0)
            layout.addWidget(widgets.selector, row, 1)
            layout.addWidget(widgets.state, row, 2)
            self.slots[modality.name] = widgets
        self.ui.slotsFrame.layout().addWidget(self._rows)
        # Tab would come to what was made last at the very end of the panel.
        before = self.ui.sampleButton
        for widgets in self.slots.values():
            qt.QWidget.setTabOrder(before, widgets.checkBox)
            before = widgets.checkBox

    def _row(self, modality: Modality) -> SlotWidgets:
        name = modality.name
        checkBox = qt.QCheckBox(modality.title)
        checkBox.name = f"{name}CheckBox"
        checkBox.accessibleName = _("Use {title}").format(title=modality.title)
        checkBox.checked = True
        tip = _("Clear this box to exclude {title} even if a volume is selected.")
        checkBox.toolTip = tip.format(title=modality.title)
        selector = self._selector(modality)
        state = qt.QLabel()
        state.name = f"{name}StateLabel"
        checkBox.connect("toggled(bool)", lambda used: self.onUse(name, used))
        selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: self.onNode(name, node))
        return SlotWidgets(checkBox, selector, state)

    @staticmethod
    def _selector(modality: Modality) -> Any:
        selector = slicer.qMRMLNodeComboBox()
        selector.name = f"{modality.name}Selector"
        selector.accessibleName = _("{title} volume").format(title=modality.title)
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.showChildNodeTypes = False
        selector.noneEnabled = True
        selector.addEnabled = False
        selector.removeEnabled = False
        selector.renameEnabled = False
        selector.noneDisplay = _("(none)")
        tip = _("{title} volume. Leave empty if it was not acquired.")
        selector.toolTip = tip.format(title=modality.title)
        selector.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        selector.setMRMLScene(slicer.mrmlScene)
        return selector

    def onUse(self, name: str, used: bool) -> None:
        """A slot was ticked or unticked."""
        node = self.state.parameterNode()
        if node is not None and not self._following:
            choices.leaveOut(node, name, not used)
            self.state.changed()

    def onNode(self, name: str, node: Any) -> None:
        """A volume was chosen for a slot, or went away."""
        if self.state.isShown and not self._following:
            choices.choose(self.state.parameterNode(), choices.scanRole(name), node)
            self.state.changed()

    def onSurgery(self, marked: bool) -> None:
        """The images were taken after surgery, or not."""
        if self.state.isShown:
            self.state.markPatient(SURGERY, marked)

    def onOtherTumor(self, marked: bool) -> None:
        """It is another kind of tumor, or not."""
        if self.state.isShown:
            self.state.markPatient(OTHER_TUMOR, marked)

    def update(self) -> None:
        """Show the choices, and say of each slot whether it is used, missing or excluded."""
        inputs = self.state.inputs
        isIdle = inputs is not None and not self.state.isBusy
        self.ui.detectButton.enabled = isIdle
        self.ui.sampleButton.enabled = isIdle and self.state.task.name == BRATS.name
        if inputs is None:
            return
        self._following = True
        try:
            for slot in inputs.slots:
                self._showSlot(slot)
        finally:
            self._following = False
        self._showPatient()

    def _showSlot(self, slot: Slot) -> None:
        widgets = self.slots[slot.modality]
        widgets.checkBox.checked = slot.state is not SlotState.LEFT_OUT
        if widgets.selector.currentNode() is not slot.node:
            widgets.selector.setCurrentNode(slot.node)
        word = _stateWord(slot.state)
        widgets.state.text = word
        widgets.state.toolTip = word
        if slot.warning:
            widgets.state.text = f"{word} \u26a0"
            widgets.state.toolTip = f"{word}: {sentence(slot.warning)}"

    def _showPatient(self) -> None:
        node = self.state.parameterNode()
        setChecked(self.ui.surgeryCheckBox, isMarked(node, SURGERY))
        setChecked(self.ui.otherTumorCheckBox, isMarked(node, OTHER_TUMOR))
        lines = []
        for finding in self.state.patient.warnings:
            lines.append(warningLine(findingText(finding.message, finding.remedy)))
        showText(self.ui.populationLabel, "\n".join(lines))

    def onDetect(self, clicked: bool = False) -> None:
        """Fill the slots that have one clear candidate; ask about the others."""
        with saying(_("Modality detection failed.")):
            task = self.state.task
            volumes = volumesOf(self.state.scene)
            detection = detectModalities(volumes, task, self.state.dicomTags)
            nodes = {}
            for name, candidate in detection.assigned.items():
                nodes[name] = candidate.series.source
            self._choose(nodes)
            showText(self.ui.detectLabel, lines(detection.text(task)))
            candidates = referenceCandidates(self.state.scene)
            if self.state.reviewReference is None and len(candidates) == 1:
                self.state.choose(choices.REFERENCE, candidates[0])

    def _choose(self, nodes: dict[str, Any]) -> None:
        parameterNode = self.state.parameterNode()
        with slicer.util.NodeModify(parameterNode):
            for name, node in nodes.items():
                choices.choose(parameterNode, choices.scanRole(name), node)
        self.state.changed()

    def onSample(self, clicked: bool = False) -> None:
        """Make the synthetic patient and choose it; its labels become the reference."""
        with saying(_("The sample patient could not be generated.")):
            if not self.jobs.canCompute():
                return
            with waiting():
                patient = addPhantomPatient(self.state.scene)
            self.takePatient(patient)

    def takePatient(self, patient: PhantomPatient) -> None:
        """Choose the volumes of a sample patient that the task knows, and show one of them."""
        names = self.state.task.modality_names
        self._choose({name: node for name, node in patient.volumes.items() if name in names})
        self.state.choose(choices.REFERENCE, patient.truth)
        text = _("Synthetic patient, generated on this computer; not a real person.")
        showText(self.ui.detectLabel, text)
        showVolume(patient.volumes.get("t1ce") or next(iter(patient.volumes.values())))

    def clear(self) -> None:
        """Forget what was detected."""
        showText(self.ui.detectLabel, "")


def _stateWord(state: SlotState) -> str:
    stateTitles = {
        SlotState.USED: _("used"),
        SlotState.MISSING: _("missing"),
        SlotState.LEFT_OUT: _("excluded"),
    }
    return stateTitles[state]
