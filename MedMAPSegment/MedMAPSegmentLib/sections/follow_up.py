"""Follow-up: the result beside the segmentation of an earlier examination."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from ..i18n.sentences import findingText
from ..mrml import choices
from ..mrml.fingerprints import changeKey
from ..mrml.follow_up import EARLIER, compareTimePoints, findingsOfTable, tableOf
from ..mrml.nodes import columnOf
from ..mrml.patient import studyDateOf
from .common import Section, showText
from .dialogs import saying, waiting, warningLine
from .tables import changeText, copyTable, fillTable, numberText, saveTable, tableRows, wholeText

COLUMNS = {
    "Region": None,
    "Earlier volume": numberText,
    "Volume": numberText,
    "Change": changeText,
    "Earlier diameter": wholeText,
    "Diameter": wholeText,
}
"""Columns of the follow-up table that are shown, and how."""


class FollowUpSection(Section):
    """Compares the result with an earlier segmentation of the same patient."""

    attribute = "followUp"
    box = "followUp"

    def setup(self) -> None:
        """Connect the widgets."""
        self._following = False
        self._shown: tuple | None = None
        self.ui.earlierSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onEarlier)
        self.ui.followUpButton.connect("clicked(bool)", self.onCompare)
        self.ui.copyFollowUpButton.connect("clicked(bool)", self.onCopy)
        self.ui.saveFollowUpButton.connect("clicked(bool)", self.onSave)

    def _table(self) -> Any:
        if self.state.result is None:
            return None
        return tableOf(self.state.scene, self.state.result)

    def summary(self) -> str:
        """The change of the first region."""
        table = self._table()
        if table is None:
            return ""
        region = columnOf(table, "Region")[0]
        change = changeText(columnOf(table, "Change")[0])
        return _("{region} {change} ml").format(region=region, change=change)

    def onEarlier(self, node: Any) -> None:
        """Another earlier segmentation was chosen."""
        if not self._following and self.state.isShown:
            self.state.choose(choices.EARLIER, node)

    def update(self) -> None:
        """Follow the choice and the result."""
        earlier = self.state.earlierResult
        result = self.state.result
        self._following = True
        try:
            if self.ui.earlierSelector.currentNode() is not earlier:
                self.ui.earlierSelector.setCurrentNode(earlier)
        finally:
            self._following = False
        isReady = earlier is not None and result is not None and earlier is not result
        self.ui.followUpButton.enabled = isReady and not self.state.isBusy
        tip = _("Needs a result and a segmentation of an earlier examination.")
        if isReady:
            tip = _("Compare volumes and diameters of both examinations.")
        self.ui.followUpButton.toolTip = tip
        self._showTable()

    def _showTable(self) -> None:
        table = self._table()
        self.ui.copyFollowUpButton.enabled = table is not None
        self.ui.saveFollowUpButton.enabled = table is not None
        key = self._key(table)
        if key == self._shown:
            return
        self._shown = key
        heads = [
            _("Region"),
            _("Then ml"),
            _("Now ml"),
            _("Change"),
            _("Then \u00d8"),
            _("Now \u00d8"),
        ]
        rows, tips = tableRows(table, COLUMNS)
        fillTable(self.ui.followUpTable, heads, rows, tips)
        showText(self.ui.followUpLabel, "\n".join(self._notes(table)))

    def _key(self, table: Any) -> tuple | None:
        """Changes with the table and with both segmentations; None without a table."""
        if table is None:
            return None
        earlier = self.state.scene.GetNodeByID(table.GetAttribute(EARLIER) or "")
        earlierKey = changeKey(earlier) if earlier is not None else None
        chosen = self.state.earlierResult
        isOfChosen = chosen is None or chosen is earlier
        return (
            table.GetID(),
            table.GetMTime(),
            changeKey(self.state.result),
            earlierKey,
            isOfChosen,
        )

    def _notes(self, table: Any) -> list[str]:
        if table is None:
            return []
        scene = self.state.scene
        lines = []
        earlier = scene.GetNodeByID(table.GetAttribute(EARLIER) or "")
        if earlier is not None:
            lines.append(_("Earlier: {name}").format(name=_titled(scene, earlier)))
        if self.state.earlierResult not in (None, earlier):
            text = _("Press Compare time points for the chosen segmentation.")
            lines.append(warningLine(text))
        for finding in findingsOfTable(scene, self.state.result, table, self.state.task):
            text = findingText(finding.message, finding.remedy)
            lines.append(warningLine(text) if finding.level == "warning" else text)
        return lines

    def onCompare(self, clicked: bool = False) -> None:
        """Measure both."""
        with saying(_("The time points could not be compared.")):
            with waiting():
                compareTimePoints(
                    self.state.scene,
                    self.state.result,
                    self.state.earlierResult,
                    self.state.task,
                )
            self._shown = None
            self.state.say(_("Compared both time points."))

    def onCopy(self, clicked: bool = False) -> None:
        """Put the table on the clipboard."""
        copyTable(self._table(), self.state)

    def onSave(self, clicked: bool = False) -> None:
        """Save the table as a file."""
        saveTable(self._table(), self.state)

    def clear(self) -> None:
        """Nothing was compared."""
        self._shown = None
        self._showTable()


def _titled(scene: Any, node: Any) -> str:
    """Name of a segmentation with the date of its examination, where DICOM has it."""
    date = studyDateOf(scene, node)
    if date:
        return f"{node.GetName()} ({date})"
    return node.GetName()
