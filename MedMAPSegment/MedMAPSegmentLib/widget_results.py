"""Result: table of volumes and diameters, the segments in 3D, what the result is based on."""

from __future__ import annotations

import slicer
import slicer.util
from slicer.i18n import tr as _

from .results import resultsTable
from .widget_common import Section, showTable


class ResultsSection(Section):
    """What came out of the last run.

    Attributes:
        reference: modality on whose grid it lies.
        used: modalities that it was made from.
    """

    def setup(self):
        """Connect the buttons."""
        self._segmentationID = self.reference = None
        self.used = ()
        self.ui.show3DButton.connect("toggled(bool)", self.onShow3D)

    @property
    def segmentation(self):
        """The last result's vtkMRMLSegmentationNode, or None once it is gone."""
        return slicer.mrmlScene.GetNodeByID(self._segmentationID) if self._segmentationID is not None else None

    def show(self, node, result):
        """Show a result.

        Args:
            node: vtkMRMLSegmentationNode that holds it.
            result: ``medmap.inference.Segmentation``.
        """
        self._segmentationID, self.reference = node.GetID(), result.reference
        self.used = tuple(result.provenance["modalities"]["used"])
        showTable(self.ui.resultsTable, resultsTable(slicer.mrmlScene, node, self.panel.logic.task), _SHOWN)
        self.ui.resultsLabel.text = self.describe(result)
        display = node.GetDisplayNode()
        self.ui.show3DButton.checked = bool(display is not None and display.GetVisibility3D() and _hasSurfaces(node))
        self.update()

    def describe(self, result):
        """A result in words: what it is based on, and what to beware of."""
        task = self.panel.logic.task
        used = ", ".join(task.modality(name).title for name in result.provenance["modalities"]["used"])
        device = result.provenance["run"]["device"]
        lines = [
            _("Based on: {modalities}").format(modalities=used),
            _("On the grid of: {reference}").format(reference=task.modality(result.reference).title),
            _("Computed on: {device}").format(device=device),
        ]
        if device == "cpu" and self.panel.lastDevice == "auto":
            lines.append(_("No usable graphics card was found, so the processor was used; this takes longer."))
        warnings = [finding for finding in result.findings if finding.level == "warning"]
        lines.extend(f"\u26a0 {warning.message} {warning.remedy}".rstrip() for warning in warnings)
        return "\n".join(lines)

    def onShow3D(self, on):
        """Show or hide the surfaces."""
        node = self.segmentation
        if node is None:
            return
        with slicer.util.tryWithErrorDisplay(_("The surfaces could not be made."), waitCursor=True):
            if on:
                node.CreateClosedSurfaceRepresentation()
                node.GetDisplayNode().SetVisibility3D(True)
            else:
                node.RemoveClosedSurfaceRepresentation()

    def update(self):
        """Buttons follow the result."""
        self.ui.show3DButton.enabled = self.segmentation is not None

    def clear(self):
        """No result."""
        self._segmentationID = None
        self.ui.resultsLabel.text = _("No result yet.")
        showTable(self.ui.resultsTable, None)
        self.ui.show3DButton.checked = False
        self.update()


_SHOWN = ("Region", "Name", "Volume", "Axial diameter", "Diameter")


def _hasSurfaces(node):
    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    return node.GetSegmentation().ContainsRepresentation(name)
