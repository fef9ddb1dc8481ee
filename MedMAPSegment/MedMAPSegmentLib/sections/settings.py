"""Settings: where the computation runs, on which grid the result lies, which node takes it."""

from __future__ import annotations

import importlib

from slicer.i18n import tr as _

from .. import dependencies
from ..devices import AUTO, Device, listDevices
from .common import Section, chooseIndex, fillCombo
from .dialogs import saying, waiting


class SettingsSection(Section):
    """Device, output geometry and output node."""

    attribute = "settings"
    box = "settings"

    def setup(self) -> None:
        """Connect the widgets."""
        self._devices: tuple[Device, ...] = ()
        self._references: tuple[str, ...] = ()
        self.jobs.onDevicesKnown = self._refreshDevices
        self.ui.findDevicesButton.connect("clicked(bool)", self.onFindDevices)
        self.ui.deviceComboBox.connect("currentIndexChanged(int)", self.onDevice)
        self.ui.referenceComboBox.connect("currentIndexChanged(int)", self.onReference)

    def rebuild(self) -> None:
        """Volumes whose grid the result can lie on."""
        task = self.state.task
        self._references = (AUTO, *task.modality_names)
        titles = [modality.title for modality in task.modalities]
        fillCombo(self.ui.referenceComboBox, [_("Automatic (finest)"), *titles])

    def update(self) -> None:
        """Show the choices."""
        chosen = self.state.parameters
        self.ui.findDevicesButton.enabled = not self.state.isBusy
        if chosen is None:
            return
        if chosen.device not in [device.name for device in self._devices]:
            # Asked once: asking a graphics card for its memory takes time and some of it.
            self._devices = self._devices or listDevices()
            names = [device.name for device in self._devices]
            if chosen.device not in names:
                # Of a loaded scene, or not listed before PyTorch is loaded.
                text = _("{name} (selected before)").format(name=chosen.device)
                self._devices += (Device(chosen.device, text),)
            fillCombo(self.ui.deviceComboBox, [device.text for device in self._devices])
        names = [device.name for device in self._devices]
        chooseIndex(self.ui.deviceComboBox, names.index(chosen.device))
        reference = self.state.reference or AUTO
        chooseIndex(self.ui.referenceComboBox, self._references.index(reference))

    def onDevice(self, index: int = 0) -> None:
        """Another device was chosen."""
        if self.state.isShown and 0 <= index < len(self._devices):
            self.state.parameters.device = self._devices[index].name

    def onReference(self, index: int = 0) -> None:
        """Another grid was chosen."""
        if self.state.isShown and 0 <= index < len(self._references):
            self.state.parameters.reference = self._references[index]

    def onFindDevices(self, clicked: bool = False) -> None:
        """Load PyTorch, if it is installed, and list devices; nothing is installed here."""
        lacking = dependencies.missing()
        if lacking:
            names = ", ".join(map(str, lacking))
            text = _(
                "Not installed yet: {names}. You are asked before anything is installed: on Apply, "
                "Load sample patient or a comparison."
            )
            self.state.say(text.format(names=names))
            return
        with saying(_("PyTorch could not be loaded.")), waiting():
            importlib.import_module("torch")
        self._refreshDevices()

    def _refreshDevices(self) -> None:
        self._devices = ()
        self.state.changed()
