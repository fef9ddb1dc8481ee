"""The panel in a dock of a main window: it keeps its width, and nothing in it is cut off.

In the application the panel shares the main window with the views. A section whose preferred width
grows with its contents takes that width from the views, so the whole walk is repeated here at two
sizes of the window, with names as long as hospitals give them.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from Testing.panel import heads

WIDEST_DOCK = 420
"""Pixels; Slicer's own modules take 311 to 424."""
LONG_NAME = "9: Ax T1 MPRAGE +C post contrast 1mm iso reformatted head 3T (brain extracted, N4)"
COMBO_BOXES = (
    "deviceComboBox",
    "exportComboBox",
    "mapComboBox",
    "overlayComboBox",
    "planeComboBox",
    "referenceComboBox",
)
"""With texts of ours; names of volumes and models may be of any length."""
ARROW_WIDTH = 26
SECTIONS = ("inputs", "results", "review", "subsets", "followUp", "settings")


@pytest.fixture(params=[(1600, 1200), (1366, 768)], ids=lambda size: f"{size[0]}x{size[1]}")
def dock(request, panel, application):
    """The panel in the left dock of a window of that size, scrolled vertically only, as Slicer's
    module panel.
    """
    from PySide6 import QtCore, QtWidgets

    class ModulePanel(QtWidgets.QScrollArea):
        """As Slicer's: it takes the width that the panel asks for from the views."""

        def __init__(self):
            super().__init__()
            self.setWidgetResizable(True)
            self.setHorizontalScrollBarPolicy(QtCore.Qt.ScrollBarPolicy.ScrollBarAlwaysOff)

        def follow(self):
            """Take at least the width that the panel cannot do without."""
            narrowest = QtWidgets.QWidget.minimumSizeHint(panel.parent).width()
            preferred = QtWidgets.QWidget.sizeHint(panel.parent).width()
            bar = self.verticalScrollBar().sizeHint().width()
            self.setMinimumWidth(max(narrowest, preferred) + bar)

    window = QtWidgets.QMainWindow()
    views = QtWidgets.QTextEdit()
    window.setCentralWidget(views)
    area = ModulePanel()
    area.setWidget(panel.parent)
    holder = QtWidgets.QDockWidget("Module")
    holder.setWidget(area)
    window.addDockWidget(QtCore.Qt.DockWidgetArea.LeftDockWidgetArea, holder)
    window.resize(*request.param)
    window.show()
    for _ in range(5):
        application.app.processEvents()
    yield SimpleNamespace(window=window, holder=holder, area=area, size=request.param)
    area.takeWidget().setParent(None)
    window.close()


def cut_off(panel, dock) -> list[str]:
    """What is seen only in part: widgets beyond the edge, texts wider than their widget, tables
    that scroll.
    """
    from PySide6 import QtCore, QtWidgets

    right = dock.area.viewport().width()
    problems = []
    for widget in panel.parent.findChildren(QtWidgets.QWidget):
        if not QtWidgets.QWidget.isVisible(widget):
            continue
        name = QtCore.QObject.objectName(widget) or type(widget).__name__
        width = QtWidgets.QWidget.width(widget)
        left = QtWidgets.QWidget.mapTo(widget, panel.parent, QtCore.QPoint(0, 0)).x()
        table = QtWidgets.QWidget.parentWidget(QtWidgets.QWidget.parentWidget(widget) or widget)
        in_table = isinstance(table, QtWidgets.QAbstractScrollArea)
        if not in_table and left + width > right:
            problems.append(f"{name} ends at {left + width} of {right} pixels")
        texts = (QtWidgets.QPushButton, QtWidgets.QCheckBox, QtWidgets.QLabel)
        if isinstance(widget, texts) and width < QtWidgets.QWidget.minimumSizeHint(widget).width():
            problems.append(f"The text of {name} needs more than {width} pixels")
        if name in COMBO_BOXES:
            text = QtWidgets.QComboBox.currentText(widget)
            needed = QtWidgets.QWidget.fontMetrics(widget).horizontalAdvance(text) + ARROW_WIDTH
            if width < needed:
                problems.append(f"'{text}' in {name} needs {needed} of {width} pixels")
        if isinstance(widget, QtWidgets.QTableWidget):
            problems += table_problems(widget, name)
    return problems


def table_problems(table, name) -> list[str]:
    """A table must neither scroll sideways nor shorten a text."""
    from PySide6 import QtWidgets

    problems = []
    if QtWidgets.QTableWidget.horizontalScrollBar(table).maximum() > 0:
        problems.append(f"{name} scrolls sideways")
    header = QtWidgets.QTableWidget.horizontalHeader(table)
    for column in range(QtWidgets.QTableWidget.columnCount(table)):
        if header.sectionSize(column) < header.sectionSizeHint(column):
            problems.append(f"The heading of column {column} of {name} is cut off")
        for row in range(QtWidgets.QTableWidget.rowCount(table)):
            height = QtWidgets.QTableWidget.rowHeight(table, row)
            needed = QtWidgets.QTableView.sizeHintForRow(table, row)
            if height < needed:
                problems.append(f"Row {row} of {name} shows {height} of {needed} pixels")
    return problems


