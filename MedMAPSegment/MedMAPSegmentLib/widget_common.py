"""What the sections of the panel share. Like every ``widget_*`` file it may use Qt; only the panel imports it."""

from __future__ import annotations

import math
import sys

import qt
from slicer.i18n import tr as _


class Section:
    """A part of the panel: binds some widgets of ``ui`` to the logic.

    Attributes:
        panel: the ``MedMAPSegmentWidget``.
        ui: its widgets by name.
    """

    def __init__(self, panel):
        self.panel = panel
        self.ui = panel.ui
        self.setup()

    def setup(self):
        """Connect the widgets; nothing heavy."""

    def update(self):
        """Enable and describe what fits the present state; called after every change."""

    def clear(self):
        """Forget what belonged to a scene that is closed."""


def showTable(widget, tableNode, columns=None):
    """Copy a table node into a table widget.

    Args:
        widget: QTableWidget.
        tableNode: vtkMRMLTableNode; None empties and hides the widget.
        columns: names of the columns to show; None for all.
    """
    table = tableNode.GetTable() if tableNode is not None else None
    every = [table.GetColumn(n) for n in range(table.GetNumberOfColumns())] if table is not None else []
    shown = [column for column in every if columns is None or column.GetName() in columns]
    heads = [_withUnit(column.GetName(), tableNode.GetColumnUnitLabel(column.GetName())) for column in shown]
    rows = [[_text(column.GetValue(row)) for column in shown] for row in range(table.GetNumberOfRows() if table else 0)]
    tips = [tableNode.GetColumnDescription(column.GetName()) for column in shown]
    fillTable(widget, heads, rows, tips)


def fillTable(widget, heads, rows, tips=()):
    """Show texts in a table widget, which is hidden while there is nothing to show."""
    widget.setRowCount(len(rows))
    widget.setColumnCount(len(heads))
    widget.setHorizontalHeaderLabels(heads)
    for row, texts in enumerate(rows):
        for column, text in enumerate(texts):
            item = qt.QTableWidgetItem(text)
            if column < len(tips) and tips[column]:
                item.setToolTip(tips[column])
            widget.setItem(row, column, item)
    widget.resizeColumnsToContents()
    widget.resizeRowsToContents()
    widget.updateGeometry()
    widget.visible = bool(rows)


def deviceTexts():
    """Words for auto, cuda and cpu; with name and free memory of the graphics card once PyTorch is loaded."""
    torch = sys.modules.get("torch")
    card = _("Graphics card (CUDA)")
    if torch is not None and torch.cuda.is_available():
        free, total = (value / 2**30 for value in torch.cuda.mem_get_info())
        card = _("{name} ({free:.1f} of {total:.1f} GB free)").format(
            name=torch.cuda.get_device_name(), free=free, total=total
        )
    elif torch is not None:
        card = _("Graphics card (PyTorch finds none)")
    return [_("Automatic"), card, _("Processor (CPU)")]


def timeLeft(fraction, seconds):
    """Words for how long it may still take after some seconds; empty while that cannot be said."""
    if fraction < 0.1 or seconds < 2:
        return ""
    left = seconds * (1 - fraction) / fraction
    if left < 90:
        return _("about {seconds} s left").format(seconds=max(1, round(left)))
    return _("about {minutes} min left").format(minutes=round(left / 60))


def _withUnit(name, unit):
    return f"{name} ({unit})" if unit else name


def _text(value):
    if isinstance(value, float):
        return "\u2013" if math.isnan(value) else f"{value:.3f}" if abs(value) < 1 else f"{value:.1f}"
    return str(value)
