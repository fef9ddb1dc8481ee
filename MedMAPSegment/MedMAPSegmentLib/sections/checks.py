"""Checks: whether the chosen volumes fit each other, and what helps if they do not."""

from __future__ import annotations

import slicer
import slicer.util
from slicer.i18n import tr as _

from ..mrml import registration
from ..mrml.geometry_checks import SIGNS, GeometryReport
from .common import Section, fillCombo
from .dialogs import saying, waiting
from .sentences import findingText


class ChecksSection(Section):
    """Compares grids, fields of view and skull-stripping of the volumes; aligns on request."""

    attribute = "checks"
    box = "inputs"

    def setup(self) -> None:
        """Connect the buttons."""
        self._names: tuple[str, ...] = ()
        self._alignment = ""
        self.ui.checkButton.connect("clicked(bool)", self.onCheck)
        self.ui.stripButton.connect("clicked(bool)", self.onStrip)
        self.ui.alignButton.connect("clicked(bool)", self.onAlign)
        self.ui.unalignButton.connect("clicked(bool)", self.onUnalign)
        self.ui.alignComboBox.connect("currentIndexChanged(int)", self.onAlignChoice)

    def rebuild(self) -> None:
        """Volumes that can be aligned."""
        task = self.state.task
        self._names = task.modality_names
        fillCombo(self.ui.alignComboBox, [modality.title for modality in task.modalities])

    def summary(self) -> str:
        """Whether problems were found."""
        report = self.state.report
        if report is None:
            return ""
        warnings = [finding for finding in report.findings if finding.level != "info"]
        if not warnings:
            return _("no problems")
        return _("{count} warnings").format(count=len(warnings))

    @property
    def _moving(self) -> str:
        """Name of the modality that is to be aligned."""
        return self._names[max(0, self.ui.alignComboBox.currentIndex)]

    def update(self) -> None:
        """Show the report of the present choice."""
        used = self.state.usedVolumes
        isIdle = bool(used) and not self.state.isBusy
        self.ui.checkButton.enabled = isIdle
        node = used.get(self._moving)
        canAlign = isIdle and node is not None
        self.ui.alignButton.enabled = canAlign and len(used) > 1
        self.ui.unalignButton.enabled = canAlign and registration.isRegistered(node)
        self._showReport(self.state.report)

    def _showReport(self, report: GeometryReport | None) -> None:
        strippers = report.skullStrippers if report is not None else ()
        self.ui.stripButton.enabled = bool(strippers)
        if strippers:
            self.ui.stripButton.toolTip = _("Open {title}.").format(title=strippers[0][1])
        if report is None:
            text = self._alignment or _("Not checked yet (checks also run on Apply).")
            self.ui.checksLabel.text = text
            return
        self._alignment = ""
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

    def onAlignChoice(self, index: int = 0) -> None:
        """Another volume to align."""
        self.update()

    def onCheck(self, clicked: bool = False) -> None:
        """Check now."""
        with saying(_("The input check failed.")), waiting():
            self.state.checkInputs()

    def onStrip(self, clicked: bool = False) -> None:
        """Open the preferred skull-stripping module."""
        if self.state.report is not None and self.state.report.skullStrippers:
            slicer.util.selectModule(self.state.report.skullStrippers[0][0])

    def onAlign(self, clicked: bool = False) -> None:
        """Align the chosen volume: BRAINSFit, or SimpleITK on the worker thread."""
        with saying(_("Alignment failed.")):
            reference = self.state.checkInputs().reference
            name = self._moving
            if reference is None or name == reference:
                title = self.state.task.modality(name).title
                text = _("{title} is the reference volume; select another volume to align.")
                self._say(text.format(title=title))
                return
            used = self.state.usedVolumes
            with waiting():
                pair = registration.readPair(used[name], used[reference])
            if hasattr(slicer.modules, "brainsfit"):
                method = registration.brainsFit(self.state.scene, _runBrainsFit)
                with waiting():
                    movement = method(pair)
                self._aligned(name, pair, movement)
            else:
                self.jobs.start(
                    lambda progress, cancelled: registration.simpleItkRigid(pair),
                    lambda movement: self._aligned(name, pair, movement),
                )

    def _aligned(self, name: str, pair, movement) -> None:
        done = registration.applyMovement(self.state.scene, pair, movement)
        title = self.state.task.modality(name).title
        text = _("{title} was moved by {shift} mm and turned by {angle} degrees.")
        self._say(
            text.format(title=title, shift=f"{done.shift_mm:.1f}", angle=f"{done.degrees:.1f}")
        )

    def _say(self, text: str) -> None:
        """Show a line in the place of the report, until the inputs are checked again."""
        self.state.report = None
        self._alignment = text
        self.state.changed()

    def onUnalign(self, clicked: bool = False) -> None:
        """Take the alignment of the chosen volume back."""
        node = self.state.usedVolumes.get(self._moving)
        if node is not None and registration.undoRegistration(self.state.scene, node):
            self._say("")

    def clear(self) -> None:
        """Nothing was checked."""
        self._alignment = ""


def _runBrainsFit(parameters: dict):
    import slicer.cli

    return slicer.cli.runSync(slicer.modules.brainsfit, None, parameters)
