"""Run: Apply and Cancel, progress with the time left. Always in sight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slicer.i18n import tr as _

from medmap.bundle.format import choose_entry
from medmap.errors import UnavailableError

from ..devices import AUTO, CPU
from ..i18n.sentences import errorText, sentence
from ..request import Request
from .common import Section, showText
from .dialogs import confirm, saying, waiting

if TYPE_CHECKING:
    from medmap.inference import Segmentation


class RunSection(Section):
    """Segments from the selected volumes."""

    attribute = "run"

    def setup(self) -> None:
        """Connect the button."""
        self.jobs.onProgress = self.showProgress
        self.ui.applyButton.connect("clicked(bool)", self.onApply)

    def update(self) -> None:
        """Enable Apply, or say in its tool tip everything that is in the way."""
        self.showProgress()
        self.ui.progressBar.setVisible(self.state.isBusy)
        button = self.ui.applyButton
        if self.state.isBusy:
            button.text = _("Cancel")
            if self.jobs.isCanceling:
                button.text = _("Canceling...")
            button.toolTip = _("Stop the computation. The scene does not change.")
            button.enabled = not self.jobs.isCanceling
            return
        obstacles = self._obstacles()
        button.text = _("&Apply")
        button.toolTip = "\n".join(obstacles) or _("Segment from the selected volumes.")
        button.enabled = self.state.isShown and not obstacles

    def showProgress(self) -> None:
        """Show how far the computation is."""
        self.ui.progressBar.value = round(100 * self.jobs.fraction)
        showText(self.ui.statusLabel, self.state.status)

    def _obstacles(self) -> list[str]:
        inputs = self.state.inputs
        if inputs is None:
            return []
        obstacles = []
        entry = self.state.entry
        if entry.error:
            obstacles.append(entry.error)
        if inputs.used and choose_entry(entry.subsets, inputs.used) is None:
            obstacles.append(_("The model does not support this modality subset."))
        return [*obstacles, *(sentence(text) for text in self.state.obstacles())]

    def onApply(self, clicked: bool = False) -> None:
        """Start, or cancel what is under way."""
        if self.state.isBusy:
            self.jobs.cancel()
            return
        self.start()

    def start(self, device: str | None = None) -> None:
        """Segment from the selected volumes.

        Args:
            device: overrides the chosen device.
        """
        with saying(_("The segmentation could not be started.")):
            if self.state.isBusy or not self.jobs.canCompute():
                return
            with waiting():
                self.state.checkInputs()
                request = self.state.logic.prepare(
                    **self.state.segmentationArguments(),
                    device=device or self.state.parameters.device,
                    remarks=self.state.patient.warnings,
                )
            self.jobs.start(
                self.state.logic.work(request),
                lambda result: self._take(request, result),
                lambda error: self._offerProcessor(error, request),
            )

    def _take(self, request: Request, result: Segmentation) -> None:
        node = self.state.takeResult(request, result)
        self._noteDevice(request.device, result.provenance.run.device)
        if not self.state.isBusy:
            self.state.say(_("Done: {name}").format(name=node.GetName()))

    def _offerProcessor(self, error: Exception, request: Request) -> bool:
        """Ask whether the processor shall do what another device could not.

        Returns False, without a question, for other errors.
        """
        if not isinstance(error, UnavailableError) or request.device == CPU:
            return False
        question = _("{error}\n\nCompute on the CPU instead? This takes longer.")
        if confirm(question.format(error=errorText(error))):
            self.start(CPU)
        return True

    def _noteDevice(self, requested: str, used: str) -> None:
        """Say it visibly when the processor had to do what was asked of any device."""
        text = ""
        if used == CPU and requested == AUTO:
            text = _(
                "\u26a0 No usable graphics card was found: computed on the CPU, which takes longer."
            )
        showText(self.ui.runNoteLabel, text)

    def clear(self) -> None:
        """A new scene: the messages about the last one no longer apply."""
        showText(self.ui.statusLabel, "")
        showText(self.ui.runNoteLabel, "")
