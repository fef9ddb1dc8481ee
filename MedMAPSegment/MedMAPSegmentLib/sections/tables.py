"""Tables of the panel: filling, copying, saving, and numbers as texts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

from ..mrml.nodes import clipboardText, saveCsv
from ..state import PanelState
from .dialogs import askForFile, saying

Form = Callable[[float], str]
UNDEFINED = "\u2013"


def fillTable(
    widget: Any, heads: Sequence[str], rows: Sequence[Sequence[str]], tips: Sequence[str] = ()
) -> None:
    """Show texts in a table widget, which is hidden while there is nothing to show.

    The table takes the width that the panel has and asks for none: a table that asks for the width
    of its contents, with a last column that stretches, widens the dock, which stretches the column,
    which widens the dock.

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


def clearTable(widget: Any) -> None:
    """Hide a table that has nothing to show."""
    fillTable(widget, [], [])


def fitColumns(widget: Any) -> None:
    """Numbers get the width that they need; the first column takes the remainder and wraps."""
    header = widget.horizontalHeader()
    for column in range(widget.columnCount):
        mode = qt.QHeaderView.ResizeToContents
        if column == 0:
            mode = qt.QHeaderView.Stretch
        header.setSectionResizeMode(column, mode)
    widget.verticalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    widget.resizeRowsToContents()


def tableRows(
    tableNode: Any, columns: Mapping[str, Form | None]
) -> tuple[list[list[str]], list[str]]:
    """Texts of some columns of a table node, row by row, and the columns' descriptions.

    Args:
        tableNode: vtkMRMLTableNode, or None.
        columns: column name -> function that turns a value into a text; None for the usual form.
    """
    if tableNode is None:
        return [], []
    table = tableNode.GetTable()
    arrays = []
    tips = []
    for name, form in columns.items():
        arrays.append((table.GetColumnByName(name), form or numberText))
        tips.append(tableNode.GetColumnDescription(name) or "")
    rows = []
    for row in range(table.GetNumberOfRows()):
        rows.append([form(array.GetValue(row)) for array, form in arrays])
    return rows, tips


def copyTable(tableNode: Any, state: PanelState) -> None:
    """Put a table of the scene on the clipboard, tab-separated, as spreadsheets take it."""
    if tableNode is None:
        return
    qt.QApplication.clipboard().setText(clipboardText(tableNode))
    state.say(_("The table was copied."))


def saveTable(tableNode: Any, state: PanelState) -> None:
    """Ask for a file name and save a table of the scene there, with full precision.

    Args:
        tableNode: vtkMRMLTableNode, or None.
        state: receives the path of the saved file.
    """
    if tableNode is None:
        return
    name = fileName(tableNode.GetName()) + ".csv"
    path = askForFile(_("Save the table"), name, _("Tables") + " (*.csv)")
    if not path:
        return
    with saying(_("The table could not be saved.")):
        state.say(_("Saved: {path}").format(path=saveCsv(tableNode, path)))


def fileName(title: str) -> str:
    """A title as a file name that every system accepts."""
    return re.sub(r"[^\w .+-]", "_", title)


def numberText(value: float | str, digits: int = 1) -> str:
    """A number with so many decimals, a dash for one that is not defined; a text as it is."""
    if isinstance(value, str):
        return value
    if math.isnan(value):
        return UNDEFINED
    return f"{value:.{digits}f}"


def scoreText(value: float) -> str:
    """A number between 0 and 1 with three decimals."""
    return numberText(value, 3)


def shortText(value: float) -> str:
    """A number between 0 and 1 with two decimals."""
    return numberText(value, 2)


def wholeText(value: float) -> str:
    """A number without decimals."""
    return numberText(value, 0)


def changeText(value: float) -> str:
    """A change with its sign; what rounds to nothing has no minus."""
    if math.isnan(value):
        return UNDEFINED
    return f"{value:+z.1f}"
