"""Checks: whether the chosen scans fit each other, before any time is spent on them."""

from __future__ import annotations

import slicer
import slicer.util
from slicer.i18n import tr as _

from .geometry_checks import checkGeometry
from .widget_common import Section


class ChecksSection(Section):
    """Compares grids, fields of view and skull stripping of the scans that are used."""

    def setup(self):
        """Connect the button."""
        self._checked = None
        self.ui.checkButton.connect("clicked(bool)", self.onCheck)

    def update(self):
        """What was checked is forgotten as soon as the choice changes."""
        found = self.panel.inputs.read()
        used = found.used if found is not None else {}
        self.ui.checkButton.enabled = bool(used) and not self.panel.isBusy()
        if self._checked is not None and found is not None and self._checked != self._key(used):
            self.clear()

    def onCheck(self, clicked=False):
        """Check now."""
        with slicer.util.tryWithErrorDisplay(_("The scans could not be checked."), waitCursor=True):
            used = self.panel.inputs.read().used
            names = slicer.app.moduleManager().modulesNames() if hasattr(slicer.app, "moduleManager") else ()
            report = checkGeometry(used, self.panel.logic.task, self.panel.choices()["reference"], names)
            self.ui.checksLabel.text = report.text or _("Nothing to complain about.")
            self._checked = self._key(used)

    def clear(self):
        """Nothing was checked."""
        self._checked = None
        self.ui.checksLabel.text = _("Not checked yet; Apply checks, too.")

    @staticmethod
    def _key(used):
        return {name: node.GetID() for name, node in used.items()}
