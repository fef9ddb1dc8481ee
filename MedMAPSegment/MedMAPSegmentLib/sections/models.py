"""Models: which there are, what they have seen, importing and deleting them. No network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from ..models import catalog
from ..models.importing import importModel
from .common import Section, fillCombo
from .dialogs import confirmRemoval, saying, waiting


def userFolder() -> Path:
    """Folder of imported models: beside Slicer's settings, unless $MEDMAP_MODEL_DIR names one."""
    settings = Path(slicer.app.slicerUserSettingsFilePath)
    return catalog.modelFolder(settings.parent / "MedMAP" / "models")


class ModelsSection(Section):
    """The list of models. The chosen one decides which slots the panel has.

    Attributes:
        entries: every ``catalog.ModelEntry``, the default one first.
    """

    attribute = "models"
    box = "settings"

    def setup(self) -> None:
        """Connect the buttons and read the list."""
        self.entries = catalog.listModels(userFolder())
        self.ui.modelComboBox.connect("currentIndexChanged(int)", self.onModel)
        self.ui.importFolderButton.connect("clicked(bool)", self.onImportFolder)
        self.ui.importFileButton.connect("clicked(bool)", self.onImportFile)
        self.ui.showFolderButton.connect("clicked(bool)", self.onShowFolder)
        self.ui.deleteButton.connect("clicked(bool)", self.onDelete)
        self._use(self.entries[0])

    @property
    def entry(self) -> catalog.ModelEntry:
        """The chosen model."""
        return self.state.entry

    def _use(self, entry: catalog.ModelEntry) -> None:
        self.state.useModel(entry, catalog.loaderOf(entry))

    def summary(self) -> str:
        """Which model segments."""
        return self.entry.title

    def rebuild(self) -> None:
        """Show the list."""
        titles = [entry.title for entry in self.entries]
        fillCombo(self.ui.modelComboBox, titles, self.entries.index(self.entry))
        self.ui.modelText.setPlainText(self.entry.text)

    def update(self) -> None:
        """Follow the parameter node, which a loaded scene may have changed."""
        chosen = self.state.parameters
        isIdle = chosen is not None and not self.state.isBusy
        self.ui.modelComboBox.enabled = isIdle
        self.ui.importFolderButton.enabled = isIdle
        self.ui.importFileButton.enabled = isIdle
        self.ui.deleteButton.enabled = isIdle and not self.entry.isDefault
        if isIdle and chosen.model != self.entry.key:
            self._follow(chosen)

    def _follow(self, chosen: Any) -> None:
        """Use the model that the scene names; the default one where it is not installed."""
        for entry in self.entries:
            if entry.key == chosen.model:
                self._use(entry)
                self.state.rebuild()
                return
        text = _("The model '{name}' is not installed; the default model is used.")
        self.state.status = text.format(name=chosen.model)
        chosen.model = catalog.DEFAULT

    def onModel(self, index: int = 0) -> None:
        """Another model was chosen."""
        if self.state.isShown and 0 <= index < len(self.entries):
            self.state.parameters.model = self.entries[index].key
            self.state.changed()

    def onImportFolder(self, clicked: bool = False) -> None:
        """Import a model from its folder."""
        title = _("Folder of the model")
        self._import(qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title))

    def onImportFile(self, clicked: bool = False) -> None:
        """Import a model from a .zip file."""
        kinds = _("Models") + " (*.zip)"
        path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), _("Model file"), "", kinds)
        self._import(path)

    def _import(self, source: str) -> None:
        if not source:
            return
        with saying(_("The model could not be imported.")), waiting():
            entry = importModel(source, userFolder())
            self._refresh(entry.key)
            self.state.say(_("Imported and verified: {model}").format(model=entry.id))

    def onShowFolder(self, clicked: bool = False) -> None:
        """Open the folder of imported models in the file manager."""
        with saying(_("The folder could not be opened.")):
            folder = userFolder()
            folder.mkdir(parents=True, exist_ok=True)
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(folder)))

    def onDelete(self, clicked: bool = False) -> None:
        """Delete the chosen model after asking."""
        if not confirmRemoval(_("Delete the model {model}?").format(model=self.entry.id)):
            return
        with saying(_("The model could not be deleted.")):
            catalog.deleteModel(self.entry, userFolder())
            self._refresh(catalog.DEFAULT)

    def _refresh(self, key: str) -> None:
        """Read the list again and choose an entry."""
        self.entries = catalog.listModels(userFolder())
        chosen = self.state.parameters
        if chosen is not None and chosen.model != key:
            chosen.model = key  # ``update`` takes it from there
            return
        entry = self.entries[0]
        for candidate in self.entries:
            if candidate.key == key:
                entry = candidate
        self._use(entry)
        self.state.rebuild()
