"""Inputs: one slot a modality of the model's task, each with its state; Detect; the sample patient."""

from __future__ import annotations

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from medmap.task import BRATS

from ..inputs import SlotState, readSlots
from ..mrml import choices
from ..mrml.modality_detection import databaseTags, detectModalities, volumesOf
from ..mrml.sample import addPhantomPatient
from .common import Section, saying, showText, waiting


class InputsSection(Section):
    """The slots. They are made in Python, because which there are depends on the model.

    Attributes:
        slots: modality name -> (check box, selector, state label).
    """

    attribute = "inputs"

    def setup(self):
        """Connect the buttons."""
        self.slots = {}
        self._rows = None
        self._following = False
        self.ui.detectButton.connect("clicked(bool)", self.onDetect)
        self.ui.sampleButton.connect("clicked(bool)", self.onSample)

    def rebuild(self):
        """One row a modality of the task."""
        if self._rows is not None:
            self._rows.setVisible(False)
            self._rows.deleteLater()
        self._rows = qt.QWidget()
        layout = qt.QGridLayout(self._rows)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setColumnStretch(1, 1)
        self.slots = {}
        for row, modality in enumerate(self.panel.logic.task.modalities):
            checkBox, selector, state = self._row(modality)
            for column, widget in enumerate((checkBox, selector, state)):
                layout.addWidget(widget, row, column)
            self.slots[modality.name] = (checkBox, selector, state)
        self.ui.slotsFrame.layout().addWidget(self._rows)
        before = (
            self.ui.sampleButton
        )  # Tab would come to what was made last at the very end of the panel
        for checkBox, _selector, _state in self.slots.values():
            qt.QWidget.setTabOrder(before, checkBox)
            before = checkBox

    def _row(self, modality):
        checkBox = qt.QCheckBox(modality.title)
        checkBox.name = f"{modality.name}CheckBox"
        checkBox.checked = True
        checkBox.toolTip = _(
            "Clear this box to exclude {title} even if a volume is selected."
        ).format(title=modality.title)
        selector = slicer.qMRMLNodeComboBox()
        selector.name = f"{modality.name}Selector"
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.showChildNodeTypes = False
        selector.noneEnabled = True
        selector.addEnabled = False
        selector.removeEnabled = False
        selector.renameEnabled = False
        selector.noneDisplay = _("(none)")
        selector.toolTip = _("{title} volume. Leave empty if it was not acquired.").format(
            title=modality.title
        )
        selector.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        selector.setMRMLScene(slicer.mrmlScene)
        state = qt.QLabel()
        state.name = f"{modality.name}StateLabel"
        checkBox.connect("toggled(bool)", lambda used, name=modality.name: self.onUse(name, used))
        selector.connect(
            "currentNodeChanged(vtkMRMLNode*)",
            lambda node, name=modality.name: self.onNode(name, node),
        )
        return checkBox, selector, state

    def onUse(self, name, used):
        """A slot was ticked or unticked."""
        parameterNode = self.panel.parameterNode()
        if parameterNode is not None and not self._following:
            choices.leaveOut(parameterNode, name, not used)
            self.panel.update()

    def onNode(self, name, node):
        """A volume was chosen for a slot, or went away."""
        parameterNode = self.panel.parameterNode()
        if parameterNode is not None and not self._following:
            choices.choose(parameterNode, choices.scanRole(name), node)
            self.panel.update()

    def read(self):
        """``inputs.Inputs`` as chosen; None while the panel is not shown."""
        parameterNode = self.panel.parameterNode()
        if parameterNode is None:
            return None
        task = self.panel.logic.task
        left = choices.leftOut(parameterNode) & set(task.modality_names)
        return readSlots(task, choices.scans(parameterNode, task), left, self.panel.reference())

    def update(self):
        """Show the choices, and say of each slot whether it is used, missing or left out."""
        found = self.read()
        idle = found is not None and not self.panel.isBusy()
        self.ui.detectButton.enabled = idle
        self.ui.sampleButton.enabled = idle and self.panel.logic.task.name == BRATS.name
        if found is None:
            return
        self._following = True
        try:
            for slot in found.slots:
                checkBox, selector, state = self.slots[slot.modality]
                checkBox.checked = slot.state is not SlotState.LEFT_OUT
                if selector.currentNode() is not slot.node:
                    selector.setCurrentNode(slot.node)
                state.text = self._word(slot.state) + (" \u26a0" if slot.warning else "")
                state.toolTip = slot.text
        finally:
            self._following = False

    @staticmethod
    def _word(state):
        words = {
            SlotState.USED: _("used"),
            SlotState.MISSING: _("missing"),
            SlotState.LEFT_OUT: _("excluded"),
        }
        return words[state]

    def onDetect(self, clicked=False):
        """Fill the slots that have one clear candidate; ask about the others."""
        task = self.panel.logic.task
        database = getattr(slicer, "dicomDatabase", None)
        with saying(_("Modality detection failed.")):
            tags = databaseTags(database) if database is not None and database.isOpen else None
            detection = detectModalities(volumesOf(slicer.mrmlScene), task, tags)
            self._choose(
                {name: candidate.series.source for name, candidate in detection.assigned.items()}
            )
            showText(self.ui.detectLabel, detection.text(task))

    def _choose(self, nodes):
        with slicer.util.NodeModify(self.panel.parameterNode()):
            for name, node in nodes.items():
                choices.choose(self.panel.parameterNode(), choices.scanRole(name), node)
        self.panel.update()

    def onSample(self, clicked=False):
        """Make the synthetic patient and choose it; its true labels become the reference of the review."""
        with saying(_("The sample patient could not be generated.")):
            if not self.panel.run.canCompute():
                return
            with waiting():
                patient = addPhantomPatient(slicer.mrmlScene)
            self.takePatient(patient)

    def takePatient(self, patient):
        """Choose the scans of a sample patient that the task knows, and show one of them."""
        names = self.panel.logic.task.modality_names
        self._choose({name: node for name, node in patient.volumes.items() if name in names})
        choices.choose(self.panel.parameterNode(), choices.REFERENCE, patient.truth)
        showText(
            self.ui.detectLabel,
            _("Synthetic patient, generated on this computer; not a real person."),
        )
        shown = patient.volumes.get("t1ce") or next(iter(patient.volumes.values()))
        slicer.util.setSliceViewerLayers(background=shown, fit=True)
        self.panel.update()

    def clear(self):
        """Forget what was detected."""
        showText(self.ui.detectLabel, "")
