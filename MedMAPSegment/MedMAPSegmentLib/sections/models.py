"""Models: which there are, what they have seen, importing and deleting them. No network."""

from __future__ import annotations

from pathlib import Path

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from ..models import catalog as models
from ..models.importing import importModel
from .common import Section, fillCombo, saying, waiting


class ModelsSection(Section):
    """The list of models. The chosen one decides which slots the panel has.

    Attributes:
        entries: every ``models.ModelEntry``, the default one first.
        entry: the chosen one.
    """

    attribute = "models"

    def setup(self):
        """Connect the buttons and read the list."""
        self.entries = models.listModels(self.folder())
        self.entry = self.entries[0]
        self.ui.modelComboBox.connect("currentIndexChanged(int)", self.onModel)
        self.ui.importFolderButton.connect("clicked(bool)", self.onImportFolder)
        self.ui.importFileButton.connect("clicked(bool)", self.onImportFile)
        self.ui.showFolderButton.connect("clicked(bool)", self.onShowFolder)
        self.ui.deleteButton.connect("clicked(bool)", self.onDelete)
        self._use(self.entry)

    @staticmethod
    def folder():
        """Where imported models lie: beside Slicer's settings, unless $MEDMAP_MODEL_DIR says otherwise."""
        return models.modelFolder(
            Path(slicer.app.slicerUserSettingsFilePath).parent / "MedMAP" / "models"
        )

    def _use(self, entry):
        """Make an entry the one that segments."""
        self.entry = entry
        if entry.task is not None:
            self.panel.logic.setModel(models.loaderOf(entry), entry.task)

    def rebuild(self):
        """Show the list."""
        fillCombo(
            self.ui.modelComboBox,
            [entry.title for entry in self.entries],
            self.entries.index(self.entry),
        )
        self.ui.modelText.setPlainText(self.entry.text)

    def update(self):
        """Follow the parameter node, which a loaded scene may have changed; buttons follow what can be done."""
        chosen = self.panel.parameters()
        if chosen is not None and chosen.model != self.entry.key and not self.panel.isBusy():
            found = next((entry for entry in self.entries if entry.key == chosen.model), None)
            if found is None:
                self.panel.ui.statusLabel.text = _(
                    "The model '{name}' is not installed; the default model is used."
                ).format(name=chosen.model)
                chosen.model = models.DEFAULT
                return
            self._use(found)
            self.panel.rebuild()
            return
        idle = chosen is not None and not self.panel.isBusy()
        self.ui.modelComboBox.enabled = idle
        self.ui.importFolderButton.enabled = self.ui.importFileButton.enabled = idle
        self.ui.deleteButton.enabled = idle and not self.entry.isDefault

    def onModel(self, index=0):
        """Another model was chosen."""
        if self.panel.parameters() is not None and 0 <= index < len(self.entries):
            self.panel.parameters().model = self.entries[index].key
            self.panel.update()

    def onImportFolder(self, clicked=False):
        """Import a model from its folder."""
        source = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Folder of the model")
        )
        self._import(source)

    def onImportFile(self, clicked=False):
        """Import a model from a .zip file."""
        source = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Model file"), "", _("Models") + " (*.zip)"
        )
        self._import(source)

    def _import(self, source):
        if not source:
            return
        with saying(_("The model could not be imported.")), waiting():
            entry = importModel(source, self.folder())
            self._refresh(entry.key)
            self.panel.ui.statusLabel.text = _("Imported and verified: {model}").format(
                model=entry.id
            )

    def onShowFolder(self, clicked=False):
        """Open the folder of imported models in the file manager."""
        with saying(_("The folder could not be opened.")):
            self.folder().mkdir(parents=True, exist_ok=True)
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self.folder())))

    def onDelete(self, clicked=False):
        """Delete the chosen model after asking."""
        question = _("Delete the model {model}?").format(model=self.entry.id)
        if not slicer.util.confirmOkCancelDisplay(question, windowTitle="MedMAP Segment"):
            return
        with saying(_("The model could not be deleted.")):
            models.deleteModel(self.entry, self.folder())
            self._refresh(models.DEFAULT)

    def _refresh(self, key):
        """Read the list again and choose an entry."""
        self.entries = models.listModels(self.folder())
        chosen = self.panel.parameters()
        if chosen is not None and chosen.model != key:
            chosen.model = key  # ``update`` takes it from there
        else:
            self._use(next((entry for entry in self.entries if entry.key == key), self.entries[0]))
            self.panel.rebuild()
