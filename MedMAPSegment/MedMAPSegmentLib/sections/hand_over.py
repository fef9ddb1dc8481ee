"""Hand-over: editing a copy of the result, exports, and the report of the case."""

from __future__ import annotations

from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from ..mrml import choices
from ..mrml.case_report import caseReport
from ..mrml.editing import editedCopy, sourceVolumeOf
from ..mrml.export import (
    SEGMENTATION_OBJECT,
    STRUCTURE_SET,
    DicomExporter,
    exportDicom,
    exportNifti,
)
from ..mrml.nodes import ROLE_EDITED, derivedNode
from ..mrml.reference_parts import unusedSegments
from .common import Section, chooseIndex, fillCombo
from .dialogs import askForFile, saying, waiting, warningLine
from .report_file import saveReport
from .tables import fileName

DICOM = "dicom"
STRUCTURES = "structures"
NIFTI = "nifti"
EXPORTS = (DICOM, STRUCTURES, NIFTI)
EXPORTERS = {DICOM: SEGMENTATION_OBJECT, STRUCTURES: STRUCTURE_SET}
"""Formats that one of Slicer's DICOM plugins writes."""
FORMAT = "exportFormat"
"""Parameter of the scene: the chosen export format."""


class HandOverSection(Section):
    """Gives the result to the Segment Editor, to other systems, and to readers."""

    attribute = "handOver"
    box = "results"

    def setup(self) -> None:
        """Connect the buttons."""
        titles = {DICOM: _("DICOM SEG"), STRUCTURES: _("RT structure set"), NIFTI: _("NIfTI")}
        fillCombo(self.ui.exportComboBox, [titles[name] for name in EXPORTS])
        self.ui.exportComboBox.connect("currentIndexChanged(int)", self.onFormat)
        self.ui.editButton.connect("clicked(bool)", self.onEdit)
        self.ui.exportButton.connect("clicked(bool)", self.onExport)
        self.ui.reportButton.connect("clicked(bool)", self.onReport)

    def update(self) -> None:
        """Everything here needs a result."""
        isReady = self.state.result is not None and not self.state.isBusy
        for button in (self.ui.editButton, self.ui.exportButton, self.ui.reportButton):
            button.enabled = isReady
        self.ui.exportComboBox.enabled = isReady
        chooseIndex(self.ui.exportComboBox, EXPORTS.index(self.format))
        self.ui.exportButton.toolTip = self._exportTip()

    def _exportTip(self) -> str:
        """What Export does, or which extension it needs first."""
        exporter = EXPORTERS.get(self.format)
        if exporter is not None and not exporter.isInstalled:
            tip = _("Needs the extension {extension} from the Extensions Manager.")
            return tip.format(extension=exporter.extension)
        return _(
            "Export the segmentation. If there is an edited copy, the copy is exported instead of "
            "the result."
        )

    @property
    def format(self) -> str:
        """Name of the chosen export format."""
        return choices.wordOf(self.state.parameterNode(always=True), FORMAT, EXPORTS)

    def onFormat(self, index: int = 0) -> None:
        """Another format was chosen."""
        node = self.state.parameterNode()
        if node is not None and 0 <= index < len(EXPORTS):
            node.SetParameter(FORMAT, EXPORTS[index])
            self.update()

    @property
    def _final(self) -> Any:
        """The edited copy of the result if there is one, else the result."""
        node = self.state.result
        edited = derivedNode(self.state.scene, "vtkMRMLSegmentationNode", ROLE_EDITED, node)
        return edited if edited is not None else node

    def onEdit(self, clicked: bool = False) -> None:
        """Open a copy of the result in the Segment Editor, on the volume that it lies on."""
        with saying(_("The Segment Editor could not be opened.")):
            result = self.state.result
            copy = editedCopy(self.state.scene, result)
            # Edits are reviewed against what the model made, unless an expert's reference is there.
            if self.state.reviewReference is None:
                self.state.choose(choices.REFERENCE, copy)
            if result.GetDisplayNode() is not None:
                result.GetDisplayNode().SetVisibility(False)
            copy.GetDisplayNode().SetVisibility(True)
            slicer.util.selectModule("SegmentEditor")
            editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
            editor.setSegmentationNode(copy)
            editor.setSourceVolumeNode(sourceVolumeOf(result))

    def onExport(self, clicked: bool = False) -> None:
        """Export as chosen."""
        exporter = EXPORTERS.get(self.format)
        with saying(_("The export failed.")):
            if exporter is None:
                self.exportNifti()
            else:
                self._exportDicom(exporter)

    def _exportDicom(self, exporter: DicomExporter) -> None:
        exporter.create()  # says what is missing before it asks for a folder
        title = _("Folder for the DICOM files")
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title)
        if not folder:
            return
        with waiting():
            exportDicom(self.state.scene, self._final, folder, exporter)
        self.state.say(_("Exported to: {path}").format(path=folder))

    def exportNifti(self) -> None:
        """Write the labels on the grid of the reference volume."""
        node = self._final
        name = fileName(node.GetName()) + ".nii.gz"
        path = askForFile(_("Export as NIfTI"), name, "NIfTI (*.nii.gz *.nii)")
        if not path:
            return
        with waiting():
            image, _sidecar = exportNifti(node, path, self.state.task)
        text = _("Exported to: {path}").format(path=image)
        unused = unusedSegments(node, self.state.task)
        if unused:
            warning = _("Not exported, because they are none of the labels: {segments}")
            text += "\n" + warningLine(warning.format(segments=", ".join(unused)))
        self.state.say(text)

    def onReport(self, clicked: bool = False) -> None:
        """Save the report of the case as HTML or PDF."""
        node = self._final
        kinds = _("Reports") + " (*.html *.pdf)"
        path = askForFile(_("Save the report"), fileName(node.GetName()) + ".html", kinds)
        if not path:
            return
        with saying(_("The report could not be saved.")):
            with waiting():
                card = self.state.entry.card
                locale = slicer.app.applicationLocaleName
                report = caseReport(self.state.scene, node, self.state.task, card, locale)
                file = saveReport(report, path)
            self.state.say(_("Saved: {path}").format(path=file))
