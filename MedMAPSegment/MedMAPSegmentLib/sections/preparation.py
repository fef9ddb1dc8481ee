"""Preparation: the steps that Apply takes before it segments, each with a check box."""

from __future__ import annotations

from typing import Any

import qt
from slicer.i18n import tr as _

from medmap.preparation.plan import PreparationPlan
from medmap.task import Modality

from ..i18n.sentences import sentence
from ..mrml import choices
from ..preparation import ALIGN, EXTRACT, KINDS, Step, stepsOf
from .common import Section, setChecked, showText
from .dialogs import warningLine


class PreparationSection(Section):
    """Says above Apply which steps the scans need. The check boxes are made in Python, because
    which scans there are depends on the model.

    Attributes:
        checkBoxes: step -> its check box.
    """

    attribute = "preparation"

    def setup(self) -> None:
        """Connect the widgets."""
        self.checkBoxes: dict[Step, Any] = {}
        self._rows: Any = None
        self._titles: dict[str, Any] = {}
        self._following = False
        self.ui.brainMaskSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onMask)

    def rebuild(self) -> None:
        """A row for each kind of step, with a check box for each modality of the task."""
        if self._rows is not None:
            self._rows.setVisible(False)
            self._rows.deleteLater()
        self._rows = qt.QWidget()
        layout = qt.QGridLayout(self._rows)
        layout.setContentsMargins(0, 0, 0, 0)
        self.checkBoxes = {}
        self._titles = {EXTRACT: qt.QLabel(_("Extract brain:")), ALIGN: qt.QLabel(_("Align:"))}
        for row, kind in enumerate(KINDS):
            layout.addWidget(self._titles[kind], row, 0)
            for column, modality in enumerate(self.state.task.modalities):
                step = Step(kind, modality.name)
                self.checkBoxes[step] = self._checkBox(step, modality)
                layout.addWidget(self.checkBoxes[step], row, column + 1)
        layout.setColumnStretch(len(self.state.task.modalities) + 1, 1)
        self.ui.preparationFrame.layout().addWidget(self._rows)
        # Tab would come to what was made last after Apply.
        before = self.ui.sectionsArea
        for checkBox in self.checkBoxes.values():
            qt.QWidget.setTabOrder(before, checkBox)
            before = checkBox
        qt.QWidget.setTabOrder(before, self.ui.applyButton)

    def _checkBox(self, step: Step, modality: Modality) -> Any:
        checkBox = qt.QCheckBox(modality.title)
        checkBox.name = f"{step.kind}_{step.modality}CheckBox"
        if step.kind == EXTRACT:
            name = _("Extract the brain from {title}")
            tip = _("Remove skull and scalp from {title} first. Clear this box to use it as it is.")
        else:
            name = _("Align {title}")
            tip = _(
                "Align {title} rigidly with the reference scan first. Clear this box to leave it "
                "where it is."
            )
        # Several check boxes read "T1"; a screen reader tells them apart by these names.
        checkBox.accessibleName = name.format(title=modality.title)
        checkBox.toolTip = tip.format(title=modality.title)
        checkBox.connect("toggled(bool)", lambda wanted: self.onStep(step, wanted))
        return checkBox

    def onStep(self, step: Step, wanted: bool) -> None:
        """A step was ticked or unticked."""
        if self.state.isShown:
            choices.skipStep(self.state.parameterNode(), step, not wanted)
            self.state.changed()

    def onMask(self, node: Any) -> None:
        """Another brain mask was chosen."""
        if self.state.isShown and not self._following:
            self.state.choose(choices.BRAIN_MASK, node)

    def update(self) -> None:
        """Show the steps that are needed, and which of them will be taken."""
        needed = self.state.neededPlan
        isIdle = self.state.isShown and not self.state.isBusy
        neededSteps: tuple[Step, ...] = ()
        if needed is not None:
            neededSteps = stepsOf(needed)
        for step, checkBox in self.checkBoxes.items():
            checkBox.setVisible(step in neededSteps)
            checkBox.enabled = isIdle
        for kind, title in self._titles.items():
            title.setVisible(any(step.kind == kind for step in neededSteps))
        self.ui.preparationFrame.setVisible(bool(neededSteps))
        self._showChoices(needed)
        self._showMask(needed)

    def _showChoices(self, needed: PreparationPlan | None) -> None:
        node = self.state.parameterNode()
        plan = self.state.plan
        if node is None or needed is None or plan is None or needed.is_empty:
            showText(self.ui.preparationLabel, "")
            return
        skipped = choices.skippedSteps(node)
        for step, checkBox in self.checkBoxes.items():
            setChecked(checkBox, step not in skipped)
        obstacle = self.state.preparationObstacle()
        text = _("Before segmenting: {steps}.")
        if self.state.isPrepared:
            text = _("Prepared by the last run: {steps}. The prepared scans are used again.")
        text = text.format(steps=self.stepsText(plan))
        if plan.is_empty:
            text = _("The scans are used as they are, without preparation.")
        if obstacle:
            text = warningLine(sentence(obstacle))
        showText(self.ui.preparationLabel, text)

    def stepsText(self, plan: PreparationPlan) -> str:
        """The steps in words: ``brain extraction of 2 scans, alignment of T2``."""
        parts = []
        if plan.extract:
            parts.append(_("brain extraction of {scans}").format(scans=self._scans(plan.extract)))
        if plan.align:
            parts.append(_("alignment of {scans}").format(scans=self._scans(plan.align)))
        return ", ".join(parts)

    def _scans(self, names: tuple[str, ...]) -> str:
        if len(names) == 1:
            return self.state.task.modality(names[0]).title
        return _("{count} scans").format(count=len(names))

    def _showMask(self, needed: PreparationPlan | None) -> None:
        """The selector of a brain mask, where one is of use."""
        mask = self.state.brainMask
        isUseful = mask is not None or (needed is not None and bool(needed.extract))
        for widget in (self.ui.brainMaskLabel, self.ui.brainMaskSelector):
            widget.setVisible(isUseful)
        self._following = True
        try:
            if self.ui.brainMaskSelector.currentNode() is not mask:
                self.ui.brainMaskSelector.setCurrentNode(mask)
        finally:
            self._following = False
