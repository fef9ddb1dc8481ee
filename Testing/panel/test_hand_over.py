"""What a result is given to: the Segment Editor, other systems, readers."""

from __future__ import annotations

import json
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest


@pytest.fixture
def editor(application, monkeypatch):
    """Stands in for the Segment Editor's widget; notes what it is opened on."""
    opened = SimpleNamespace(segmentation=None, volume=None)
    opened.setSegmentationNode = lambda node: setattr(opened, "segmentation", node)
    opened.setSourceVolumeNode = lambda node: setattr(opened, "volume", node)
    module = SimpleNamespace(
        widgetRepresentation=lambda: SimpleNamespace(self=lambda: SimpleNamespace(editor=opened))
    )
    monkeypatch.setattr(
        application.app.__class__, "modulesNames", ("SegmentEditor",), raising=False
    )
    import slicer

    slicer.modules.segmenteditor = module
    return opened


def labels_of(panel, node):
    from MedMAPSegmentLib.mrml.reference import labelsOn

    return labelsOn(node, node, panel.state.task).labels


def test_edits_are_made_on_a_copy_and_reviewed_against_the_result(
    panel, result, editor, application, finish
):
    before = labels_of(panel, result)
    panel.ui.editButton.click()
    copy = editor.segmentation
    assert copy is not result
    assert copy.GetName().endswith("- edited")
    assert application.app.selected == ["SegmentEditor"]
    reference = panel.state.provenance["modalities"]["reference"]
    assert editor.volume is panel.inputs.slots[reference].selector.currentNode()
    assert np.array_equal(labels_of(panel, copy), before)
    copy.GetSegmentation().RemoveSegment("ED")
    assert np.array_equal(labels_of(panel, result), before)
    assert panel.state.reviewReference is copy
    panel.ui.reviewButton.click()
    finish()
    assert float(panel.ui.reviewTable.item(0, 1).text()) < 1.0
    panel.ui.undoButton.click()
    assert application.scene.IsNodePresent(copy), "undo must not take away what a person made"


def test_editing_again_opens_the_same_copy(panel, result, editor):
    panel.ui.editButton.click()
    first = editor.segmentation
    panel.ui.editButton.click()
    assert editor.segmentation is first


@pytest.fixture
def painted(result):
    """The result itself, with a voxel more, as the Segment Editor leaves it."""
    import slicer.util

    volume = result.GetNodeReference(result.GetReferenceImageGeometryReferenceRole())
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(result, "ED", volume)
    mask[tuple(np.argwhere(mask == 0)[0])] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, result, "ED", volume)
    return result


def test_edits_on_the_result_itself_reach_every_export_and_the_panel(
    panel, painted, application, tmp_path
):
    from MedMAPSegmentLib.mrml.export import seriesDescription

    assert "edited by hand" in seriesDescription(painted)
    panel.ui.exportComboBox.setCurrentIndex(2)
    application.desk.answers["getSaveFileName"] = str(tmp_path / "labels.nii.gz")
    panel.ui.exportButton.click()
    assert json.loads((tmp_path / "labels.json").read_text())["edited_by_hand"] is True
    application.desk.answers["getSaveFileName"] = str(tmp_path / "report.html")
    panel.ui.reportButton.click()
    assert "Edited by hand: the figures" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Edited by hand" in panel.ui.resultsLabel.text


def test_a_result_is_not_edited_by_being_shown_exported_or_saved(
    panel, result, application, tmp_path
):
    import slicer

    from MedMAPSegmentLib.mrml.editing import isEditedByHand
    from MedMAPSegmentLib.mrml.export import seriesDescription

    panel.ui.show3DButton.click()
    panel.ui.exportComboBox.setCurrentIndex(2)
    application.desk.answers["getSaveFileName"] = str(tmp_path / "labels.nii.gz")
    panel.ui.exportButton.click()
    assert json.loads((tmp_path / "labels.json").read_text())["edited_by_hand"] is False
    assert "edited" not in seriesDescription(result)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetScene(application.scene)
    storage.SetFileName(str(tmp_path / "result.seg.nrrd"))
    assert storage.WriteData(result)
    loaded = application.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "loaded")
    assert storage.ReadData(loaded)
    assert not isEditedByHand(loaded)
    loaded.GetSegmentation().RemoveSegment("ET")
    assert isEditedByHand(loaded)


