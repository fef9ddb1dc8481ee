"""Checks: whether the chosen volumes fit each other, and what helps if they do not."""

from __future__ import annotations

import slicer.util
from slicer.i18n import tr as _

from ..i18n.sentences import findingText
from ..mrml.geometry_checks import SIGNS, GeometryReport
from .common import Section
from .dialogs import saying, waiting


class ChecksSection(Section):
    """Compares grids, fields of view and skull-stripping of the volumes."""

    attribute = "checks"
    box = "inputs"

    def setup(self) -> None:
        """Connect the buttons."""
        self.ui.checkButton.connect("clicked(bool)", self.onCheck)
        self.ui.stripButton.connect("clicked(bool)", self.onStrip)

    def summary(self) -> str:
        """Whether problems were found."""
        report = self.state.report
        if report is None:
            return ""
        warnings = [finding for finding in report.findings if finding.level != "info"]
        if not warnings:
            return _("no problems")
        return _("{count} warnings").format(count=len(warnings))

    def update(self) -> None:
        """Show the report of the present choice."""
        isIdle = bool(self.state.usedVolumes) and not self.state.isBusy
        self.ui.checkButton.enabled = isIdle
        self._showReport(self.state.report)

    def _showReport(self, report: GeometryReport | None) -> None:
        strippers = report.skullStrippers if report is not None else ()
        self.ui.stripButton.enabled = bool(strippers)
        if strippers:
            self.ui.stripButton.toolTip = _("Open {title}.").format(title=strippers[0][1])
        if report is None:
            self.ui.checksLabel.text = _("Not checked yet (checks also run on Apply).")
            return
        lines = []
        for finding in report.findings:
            text = findingText(finding.message, finding.remedy)
            lines.append(f"{SIGNS[finding.level]}{text}")
        if report.notStripped and not strippers:
            lines.append(
                _(
                    "No skull-stripping module is installed. HD Brain Extraction and Swiss Skull "
                    "Stripper are available in the Extensions Manager."
                )
            )
        self.ui.checksLabel.text = "\n".join(lines) or _("No problems found.")

    def onCheck(self, clicked: bool = False) -> None:
        """Check now."""
        with saying(_("The input check failed.")), waiting():
            self.state.checkInputs()

    def onStrip(self, clicked: bool = False) -> None:
        """Open the preferred skull-stripping module."""
        if self.state.report is not None and self.state.report.skullStrippers:
            slicer.util.selectModule(self.state.report.skullStrippers[0][0])
