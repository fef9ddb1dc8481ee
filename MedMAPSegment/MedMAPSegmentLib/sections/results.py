"""Result: volumes and diameters, warnings, the segments in 2D and 3D, what it is based on, undo."""

from __future__ import annotations

from typing import Any

import slicer
import slicer.util
from slicer.i18n import tr as _

from medmap.errors import MedMAPError

from ..devices import deviceTitle
from ..i18n.sentences import errorText, findingText, sentence
from ..mrml.editing import isEditedByHand
from ..mrml.fingerprints import changeKey
from ..mrml.nodes import columnOf, derivedNode
from ..mrml.overlay import DIFFERENCE, FILL, MODES, OUTLINE, overlayOf, setOverlay, showOverlay
from ..mrml.results import ROLE_RESULTS, centerOfSegments, resultsTable
from ..mrml.review_nodes import nodesOf
from ..mrml.scene import PROVENANCE
from ..mrml.worst_slices import jumpTo
from .common import Section, chooseIndex, fillCombo, setChecked, showText
from .dialogs import saying, waiting, warningLine
from .tables import clearTable, copyTable, fillTable, numberText, saveTable, tableRows


class ResultsSection(Section):
    """What came out of the last run; or of the run that a loaded scene remembers."""

    attribute = "results"
    box = "results"

    def setup(self) -> None:
        """Connect the buttons."""
        self._shown: tuple | None = None
        titles = {FILL: _("Fill"), OUTLINE: _("Outline"), DIFFERENCE: _("Difference")}
        fillCombo(self.ui.overlayComboBox, [titles[mode] for mode in MODES])
        self.ui.overlayComboBox.connect("currentIndexChanged(int)", self.onOverlay)
        self.ui.show3DButton.connect("toggled(bool)", self.onShow3D)
        self.ui.undoButton.connect("clicked(bool)", self.onUndo)
        self.ui.copyResultsButton.connect("clicked(bool)", self.onCopy)
        self.ui.saveResultsButton.connect("clicked(bool)", self.onSave)

    @property
    def segmentation(self) -> Any:
        """The latest result's vtkMRMLSegmentationNode, or None."""
        return self.state.result

    def summary(self) -> str:
        """The volume of the first region."""
        table = self._table()
        if table is None:
            return ""
        region = columnOf(table, "Region")[0]
        volume = numberText(columnOf(table, "Volume")[0])
        return _("{region} {volume} ml").format(region=region, volume=volume)

    def _table(self) -> Any:
        node = self.state.result
        if node is None:
            return None
        return derivedNode(self.state.scene, "vtkMRMLTableNode", ROLE_RESULTS, node)

    def resultArrived(self) -> None:
        """Go to the middle of what was found."""
        center = centerOfSegments(self.state.result, self.state.task)
        if center is not None:
            jumpTo(self.state.scene, center)

    def update(self) -> None:
        """Follow the result, also one that came with a loaded scene."""
        node = self.state.result
        isIdle = not self.state.isBusy
        self.ui.show3DButton.enabled = node is not None and isIdle
        self.ui.undoButton.enabled = self.state.logic.canUndo and isIdle
        self.ui.saveResultsButton.enabled = node is not None
        self.ui.copyResultsButton.enabled = node is not None
        self._showOverlay(node)
        key = None
        if node is not None:
            provenance = node.GetAttribute(PROVENANCE)
            key = (node.GetID(), self.state.task.name, provenance, changeKey(node))
        if key == self._shown:
            return
        self._shown = key
        showText(self.ui.resultsWarningLabel, "")
        if node is None:
            self.ui.resultsLabel.text = _("No result yet.")
            clearTable(self.ui.resultsTable)
            return
        self._show(node)

    def _show(self, node: Any) -> None:
        try:
            table = resultsTable(self.state.scene, node, self.state.task)
        except MedMAPError as error:  # a scene may hold anything
            self.ui.resultsLabel.text = warningLine(errorText(error))
            clearTable(self.ui.resultsTable)
            return
        columns = dict.fromkeys(("Region", "Name", "Volume", "Axial diameter", "Diameter"))
        heads = [_("Region"), _("ml"), _("Axial \u00d8 mm"), _("Longest \u00d8 mm")]
        rows, tips = tableRows(table, columns)
        titled = [[f"{sentence(row[1])} ({row[0]})", *row[2:]] for row in rows]
        fillTable(self.ui.resultsTable, heads, titled, tips[1:])
        provenance = self.state.provenance
        showText(self.ui.resultsWarningLabel, "\n".join(self.warnings(provenance)))
        facts = self.facts(provenance)
        if isEditedByHand(node):
            facts.append(_("Edited by hand since the model made it."))
        self.ui.resultsLabel.text = "\n".join(facts)
        setChecked(self.ui.show3DButton, _hasSurfaces(node))

    def warnings(self, provenance: dict) -> list[str]:
        """What to beware of, from the provenance of a result."""
        lines = []
        for finding in provenance.get("findings", []):
            if finding.get("level") == "warning":
                text = findingText(finding.get("message", ""), finding.get("remedy", ""))
                lines.append(warningLine(text))
        return lines

    def facts(self, provenance: dict) -> list[str]:
        """What a result is based on, from its provenance."""
        task = self.state.task
        modalities = provenance.get("modalities", {})
        used = [name for name in task.modality_names if name in modalities.get("used", {})]
        lines = []
        if used:
            lines.append(_("Based on: {scans}").format(scans=task.subset_title(used)))
        reference = modalities.get("reference")
        if reference in task.modality_names:
            title = task.modality(reference).title
            lines.append(_("Output geometry: {scan}").format(scan=title))
        preparation = provenance.get("preparation", {})
        for step in preparation.get("steps", []):
            lines.append(sentence(step.get("summary", "")))
        if preparation.get("reused"):
            lines.append(_("The scans that the run before had prepared were used again."))
        run = provenance.get("run", {})
        if "device" in run:
            text = _("Computed on: {device}").format(device=deviceTitle(run["device"]))
            if "seconds" in run:
                text += _(", {seconds} s").format(seconds=numberText(run["seconds"]))
            lines.append(text)
        if "bundle" in provenance:
            lines.append(_("Model: {model}").format(model=provenance["bundle"].get("id", "?")))
        return lines or [_("It is not recorded how this segmentation was made.")]

    def _showOverlay(self, node: Any) -> None:
        mode = overlayOf(self.state.parameterNode(always=True))
        chooseIndex(self.ui.overlayComboBox, MODES.index(mode))
        self.ui.overlayComboBox.enabled = node is not None

    def onOverlay(self, index: int = 0) -> None:
        """Another way to draw the result."""
        if not self.state.isShown or not 0 <= index < len(MODES):
            return
        setOverlay(self.state.parameterNode(), MODES[index])
        node = self.state.result
        if node is not None:
            nodes = nodesOf(self.state.scene, node)
            if nodes is None and MODES[index] == DIFFERENCE:
                self.state.say(_("Compare the result with a reference to see the difference."))
            showOverlay(MODES[index], node, nodes.errors if nodes is not None else None)
        self.state.changed()

    def onShow3D(self, on: bool) -> None:
        """Show or hide the surfaces."""
        node = self.state.result
        if node is None:
            return
        with saying(_("The surfaces could not be created.")), waiting():
            if on:
                node.CreateClosedSurfaceRepresentation()
                node.GetDisplayNode().SetVisibility3D(True)
                # There is none without a main window.
                if slicer.app.layoutManager() is not None:
                    slicer.app.layoutManager().resetThreeDViews()
            else:
                node.RemoveClosedSurfaceRepresentation()

    def onCopy(self, clicked: bool = False) -> None:
        """Put the table on the clipboard."""
        copyTable(self._table(), self.state)

    def onSave(self, clicked: bool = False) -> None:
        """Save the table as a file."""
        saveTable(self._table(), self.state)

    def onUndo(self, clicked: bool = False) -> None:
        """Take the last result back and show the one before it."""
        with saying(_("Undo failed.")):
            self.state.undoResult()
            self._shown = None
            self.state.say(_("The last result was removed."))

    def clear(self) -> None:
        """No result."""
        self._shown = None
        self.ui.resultsLabel.text = _("No result yet.")
        showText(self.ui.resultsWarningLabel, "")
        clearTable(self.ui.resultsTable)
        setChecked(self.ui.show3DButton, False)


def _hasSurfaces(node: Any) -> bool:
    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return bool(node.GetSegmentation().ContainsRepresentation(name))
