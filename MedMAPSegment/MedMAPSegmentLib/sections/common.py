"""What the sections of the panel share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import slicer.util

from ..state import PanelState
from .jobs import Jobs


class Section:
    """A part of the panel: binds some widgets of ``ui`` to the state.

    Attributes:
        attribute: name of the panel's attribute that holds the section.
        box: name of the box that holds its widgets (``flow.BOXES``); empty for what is always seen.
        ui: the panel's widgets by name.
        state: what the panel is about.
        jobs: carries out computations.
    """

    attribute = ""
    box = ""

    def __init__(self, ui: Any, state: PanelState, jobs: Jobs) -> None:
        self.ui = ui
        self.state = state
        self.jobs = jobs
        self.setup()

    def setup(self) -> None:
        """Connect the widgets; nothing heavy."""

    def rebuild(self) -> None:
        """Make what depends on the task of the model; called when another model is chosen."""

    def update(self) -> None:
        """Enable and describe what fits the present state; called after every change."""

    def resultArrived(self) -> None:
        """A computation has ended with a new result."""

    def clear(self) -> None:
        """Forget what belonged to a scene that is closed."""

    def summary(self) -> str:
        """The section in a few words, for when its box is folded; empty if there is nothing."""
        return ""


@contextmanager
def signalsBlocked(*widgets: Any) -> Iterator[None]:
    """Widgets that are changed inside tell nobody: what the program sets is no choice."""
    before = [(widget, widget.blockSignals(True)) for widget in widgets]
    try:
        yield
    finally:
        for widget, wasBlocked in before:
            widget.blockSignals(wasBlocked)


def showText(label: Any, text: str) -> None:
    """Text of a label that takes no room while it is empty."""
    label.text = text
    label.setVisible(bool(text))


def fillCombo(comboBox: Any, texts: Sequence[str], index: int = 0) -> None:
    """Replace the entries of a combo box without telling anybody."""
    with signalsBlocked(comboBox):
        comboBox.clear()
        for text in texts:
            comboBox.addItem(text)
        comboBox.setCurrentIndex(index)


def chooseIndex(comboBox: Any, index: int) -> None:
    """Choose an entry of a combo box without telling anybody."""
    with signalsBlocked(comboBox):
        comboBox.setCurrentIndex(index)


def setChecked(button: Any, checked: bool) -> None:
    """Check a button or check box without telling anybody."""
    with signalsBlocked(button):
        button.checked = checked


def showVolume(node: Any) -> None:
    """Show a volume in all slice views."""
    slicer.util.setSliceViewerLayers(background=node, fit=True)