def test_nifti_lies_on_the_grid_of_the_source_and_says_what_made_it(
    panel, patient, choose, finish, application, tmp_path
):
    nibabel = pytest.importorskip("nibabel")
    choose(flair=patient["flair"])
    panel.ui.surgeryCheckBox.click()
    panel.ui.applyButton.click()
    finish()
    application.desk.answers["getSaveFileName"] = str(tmp_path / "labels")
    panel.ui.exportComboBox.setCurrentIndex(2)
    panel.ui.exportButton.click()
    image = nibabel.load(tmp_path / "labels.nii.gz")
    expected = labels_of(panel, panel.state.result)
    assert np.array_equal(np.asarray(image.dataobj), expected)
    record = json.loads((tmp_path / "labels.json").read_text())
    assert any("after surgery" in warning for warning in record["warnings"])
    assert record["labels"]["2"] == "Edema"


class TestFiles:
    """What a dialog returns is not always what may be written."""

    def export(self, panel, application, path):
        application.desk.answers["getSaveFileName"] = str(path)
        panel.ui.exportComboBox.setCurrentIndex(2)
        panel.ui.exportButton.click()

    def test_a_scan_of_the_scene_is_never_overwritten(
        self, panel, result, patient, application, tmp_path
    ):
        import slicer

        path = tmp_path / "flair.nii.gz"
        storage = application.scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
        storage.SetFileName(str(path))
        patient["flair"].SetAndObserveStorageNodeID(storage.GetID())
        assert isinstance(storage, slicer.vtkMRMLVolumeArchetypeStorageNode)
        assert storage.WriteData(patient["flair"])
        before = path.read_bytes()
        self.export(panel, application, path)
        assert "same file as an input" in application.desk.texts()[0]
        assert path.read_bytes() == before

    def test_a_foreign_file_beside_the_image_stays(self, panel, result, application, tmp_path):
        (tmp_path / "labels.json").write_text('{"EchoTime": 0.1}')
        self.export(panel, application, tmp_path / "labels.nii.gz")
        assert "not written by MedMAP" in application.desk.texts()[0]
        assert not (tmp_path / "labels.nii.gz").exists()
        self.export(panel, application, tmp_path / "mine.nii.gz")
        self.export(panel, application, tmp_path / "mine.nii.gz")
        assert (tmp_path / "mine.json").exists()
        assert len(application.desk.texts()) == 1

    def test_a_report_that_cannot_be_written_leaves_the_one_before_it(
        self, panel, result, application, tmp_path, monkeypatch
    ):
        from MedMAPSegmentLib.sections import report_file

        path = tmp_path / "report.pdf"
        path.write_bytes(b"of yesterday")
        application.desk.answers["getSaveFileName"] = str(path)
        # Qt opens no file there, and says nothing.
        device = report_file._pdfDevice
        monkeypatch.setattr(report_file, "_pdfDevice", lambda name: device("/no/such/folder/x.pdf"))
        panel.ui.reportButton.click()
        assert "not written" in application.desk.texts()[0]
        assert path.read_bytes() == b"of yesterday"
        assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["report.pdf"]

    def test_a_name_without_an_ending_gets_one_and_replaces_nothing(
        self, panel, result, application, tmp_path
    ):
        application.desk.answers["getSaveFileName"] = str(tmp_path / "case 1.2")
        panel.ui.reportButton.click()
        assert (tmp_path / "case 1.2.html").exists()
        panel.ui.saveResultsButton.click()
        assert (tmp_path / "case 1.2.csv").exists()
        assert not application.desk.texts()
        # The dialog has not asked about this name.
        panel.ui.reportButton.click()
        assert "exists" in application.desk.texts()[0]


class Plugin:
    """A DICOM plugin of Slicer: examines items and exports what it was given."""

    exported = None

    def examineForExport(self, item):
        exportable = SimpleNamespace(directory="", item=item, tags={})
        exportable.setTag = exportable.tags.__setitem__
        return [exportable]

    def export(self, exportables):
        type(self).exported = exportables
        return ""


