"""Inputs: one slot a modality with its state, Detect, and what to expect of the combination."""

from __future__ import annotations

import slicer
import slicer.util
from slicer.i18n import tr as _

from .card import subsetCard
from .detect import databaseTags, detectModalities, volumesOf
from .inputs import SlotState, readSlots
from .widget_common import Section


class InputsSection(Section):
    """The slots of the task."""

    def setup(self):
        """Connect the buttons."""
        self.ui.detectButton.connect("clicked(bool)", self.onDetect)

    def slots(self):
        """Modality name -> (check box, selector, state label)."""
        return {
            name: (
                getattr(self.ui, f"{name}UseCheckBox"),
                getattr(self.ui, f"{name}Selector"),
                getattr(self.ui, f"{name}StateLabel"),
            )
            for name in self.panel.modalities
        }

    def read(self):
        """``inputs.Inputs`` as chosen; None while the panel is not shown."""
        chosen = self.panel.chosen()
        if chosen is None:
            return None
        nodes = {name: getattr(chosen, name) for name in self.panel.modalities}
        leftOut = [name for name in self.panel.modalities if not getattr(chosen, f"{name}Used")]
        return readSlots(self.panel.logic.task, nodes, leftOut, self.panel.choices()["reference"])

    def update(self):
        """Say of each slot whether it is used, missing or left out, and what to expect of the combination."""
        found = self.read()
        self.ui.detectButton.enabled = found is not None and not self.panel.isBusy()
        if found is None:
            return
        for slot in found.slots:
            label = self.slots()[slot.modality][2]
            label.text = _STATES[slot.state] + (" \u26a0" if slot.warning else "")
            label.toolTip = slot.text
        lines = [f"\u26a0 {warning}" for warning in found.warnings]
        if found.used:
            card = subsetCard(self.panel.logic.task, self._card() or {}, found.used)
            known = self._card() is not None
            lines.append(card.text if known else "\n".join([card.title, *(f"\u26a0 {w}" for w in card.warnings)]))
            lines += [] if known else [_("The measured accuracy is shown once the model has been loaded by a run.")]
        self.ui.cardLabel.text = "\n".join(lines)
        self.ui.cardLabel.visible = bool(lines)

    def _card(self):
        """Card of the loaded model; None before the first run, when nothing may be said about its accuracy."""
        bundle = self.panel.logic._bundle
        return None if bundle is None else bundle.card

    def onDetect(self, clicked=False):
        """Fill the slots that have one clear candidate; ask about the others."""
        task = self.panel.logic.task
        database = getattr(slicer, "dicomDatabase", None)
        with slicer.util.tryWithErrorDisplay(_("The volumes could not be looked at.")):
            tags = databaseTags(database) if database is not None and database.isOpen else None
            detection = detectModalities(volumesOf(slicer.mrmlScene), task, tags)
        with slicer.util.NodeModify(self.panel.chosen().parameterNode):
            for name, candidate in detection.found.items():
                setattr(self.panel.chosen(), name, candidate.node)
        self.ui.detectLabel.text = detection.text(task)
        self.ui.detectLabel.visible = True

    def clear(self):
        """Forget what was detected."""
        self.ui.detectLabel.text = ""
        self.ui.detectLabel.visible = False


_STATES = {SlotState.USED: _("used"), SlotState.MISSING: _("missing"), SlotState.LEFT_OUT: _("left out")}
