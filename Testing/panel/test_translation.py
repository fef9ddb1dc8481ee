"""Whatever the panel shows or writes for people is in the user's language.

The translator of these tests shouts: what is not in capital letters afterwards was not asked for.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

MODULE = Path(__file__).resolve().parents[2] / "MedMAPSegment"
UI_TEXTS = {
    element.text
    for element in ElementTree.parse(MODULE / "Resources/UI/MedMAPSegment.ui").iter("string")
}
"""Slicer translates these while it reads the file."""
SHOWN_BY = (
    "SetName",
    "SetDescription",
    "SetTitle",
    "SetXAxisTitle",
    "SetYAxisTitle",
    "bullets",
    "confirm",
    "paragraph",
    "plain_table",
)
"""Functions whose texts are for people."""
NAMES = ("'ImageScalars'",)
"""Names by which VTK finds arrays."""


def shouted(text: str) -> str:
    """A text in capital letters, its placeholders as they are."""
    parts = re.split(r"(\{[^{}]*\})", text)
    return "".join(part if part.startswith("{") else part.upper() for part in parts)


@pytest.fixture
def shouting(application, monkeypatch):
    """An application in whose language everything is in capital letters."""
    i18n = sys.modules["slicer.i18n"]
    monkeypatch.setattr(i18n, "tr", shouted)
    monkeypatch.setattr(i18n, "translate", lambda context, text: shouted(text))
    from MedMAPSegmentLib.i18n import sentences

    sentences.forgetTranslations()
    yield application
    sentences.forgetTranslations()


def whispers(texts) -> list[str]:
    """Texts with words in small letters, without names of models, devices and extensions."""
    quiet = []
    for text in texts:
        words = re.sub(r"medmap-\S+|\bcpu\b|QuantitativeReporting|SlicerRT|&\w+;", "", text)
        if text not in UI_TEXTS and re.search(r"[a-z]{3,}", words):
            quiet.append(text)
    return quiet


def texts_of_widgets(panel) -> list[str]:
    """What labels, tables, lists and tool tips of the panel say."""
    from PySide6 import QtWidgets

    widgets = panel.parent.findChildren(QtWidgets.QWidget)
    texts = [QtWidgets.QWidget.toolTip(widget) for widget in widgets]
    texts += [QtWidgets.QWidget.accessibleName(widget) for widget in widgets]
    for widget in widgets:
        if isinstance(widget, QtWidgets.QLabel):
            texts.append(QtWidgets.QLabel.text(widget))
        if isinstance(widget, QtWidgets.QAbstractButton):
            texts.append(QtWidgets.QAbstractButton.text(widget))
        if isinstance(widget, QtWidgets.QComboBox):
            for number in range(QtWidgets.QComboBox.count(widget)):
                texts.append(QtWidgets.QComboBox.itemText(widget, number))
        if isinstance(widget, QtWidgets.QTableWidget):
            texts += texts_of_table(widget)
    return texts


def texts_of_table(table) -> list[str]:
    from PySide6.QtWidgets import QTableWidget

    texts = []
    for column in range(QTableWidget.columnCount(table)):
        heads = [QTableWidget.horizontalHeaderItem(table, column)]
        rows = range(QTableWidget.rowCount(table))
        for item in [*heads, *(QTableWidget.item(table, row, column) for row in rows)]:
            if item is not None:
                texts += [item.text(), item.toolTip()]
    return texts


def texts_of_scene(scene) -> list[str]:
    """Names, headings and titles of what the panel has put into the scene."""
    texts = []
    for number in range(scene.GetNumberOfNodes()):
        node = scene.GetNthNode(number)
        isResult = node.GetAttribute("MedMAP.Provenance") is not None
        if node.GetAttribute("MedMAP.Role") is None and not isResult:
            continue
        texts += [node.GetName(), node.GetDescription() or ""]
        if node.IsA("vtkMRMLTableNode"):
            for column in range(node.GetNumberOfColumns()):
                name = node.GetColumnName(column)
                texts += [node.GetColumnTitle(name), node.GetColumnDescription(name)]
        if node.IsA("vtkMRMLSegmentationNode"):
            segmentation = node.GetSegmentation()
            for index in range(segmentation.GetNumberOfSegments()):
                texts.append(segmentation.GetNthSegment(index).GetName())
        if node.IsA("vtkMRMLPlotChartNode"):
            texts += [node.GetTitle(), node.GetXAxisTitle(), node.GetYAxisTitle()]
    return texts


@pytest.fixture
def walked(shouting, panel, patient, choose, finish, application):
    """The panel after a result with a warning, a review and a follow-up."""
    import slicer.util

    from medmap.checks import Finding

    for node in patient.values():
        node.SetName(node.GetName().upper())
    values = np.where(slicer.util.arrayFromVolume(patient["t2"]) > 450, 2, 0).astype(np.uint8)
    reference = application.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "READER")
    slicer.util.updateVolumeFromArray(reference, values)
    reference.CopyOrientation(patient["t2"])
    choose(flair=patient["flair"])
    panel.ui.applyButton.click()
    finish()
    earlier = panel.state.result
    choose(t2=patient["t2"])
    panel.ui.surgeryCheckBox.click()
    panel.ui.reviewSelector.setCurrentNode(reference)
    panel.ui.conventionComboBox.setCurrentIndex(1)
    panel.ui.checkButton.click()
    panel.ui.applyButton.click()
    finish()
    panel.ui.worstSliceButton.click()
    panel.ui.earlierSelector.setCurrentNode(earlier)
    panel.ui.followUpButton.click()
    assert not application.desk.texts()
    assert isinstance(panel.state.patient.warnings[0], Finding)
    return panel


def test_everything_that_the_panel_shows_is_translated(walked):
    quiet = whispers(texts_of_widgets(walked))
    assert not quiet, "\n".join(quiet)


def test_everything_that_the_panel_puts_into_the_scene_is_translated(walked, application):
    texts = texts_of_scene(application.scene)
    assert len(texts) > 60
    quiet = whispers(texts)
    assert not quiet, "\n".join(quiet)


def test_the_report_of_a_case_is_translated(walked, application, tmp_path):
    path = tmp_path / "REPORT.html"
    application.desk.answers["getSaveFileName"] = str(path)
    application.app.applicationLocaleName = "fr_FR"
    walked.ui.reportButton.click()
    page = path.read_text(encoding="utf-8")
    assert '<html lang="fr-FR">' in page
    body = page[page.index("<body>") :]
    alternatives = re.findall(r'alt="([^"]*)"', body)
    texts = [*alternatives, *re.split(r"<[^>]*>", body)]
    assert any("AFTER SURGERY" in text for text in texts)
    quiet = whispers(texts)
    assert not quiet, "\n".join(quiet)


def test_files_go_by_names_that_do_not_depend_on_the_language(walked, application, tmp_path):
    """Scripts read CSV files; what is pasted into a document is for people."""
    from PySide6 import QtWidgets

    application.desk.answers["getSaveFileName"] = str(tmp_path / "volumes.csv")
    walked.ui.saveResultsButton.click()
    text = (tmp_path / "volumes.csv").read_text(encoding="utf-8-sig")
    assert text.startswith("Region,Name,Volume (ml),")
    walked.ui.copyResultsButton.click()
    assert QtWidgets.QApplication.clipboard().text().startswith("REGION\tNAME\tVOLUME (ml)\t")


def bare_texts(path: Path) -> list[str]:
    """Texts that a file hands to ``SHOWN_BY`` as they are."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name not in SHOWN_BY:
            continue
        for argument in node.args:
            if isinstance(argument, ast.Constant | ast.JoinedStr):
                text = ast.unparse(argument)
                words = re.sub(r"\{[^{}]*\}", "", text)
                if text not in NAMES and re.search(r"[A-Za-z]{3,}", words):
                    texts.append(f"{path.name}: {text}")
    return texts


def test_no_file_hands_a_bare_text_to_what_people_read():
    texts = []
    for path in sorted((MODULE / "MedMAPSegmentLib").rglob("*.py")):
        texts += bare_texts(path)
    assert not texts, "\n".join(texts)


def test_the_look_for_bare_texts_sees_them(tmp_path):
    file = tmp_path / "bare.py"
    file.write_text('node.SetName(f"{name} - review")\nhtml.paragraph("Not measured.")\n')
    assert len(bare_texts(file)) == 2
