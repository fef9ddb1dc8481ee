"""Parts of the reference: what its segments or label values are taken for."""

from __future__ import annotations

from typing import Any

import qt
from slicer.i18n import tr as _

from medmap.errors import MedMAPError

from ..i18n.sentences import errorText
from ..mrml import choices
from ..mrml.reference_parts import (
    BY_HAND,
    Source,
    conventionNames,
    conventionsOf,
    hasLabelValues,
    sources,
    targets,
    unassignedSources,
)
from .common import Section, chooseIndex, fillCombo, showText
from .dialogs import warningLine
from .tables import clearTable, fillTable, fitColumns


class ReferencePartsSection(Section):
    """Shows what the parts of the reference are taken for, and takes corrections by hand."""

    attribute = "referenceParts"
    box = "review"

    def setup(self) -> None:
        """Connect the widgets."""
        self._shown: tuple | None = None
        self._boxes: list = []
        self.ui.conventionComboBox.connect("currentIndexChanged(int)", self.onConvention)

    def rebuild(self) -> None:
        """Conventions of the task."""
        conventions = conventionsOf(self.state.task)
        fillCombo(self.ui.conventionComboBox, [_("Automatic"), *conventions.values()])
        self._shown = None

    @property
    def conventions(self) -> tuple[str, ...]:
        """Names of the label conventions in the order of the combo box; the first recognizes it."""
        return conventionNames(self.state.task)

    @property
    def convention(self) -> str:
        """Name of the chosen label convention; empty to recognize it."""
        node = self.state.parameterNode(always=True)
        return choices.wordOf(node, choices.CONVENTION, self.conventions)

    @property
    def _meanings(self) -> dict[str, str]:
        """Segment or label value of the reference -> what it was assigned to by hand."""
        return choices.meaningsOf(self.state.parameterNode(always=True))

    def onConvention(self, index: int = 0) -> None:
        """The values of the reference mean something else."""
        if self.state.isShown and 0 <= index < len(self.conventions):
            node = self.state.parameterNode()
            node.SetParameter(choices.CONVENTION, self.conventions[index])
            choices.setMeanings(node, {})
            self.state.changed()

    def update(self) -> None:
        """Follow the reference and what is chosen for its parts."""
        reference = self.state.reviewReference
        for widget in (self.ui.conventionLabel, self.ui.conventionComboBox):
            widget.setVisible(hasLabelValues(reference))
        chooseIndex(self.ui.conventionComboBox, self.conventions.index(self.convention))
        self._showMatches(reference)

    def _showMatches(self, reference: Any) -> None:
        """A row a segment or label value of the reference, with a choice of what it is."""
        key = None
        if reference is not None:
            meanings = tuple(self._meanings.items())
            key = (reference.GetID(), reference.GetMTime(), self.convention, meanings)
        if key == self._shown:
            return
        self._shown = key
        matches: tuple = ()
        if reference is not None:
            try:
                matches = sources(
                    reference, self.state.task, self._meanings, convention=self.convention
                )
                showText(self.ui.reviewLabel, "")
            except MedMAPError as error:
                showText(self.ui.reviewLabel, warningLine(errorText(error)))
                matches = _unassigned(reference)
        heads = [_("Reference"), _("Region or label")]
        fillTable(self.ui.matchesTable, heads, [[source.title, ""] for source in matches])
        self._boxes = []
        for row, source in enumerate(matches):
            self._boxes.append(self._matchBox(row, source))
        fitColumns(self.ui.matchesTable)

    def _matchBox(self, row: int, source: Source) -> Any:
        """Combo box with what a segment can be taken for."""
        options = [*targets(self.state.task), _("ignored")]
        target = self._meanings.get(source.key, source.target)
        index = len(options) - 1
        if target in options:
            index = options.index(target)
        box = qt.QComboBox()
        fillCombo(box, options, index)
        box.connect("currentIndexChanged(int)", lambda index: self.onMatch(source.key, index))
        reason = source.reason
        if reason == BY_HAND:
            reason = _("assigned by hand")
        box.toolTip = reason
        box.name = f"meaning{row}ComboBox"
        box.accessibleName = _("Meaning of {segment}").format(segment=source.title)
        self.ui.matchesTable.item(row, 0).setToolTip(reason)
        self.ui.matchesTable.setCellWidget(row, 1, box)
        before = self._boxes[-1] if self._boxes else self.ui.matchesTable
        qt.QWidget.setTabOrder(before, box)
        return box

    def onMatch(self, key: str, index: int) -> None:
        """A segment of the reference is something else."""
        node = self.state.parameterNode()
        if node is None:
            return
        options = targets(self.state.task)
        target = ""
        if 0 <= index < len(options):
            target = options[index]
        choices.setMeanings(node, {**self._meanings, key: target})

    def clear(self) -> None:
        """There is no reference."""
        self._shown = None
        clearTable(self.ui.matchesTable)


def _unassigned(reference: Any) -> tuple[Source, ...]:
    """Parts of a reference that is not understood, to be assigned by hand; none without labels."""
    try:
        return unassignedSources(reference)
    except MedMAPError:
        return ()