def test_dicom_goes_through_slicers_exporter_with_the_warning(
    panel, patient, choose, finish, application, tmp_path, monkeypatch
):
    module = types.ModuleType("DICOMSegmentationPlugin")
    module.DICOMSegmentationPluginClass = Plugin
    module.__spec__ = SimpleNamespace(name="DICOMSegmentationPlugin")
    monkeypatch.setitem(sys.modules, "DICOMSegmentationPlugin", module)
    patient["flair"].SetAttribute("DICOM.PatientAge", "009Y")
    choose(flair=patient["flair"])
    panel.ui.applyButton.click()
    finish()
    application.desk.answers["getExistingDirectory"] = str(tmp_path)
    panel.ui.exportButton.click()
    (exportable,) = Plugin.exported
    assert exportable.directory == str(tmp_path)
    description = exportable.tags["SeriesDescription"]
    assert description.startswith("MedMAP, WARNING: The patient is 9 years old")
    assert len(description) <= 64


@pytest.mark.parametrize(("index", "extension"), [(0, "QuantitativeReporting"), (1, "SlicerRT")])
def test_an_exporter_that_is_not_installed_is_named_with_its_extension(
    panel, result, application, index, extension
):
    panel.ui.exportComboBox.setCurrentIndex(index)
    assert extension in panel.ui.exportButton.toolTip
    panel.ui.exportButton.click()
    assert extension in application.desk.texts()[0]
    panel.ui.exportComboBox.setCurrentIndex(2)
    assert extension not in panel.ui.exportButton.toolTip


@pytest.mark.parametrize("ending", ["html", "pdf"])
def test_the_report_is_one_file_with_pictures_figures_and_warnings(
    panel, patient, choose, finish, application, tmp_path, ending
):
    choose(flair=patient["flair"], t2=patient["t2"])
    panel.ui.otherTumorCheckBox.click()
    panel.ui.applyButton.click()
    finish()
    path = tmp_path / f"report.{ending}"
    application.desk.answers["getSaveFileName"] = str(path)
    # Slicer runs in a language that the panel has not been translated into.
    application.app.applicationLocaleName = "fr_FR"
    panel.ui.reportButton.click()
    assert not application.desk.texts()
    if ending == "pdf":
        written = path.read_bytes()
        assert written.startswith(b"%PDF")
        assert written.count(b"/Subtype /Image") == 3
        return
    page = path.read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3
    for words in ("another kind", "Whole tumor (WT)", "T2 + FLAIR", "Measured on", "not a medical"):
        assert words in page, words
    assert "http" not in page.replace("http-equiv", "")
    assert '<html lang="en">' in page


class TestPages:
    """How Qt lays the report out on paper."""

    @pytest.fixture
    def report(self, panel, result):
        """Everything that a report can have, several warnings among it."""
        from medmap.checks import Finding
        from MedMAPSegmentLib.mrml.case_report import caseReport
        from MedMAPSegmentLib.mrml.scene import addFindings

        findings = [Finding("warning", "x", f"Warning {n} " + 12 * "of many ") for n in range(12)]
        addFindings(result, findings)
        panel.ui.earlierSelector.setCurrentNode(result)
        return caseReport(panel.state.scene, result, panel.state.task, panel.state.entry.card)

    def test_nothing_is_wider_than_the_page(self, report):
        from MedMAPSegmentLib.sections import report_file

        width = report_file.PAGE_WIDTH - 2 * report_file.PAGE_MARGIN
        document = report_file._document("".join(report_file._blocks(report)))
        document.setDocumentMargin(0)
        document.setTextWidth(width)
        assert document.size.width() <= width

    def test_no_section_is_torn_apart_by_the_end_of_a_page(self, report):
        from MedMAPSegmentLib.sections import report_file

        height = 900
        blocks = report_file._paginated(report_file._blocks(report), height, "Case 7")
        pages = [[]]
        for block in blocks:
            if "page-break-before" in block:
                pages.append([])
            pages[-1].append(block)
        assert len(pages) > 1
        assert "Case 7 \u00b7 2" in pages[1][0]
        for page in pages:
            document = report_file._document("".join(page))
            document.setTextWidth(report_file.PAGE_WIDTH - 2 * report_file.PAGE_MARGIN)
            assert document.size.height() <= height + 2 * document.documentMargin


def test_tables_are_copied_for_spreadsheets(panel, result, application):
    from PySide6 import QtWidgets

    panel.ui.copyResultsButton.click()
    text = QtWidgets.QApplication.clipboard().text()
    assert text.splitlines()[0].split("\t")[:3] == ["Region", "Name", "Volume (ml)"]
    assert len(text.splitlines()) == 4
