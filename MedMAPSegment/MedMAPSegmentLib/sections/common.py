"""What the sections of the panel share."""

from __future__ import annotations

import logging
import math
import re
import traceback
from contextlib import contextmanager

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from medmap.errors import MedMAPError

from ..mrml.nodes import saveCsv


class Section:
    """A part of the panel: binds some widgets of ``ui`` to the logic.

    Attributes:
        attribute: name of the panel's attribute that holds the section.
        panel: the ``MedMAPSegmentWidget``.
        ui: its widgets by name.
    """

    attribute = ""

    def __init__(self, panel):
        self.panel = panel
        self.ui = panel.ui
        self.setup()

    def setup(self):
        """Connect the widgets; nothing heavy."""

    def rebuild(self):
        """Make what depends on the task of the model; called when another model is chosen."""

    def update(self):
        """Enable and describe what fits the present state; called after every change, so it must be quick."""

    def clear(self):
        """Forget what belonged to a scene that is closed."""


@contextmanager
def waiting():
    """Wait cursor. Unlike ``slicer.util.WaitCursor`` it handles no events, so no second click can slip in."""
    slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
    try:
        yield
    finally:
        slicer.app.restoreOverrideCursor()


@contextmanager
def saying(failed):
    """Show what goes wrong inside, under ``failed``: a MedMAPError as it is, anything else with its details.

    Unlike with ``slicer.util.tryWithErrorDisplay`` a fault that was foreseen (wrong input, no memory) leaves no
    traceback in the log.

    Args:
        failed: what could not be done, as a sentence.
    """
    try:
        yield
    except MedMAPError as error:
        slicer.util.errorDisplay(f"{failed}\n\n{error}")
    except Exception as error:
        logging.exception(failed)
        slicer.util.errorDisplay(f"{failed}\n\n{error}", detailedText=traceback.format_exc())


def fillTable(widget, heads, rows, tips=()):
    """Show texts in a table widget, which is hidden while there is nothing to show.

    The table takes the width that the panel has and asks for none: a table that asks for the width of its contents,
    with a last column that stretches, widens the dock, which stretches the column, which widens the dock.

    Args:
        widget: QTableWidget.
        heads: headings.
        rows: one list of texts per row.
        tips: tool tip of each column.
    """
    widget.setRowCount(len(rows))
    widget.setColumnCount(len(heads))
    widget.setHorizontalHeaderLabels(list(heads))
    for row, texts in enumerate(rows):
        for column, text in enumerate(texts):
            item = qt.QTableWidgetItem(text)
            if column < len(tips) and tips[column]:
                item.setToolTip(tips[column])
            widget.setItem(row, column, item)
    widget.setVisible(bool(rows))
    fitColumns(widget)


def fitColumns(widget):
    """Numbers get the width that they need; the first column takes what is left and wraps its texts."""
    header = widget.horizontalHeader()
    for column in range(widget.columnCount):
        first = column == 0
        mode = qt.QHeaderView.Stretch if first else qt.QHeaderView.ResizeToContents
        header.setSectionResizeMode(column, mode)
    widget.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    widget.resizeRowsToContents()


def tableRows(tableNode, columns):
    """Texts of some columns of a table node, row by row, and the columns' descriptions.

    Args:
        tableNode: vtkMRMLTableNode, or None.
        columns: column name -> function that turns a value into a text; None for the usual form.
    """
    if tableNode is None:
        return [], []
    table = tableNode.GetTable()
    found = [(table.GetColumnByName(name), form or numberText) for name, form in columns.items()]
    rows = [
        [form(array.GetValue(row)) for array, form in found]
        for row in range(table.GetNumberOfRows())
    ]
    return rows, [tableNode.GetColumnDescription(name) or "" for name in columns]


def saveTable(tableNode, statusLabel):
    """Ask for a file name and save a table of the scene there; with full precision, for spreadsheets.

    Args:
        tableNode: vtkMRMLTableNode.
        statusLabel: says where it was saved.
    """
    name = re.sub(r"[^\w .+-]", "_", tableNode.GetName()) + ".csv"
    path = qt.QFileDialog.getSaveFileName(
        slicer.util.mainWindow(), _("Save the table"), name, _("Tables") + " (*.csv)"
    )
    if not path:
        return
    with saying(_("The table could not be saved.")):
        statusLabel.text = _("Saved: {path}").format(path=saveCsv(tableNode, path))


def numberText(value, digits=1):
    """A number with so many decimals, a dash for one that is not defined; a text as it is."""
    if isinstance(value, str):
        return value
    return "\u2013" if math.isnan(value) else f"{value:.{digits}f}"


def scoreText(value):
    """A number between 0 and 1 with three decimals."""
    return numberText(value, 3)


def shortText(value):
    """A number between 0 and 1 with two decimals."""
    return numberText(value, 2)


def changeText(value):
    """A change with its sign."""
    return "\u2013" if math.isnan(value) else f"{value:+.1f}"


def showText(label, text):
    """Text of a label that takes no room while it is empty."""
    label.text = text
    label.setVisible(bool(text))


def fillCombo(comboBox, texts, index=0):
    """Replace the entries of a combo box without telling anybody."""
    wasBlocked = comboBox.blockSignals(True)
    try:
        comboBox.clear()
        for text in texts:
            comboBox.addItem(text)
        comboBox.setCurrentIndex(index)
    finally:
        comboBox.blockSignals(wasBlocked)


def inScene(node):
    """The node, or None when it is none or no longer in the scene."""
    return node if node is not None and slicer.mrmlScene.IsNodePresent(node) else None
