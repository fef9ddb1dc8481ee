"""Checks: whether the chosen scans fit each other, and what helps if they do not."""

from __future__ import annotations

import slicer
import slicer.util
from slicer.i18n import tr as _

from ..mrml import registration
from ..mrml.geometry_checks import checkGeometry
from .common import Section, fillCombo, saying, waiting


class ChecksSection(Section):
    """Compares grids, fields of view and skull-stripping of the scans that are used; aligns on request."""

    attribute = "checks"

    def setup(self):
        """Connect the buttons."""
        self._checked = self._strippers = None
        self._names = ()
        self.ui.checkButton.connect("clicked(bool)", self.onCheck)
        self.ui.stripButton.connect("clicked(bool)", self.onStrip)
        self.ui.alignButton.connect("clicked(bool)", self.onAlign)
        self.ui.unalignButton.connect("clicked(bool)", self.onUnalign)
        self.ui.alignComboBox.connect("currentIndexChanged(int)", self.onAlignChoice)

    def rebuild(self):
        """Scans that can be aligned."""
        task = self.panel.logic.task
        self._names = task.modality_names
        fillCombo(self.ui.alignComboBox, [modality.title for modality in task.modalities])

    @property
    def _moving(self):
        """Name of the scan that is to be aligned."""
        return self._names[max(0, self.ui.alignComboBox.currentIndex)]

    def update(self):
        """What was checked is forgotten as soon as the choice changes."""
        found = self.panel.inputs.read()
        used = found.used if found is not None else {}
        idle = bool(used) and not self.panel.isBusy()
        self.ui.checkButton.enabled = idle
        if self._checked is not None and self._checked != self._key(used):
            self.clear()
        node = used.get(self._moving)
        self.ui.alignButton.enabled = idle and node is not None and len(used) > 1
        self.ui.unalignButton.enabled = (
            idle and node is not None and registration.isRegistered(node)
        )

    def onAlignChoice(self, index=0):
        """Another scan to align."""
        self.update()

    def onCheck(self, clicked=False):
        """Check now."""
        with saying(_("The input check failed.")), waiting():
            self.report()

    def report(self):
        """Check, show what was found and return it."""
        used = self.panel.inputs.read().used
        modules = slicer.app.moduleManager().modulesNames()
        report = checkGeometry(used, self.panel.logic.task, self.panel.reference(), modules)
        self.ui.checksLabel.text = report.text or _("No problems found.")
        self._checked, self._strippers = self._key(used), report.skullStrippers
        self.ui.stripButton.enabled = bool(self._strippers)
        if self._strippers:
            self.ui.stripButton.toolTip = _("Open {title}.").format(title=self._strippers[0][1])
        elif report.notStripped:
            self.ui.checksLabel.text += "\n" + _(
                "No skull-stripping module is installed. HD Brain Extraction and Swiss Skull Stripper are available in "
                "the Extensions Manager."
            )
        return report

    def onStrip(self, clicked=False):
        """Open the preferred skull-stripping module."""
        if self._strippers:
            slicer.util.selectModule(self._strippers[0][0])

    def onAlign(self, clicked=False):
        """Align the chosen scan with the reference scan: BRAINSFit, or SimpleITK on the worker thread."""
        with saying(_("Alignment failed.")):
            used = self.panel.inputs.read().used
            reference = self.report().reference
            name = self._moving
            if reference is None or name == reference:
                self.ui.checksLabel.text = _(
                    "{title} is the reference volume; select another volume to align."
                ).format(title=self.panel.logic.task.modality(name).title)
                return
            with waiting():
                pair = registration.readPair(used[name], used[reference])
            if hasattr(slicer.modules, "brainsfit"):
                method = registration.brainsFit(slicer.mrmlScene, self._runBrainsFit)
                with waiting():
                    movement = method(pair)
                self._aligned(name, pair, movement)
            else:
                self.panel.run.startJob(
                    lambda progress, cancelled: registration.simpleItkRigid(pair),
                    lambda movement: self._aligned(name, pair, movement),
                )

    @staticmethod
    def _runBrainsFit(parameters):
        import slicer.cli

        return slicer.cli.runSync(slicer.modules.brainsfit, None, parameters)

    def _aligned(self, name, pair, movement):
        done = registration.applyMovement(slicer.mrmlScene, pair, movement)
        self.clear()
        title = self.panel.logic.task.modality(name).title
        self.ui.checksLabel.text = _("{title} was {what}.").format(title=title, what=done.text)
        self.panel.update()

    def onUnalign(self, clicked=False):
        """Take the alignment of the chosen scan back."""
        node = self.panel.inputs.read().used.get(self._moving)
        if node is not None and registration.undoRegistration(slicer.mrmlScene, node):
            self.clear()
            self.panel.update()

    def clear(self):
        """Nothing was checked."""
        self._checked = self._strippers = None
        self.ui.stripButton.enabled = False
        self.ui.checksLabel.text = _("Not checked yet (checks also run on Apply).")

    @staticmethod
    def _key(used):
        return {name: (node.GetID(), node.GetTransformNodeID()) for name, node in used.items()}
