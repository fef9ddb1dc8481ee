"""What goes wrong, and what must be asked: dialogs of the panel."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from medmap.errors import MedMAPError

from ..i18n.sentences import errorText

WINDOW_TITLE = "MedMAP Segment"


@contextmanager
def waiting() -> Iterator[None]:
    """Wait cursor. Unlike ``slicer.util.WaitCursor`` it handles no events: no second click."""
    slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
    try:
        yield
    finally:
        slicer.app.restoreOverrideCursor()


@contextmanager
def saying(failed: str) -> Iterator[None]:
    """Show what goes wrong inside: a MedMAPError as it is, anything else with its details.

    Unlike with ``slicer.util.tryWithErrorDisplay`` a fault that was foreseen (wrong input, no
    memory) leaves no traceback in the log.

    Args:
        failed: what could not be done, as a sentence.
    """
    try:
        yield
    except MedMAPError as error:
        slicer.util.errorDisplay(f"{failed}\n\n{errorText(error)}")
    except Exception as error:
        logging.exception(failed)
        slicer.util.errorDisplay(f"{failed}\n\n{error}", detailedText=traceback.format_exc())


def showError(error: Exception, details: str = "") -> None:
    """Show the error of a computation.

    Args:
        error: what happened.
        details: the traceback of an unexpected one; empty otherwise.
    """
    if details:
        slicer.util.errorDisplay(errorText(error), detailedText=details)
    else:
        slicer.util.errorDisplay(errorText(error))


def confirm(question: str) -> bool:
    """Ask a question that is answered by yes or no."""
    return bool(slicer.util.confirmYesNoDisplay(question, windowTitle=WINDOW_TITLE))


def confirmRemoval(question: str) -> bool:
    """Ask before something is removed."""
    return bool(slicer.util.confirmOkCancelDisplay(question, windowTitle=WINDOW_TITLE))


def askForFile(title: str, name: str, kinds: str) -> str:
    """Path to save under; empty when the user cancels.

    Args:
        title: of the dialog.
        name: proposed file name.
        kinds: file kinds as Qt writes them: ``Tables (*.csv)``.
    """
    return qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, name, kinds)


def warningLine(text: str) -> str:
    """A sentence with a warning sign."""
    return _("\u26a0 {text}").format(text=text)
