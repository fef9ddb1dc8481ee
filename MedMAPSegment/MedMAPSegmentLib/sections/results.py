"""Result: volumes and diameters, the segments in 3D, what the result is based on, undo."""

from __future__ import annotations

import slicer
import slicer.util
from slicer.i18n import tr as _

from medmap.errors import MedMAPError

from ..mrml import choices
from ..mrml.nodes import derivedNode
from ..mrml.results import ROLE_RESULTS, centerOf, resultsTable
from ..mrml.review import jumpTo
from ..mrml.scene import provenanceOf
from .common import Section, fillTable, inScene, saveTable, saying, tableRows, waiting


class ResultsSection(Section):
    """What came out of the last run; or of the run that a loaded scene remembers."""

    attribute = "results"

    def setup(self):
        """Connect the buttons."""
        self._shown = None
        self._before = []
        self.ui.show3DButton.connect("toggled(bool)", self.onShow3D)
        self.ui.undoButton.connect("clicked(bool)", self.onUndo)
        self.ui.saveResultsButton.connect("clicked(bool)", self.onSave)

    @property
    def segmentation(self):
        """The latest result's vtkMRMLSegmentationNode, or None."""
        parameterNode = self.panel.parameterNode(always=True)
        return (
            inScene(choices.nodeOf(parameterNode, choices.RESULT))
            if parameterNode is not None
            else None
        )

    @property
    def provenance(self):
        """What made the latest result; empty without one, or when nothing is recorded."""
        node = self.segmentation
        return (provenanceOf(node) or {}) if node is not None else {}

    def take(self, request, result):
        """Put a result into the scene and show it. The previous one stays in the scene, hidden."""
        previous = self.segmentation
        node = self.panel.logic.apply(request, result)
        self._before.append(previous.GetID() if previous is not None else None)
        if previous is not None and previous is not node and previous.GetDisplayNode() is not None:
            previous.GetDisplayNode().SetVisibility(False)
        self.panel.run.noteDevice(request.device, result.provenance.run.device)
        self._choose(node)
        if result.labels.any():
            jumpTo(slicer.mrmlScene, centerOf(result.labels, result.grid))
        self.panel.ui.statusLabel.text = _("Done: {name}").format(name=node.GetName())

    def _choose(self, node):
        """Make a segmentation, or None, the one that the panel is about."""
        self._shown = None
        if node is not None:
            node.GetDisplayNode().SetVisibility(True)
        choices.choose(self.panel.parameterNode(always=True), choices.RESULT, node)
        self.panel.update()

    def update(self):
        """Follow the result, also one that came with a loaded scene."""
        node = self.segmentation
        idle = not self.panel.isBusy()
        self.ui.show3DButton.enabled = node is not None and idle
        self.ui.undoButton.enabled = self.panel.logic.canUndo and idle
        self.ui.saveResultsButton.enabled = node is not None
        key = (node.GetID(), self.panel.logic.task.name) if node is not None else None
        if key == self._shown:
            return
        self._shown = key
        if node is None:
            self.ui.resultsLabel.text = _("No result yet.")
            fillTable(self.ui.resultsTable, [], [])
            return
        try:
            table = resultsTable(slicer.mrmlScene, node, self.panel.logic.task)
        except MedMAPError as error:  # a scene may hold anything
            self.ui.resultsLabel.text = f"\u26a0 {error}"
            fillTable(self.ui.resultsTable, [], [])
            return
        columns = {
            "Region": None,
            "Name": None,
            "Volume": None,
            "Axial diameter": None,
            "Diameter": None,
        }
        heads = [_("Region"), _("ml"), _("Axial \u00d8 mm"), _("Longest \u00d8 mm")]
        rows, tips = tableRows(table, columns)
        fillTable(
            self.ui.resultsTable,
            heads,
            [[f"{row[0]} ({row[1]})", *row[2:]] for row in rows],
            tips[1:],
        )
        self.ui.resultsLabel.text = self.describe(self.provenance)
        wasBlocked = self.ui.show3DButton.blockSignals(True)
        self.ui.show3DButton.checked = _hasSurfaces(node)
        self.ui.show3DButton.blockSignals(wasBlocked)

    def describe(self, provenance):
        """What a result is based on, and what to beware of, from its provenance."""
        task = self.panel.logic.task
        used = [
            name
            for name in task.modality_names
            if name in provenance.get("modalities", {}).get("used", {})
        ]
        lines = []
        if used:
            titles = " + ".join(task.modality(name).title for name in used)
            lines.append(_("Based on: {scans}").format(scans=titles))
        reference = provenance.get("modalities", {}).get("reference")
        if reference in task.modality_names:
            lines.append(_("Output geometry: {scan}").format(scan=task.modality(reference).title))
        run = provenance.get("run", {})
        if "device" in run:
            text = _("Computed on: {device}").format(device=run["device"])
            lines.append(
                text
                + (
                    _(", {seconds:.1f} s").format(seconds=run["seconds"])
                    if "seconds" in run
                    else ""
                )
            )
        if "bundle" in provenance:
            lines.append(_("Model: {model}").format(model=provenance["bundle"].get("id", "?")))
        for finding in provenance.get("findings", []):
            if finding.get("level") == "warning":
                lines.append(
                    f"\u26a0 {finding.get('message', '')} {finding.get('remedy', '')}".rstrip()
                )
        return "\n".join(lines) or _(
            "No information about how this segmentation was made is recorded."
        )

    def onShow3D(self, on):
        """Show or hide the surfaces."""
        node = self.segmentation
        if node is None:
            return
        with saying(_("The surfaces could not be created.")), waiting():
            if on:
                node.CreateClosedSurfaceRepresentation()
                node.GetDisplayNode().SetVisibility3D(True)
                if slicer.app.layoutManager() is not None:  # there is none without a main window
                    slicer.app.layoutManager().resetThreeDViews()
            else:
                node.RemoveClosedSurfaceRepresentation()

    def onSave(self, clicked=False):
        """Save the table as a file."""
        node = self.segmentation
        table = (
            derivedNode(slicer.mrmlScene, "vtkMRMLTableNode", ROLE_RESULTS, node)
            if node is not None
            else None
        )
        if table is not None:
            saveTable(table, self.panel.ui.statusLabel)

    def onUndo(self, clicked=False):
        """Take the last result back and show the one before it."""
        with saying(_("Undo failed.")):
            before = self._before.pop() if self._before else None
            restored = self.panel.logic.undo()
            if restored is None and before is not None:
                restored = slicer.mrmlScene.GetNodeByID(before)
            self._choose(restored)
            self.panel.ui.statusLabel.text = _("The last result was removed.")

    def clear(self):
        """No result."""
        self._shown = None
        self._before = []
        self.panel.logic.forgetResults()
        self.ui.resultsLabel.text = _("No result yet.")
        fillTable(self.ui.resultsTable, [], [])
        wasBlocked = self.ui.show3DButton.blockSignals(True)
        self.ui.show3DButton.checked = False
        self.ui.show3DButton.blockSignals(wasBlocked)


def _hasSurfaces(node):
    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return node.GetSegmentation().ContainsRepresentation(name)