@pytest.fixture
def long_named(patient, application):
    """The patient's volumes under names of a clinical archive, and a reference with such a name."""
    import slicer.util

    for number, node in enumerate(patient.values()):
        node.SetName(f"{number}{LONG_NAME} {node.GetName()}")
    array = slicer.util.arrayFromVolume(patient["t2"])
    values = np.select([array > 600, array > 450, array > 350], [2, 4, 1], 0).astype(np.uint8)
    reference = application.scene.AddNewNodeByClass(
        "vtkMRMLLabelMapVolumeNode", f"{LONG_NAME} expert consensus of three raters"
    )
    slicer.util.updateVolumeFromArray(reference, values)
    reference.CopyOrientation(patient["t2"])
    return SimpleNamespace(volumes=patient, reference=reference)


class Observer:
    """Looks at the dock after each step: its width, and what is cut off."""

    def __init__(self, panel, dock, application):
        self.panel = panel
        self.dock = dock
        self.application = application
        self.widths = {}
        self.problems = []

    def look(self, step):
        for _ in range(6):
            self.application.app.processEvents()
            self.dock.area.follow()
        self.widths[step] = (self.dock.holder.width(), self.dock.window.width())
        self.problems += [f"{step}: {problem}" for problem in cut_off(self.panel, self.dock)]


def to_the_result(panel, observer, finish):
    ui = panel.ui
    observer.look("empty")
    ui.detectButton.click()
    observer.look("detected")
    ui.checkButton.click()
    observer.look("checked")
    panel.inputs.slots["t2"].checkBox.click()
    observer.look("one modality excluded")
    ui.applyButton.click()
    observer.look("running")
    finish(120)
    observer.look("result")


def through_the_comparisons(panel, observer, finish, reference):
    ui = panel.ui
    ui.show3DButton.click()
    ui.reviewSelector.setCurrentNode(reference)
    ui.reviewCollapsibleButton.collapsed = False
    observer.look("reference chosen")
    ui.reviewButton.click()
    finish(120)
    observer.look("compared")
    ui.worstSliceButton.click()
    observer.look("worst slice")
    ui.subsetsCollapsibleButton.collapsed = False
    observer.look("comparison of modalities opened")
    ui.subsetsButton.click()
    finish(120)
    observer.look("modalities compared")
    ui.uncertaintyButton.click()
    ui.uncertainSliceButton.click()
    observer.look("uncertainty")


def test_the_dock_keeps_its_width_through_the_whole_walk(
    dock, panel, long_named, application, finish, small_bundle
):
    pytest.importorskip("torch")
    import shutil

    from medmap.bundle.loading import load_bundle
    from MedMAPSegmentLib.logic import _segment

    folder = small_bundle(name="an-imported-model-with-a-long-descriptive-name-and-version")
    bundle = load_bundle(folder)
    panel.logic._segment = _segment
    panel.logic._loadBundle = lambda: bundle
    observer = Observer(panel, dock, application)
    to_the_result(panel, observer, finish)
    through_the_comparisons(panel, observer, finish, long_named.reference)
    ui = panel.ui
    ui.settingsCollapsibleButton.collapsed = False
    application.desk.answers["getOpenFileName"] = shutil.make_archive(str(folder), "zip", folder)
    ui.importFileButton.click()
    observer.look("model imported")
    for name in SECTIONS:
        getattr(ui, f"{name}CollapsibleButton").collapsed = False
    observer.look("everything opened")

    too_wide = {
        step: width for step, (width, _window) in observer.widths.items() if width > WIDEST_DOCK
    }
    assert not too_wide, too_wide
    assert {window for _dock, window in observer.widths.values()} == {dock.size[0]}
    assert not observer.problems, "\n".join(observer.problems)


def test_the_steps_of_four_raw_scans_fit_into_the_dock(dock, panel, application):
    for number, (name, widgets) in enumerate(panel.inputs.slots.items()):
        node = heads.add_volume(application.scene, f"{number}{LONG_NAME}", heads.head(name))
        widgets.selector.setCurrentNode(node)
    for _ in range(6):
        application.app.processEvents()
        dock.area.follow()
    assert "brain extraction of 4 scans" in panel.ui.preparationLabel.text
    assert dock.holder.width() <= WIDEST_DOCK
    assert not cut_off(panel, dock)
