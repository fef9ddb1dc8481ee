"""Run: device, Apply and Cancel, progress with the time left; the one computation that may be under way."""

from __future__ import annotations

import gc
import importlib
import time

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from medmap.bundle.format import choose_entry
from medmap.errors import UnavailableError

from .. import dependencies
from ..devices import AUTO, CPU, Device, cardsAreKnown, listDevices
from ..logic import resultOf
from ..runner import JobState, ThreadRunner
from .common import Section, fillCombo, saying, showText, waiting

POLL_SECONDS = 0.02


class RunSection(Section):
    """Starts work on the worker thread, follows it, and hands its result on.

    Attributes:
        runner: carries out the work (``runner.Runner``).
        installer: installs what is missing (``dependencies.Installer``).
    """

    attribute = "run"

    def setup(self):
        """Connect the buttons; prepare the timer."""
        self.runner = ThreadRunner()
        self.installer = dependencies.SlicerInstaller()
        self._job = self._done = self._failed = None
        self._started = 0.0
        self._devices = self._references = ()
        # A zero-interval timer whose slot waits a little: the wait lets the worker have the interpreter lock, which
        # Slicer's main thread keeps otherwise even while it idles.
        self._timer = qt.QTimer()
        self._timer.setInterval(0)
        self._timer.connect("timeout()", self.onPoll)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.ui.findDevicesButton.connect("clicked(bool)", self.onFindDevices)
        self.ui.deviceComboBox.connect("currentIndexChanged(int)", self.onDevice)
        self.ui.referenceComboBox.connect("currentIndexChanged(int)", self.onReference)

    def rebuild(self):
        """Scans whose grid the result can lie on."""
        task = self.panel.logic.task
        self._references = (AUTO, *task.modality_names)
        fillCombo(
            self.ui.referenceComboBox,
            [_("Automatic (finest)"), *(m.title for m in task.modalities)],
        )

    @property
    def isBusy(self):
        """True while a computation is under way."""
        return self._job is not None

    def update(self):
        """Show the choices; enable Apply, or say in its tool tip everything that is in the way."""
        chosen = self.panel.parameters()
        if chosen is not None:
            self._showChoices(chosen)
        button = self.ui.applyButton
        if self._job is not None:
            cancelling = self._job.cancelRequested
            button.text = _("Canceling...") if cancelling else _("Cancel")
            button.toolTip = _("Stop the computation. The scene does not change.")
            button.enabled = not cancelling
            return
        problems = self._problems()
        button.text = _("&Apply")
        button.toolTip = "\n".join(problems) or _("Segment from the selected volumes.")
        button.enabled = chosen is not None and not problems

    def _problems(self):
        if self.panel.parameters() is None:
            return []
        entry, inputs = self.panel.models.entry, self.panel.inputs.read()
        found = [entry.error] if entry.error else []
        if inputs.used and choose_entry(entry.subsets, inputs.used) is None:
            found.append(_("The model does not support this modality subset."))
        return [*found, *inputs.problems, *self.panel.logic.problems(**self.panel.choices())]

    def _showChoices(self, chosen):
        if chosen.device not in [device.name for device in self._devices]:
            # Asked once: asking a graphics card for its memory takes time and some of it.
            self._devices = self._devices or listDevices()
            if chosen.device not in [
                device.name for device in self._devices
            ]:  # of a loaded scene, or not known yet
                self._devices += (
                    Device(chosen.device, _("{name} (selected before)").format(name=chosen.device)),
                )
            fillCombo(self.ui.deviceComboBox, [device.text for device in self._devices])
        names = [device.name for device in self._devices]
        for comboBox, at in (
            (self.ui.deviceComboBox, names.index(chosen.device)),
            (self.ui.referenceComboBox, self._references.index(self.panel.reference() or AUTO)),
        ):
            wasBlocked = comboBox.blockSignals(True)
            comboBox.setCurrentIndex(at)
            comboBox.blockSignals(wasBlocked)

    def onDevice(self, index=0):
        """Another device was chosen."""
        if self.panel.parameters() is not None and 0 <= index < len(self._devices):
            self.panel.parameters().device = self._devices[index].name

    def onReference(self, index=0):
        """Another grid was chosen."""
        if self.panel.parameters() is not None and 0 <= index < len(self._references):
            self.panel.parameters().reference = self._references[index]

    def onFindDevices(self, clicked=False):
        """Load PyTorch, if it is installed, and list devices with their free memory; nothing is installed here."""
        lacking = dependencies.missing()
        if lacking:
            names = ", ".join(map(str, lacking))
            self.ui.statusLabel.text = _(
                "Not installed yet: {names}. You are asked before anything is installed: on Apply, Load sample patient or a comparison."
            ).format(names=names)
            return
        with saying(_("PyTorch could not be loaded.")), waiting():
            importlib.import_module("torch")
        self._refreshDevices()

    def _refreshDevices(self):
        self._devices = ()
        self.panel.update()

    def onApply(self, clicked=False):
        """Start, or cancel what is under way."""
        if self._job is not None:
            self._job.cancel()
            self.panel.update()
            return
        self.start()

    def start(self, device=None):
        """Segment from the selected volumes.

        Args:
            device: overrides the chosen device.
        """
        with saying(_("The segmentation could not be started.")):
            if self._job is not None or not self.canCompute():
                return
            device = device or self.panel.parameters().device
            with waiting():
                self.panel.checks.report()
                request = self.panel.logic.prepare(**self.panel.choices(), device=device)
            self.startJob(
                self.panel.logic.work(request),
                lambda result: self.panel.results.take(request, result),
                lambda error: self._offerProcessor(error, request),
            )

    def canCompute(self):
        """Whether PyTorch is there, after asking for it to be installed if it is not."""
        if dependencies.ensure(self.installer):
            return True
        self.ui.statusLabel.text = _("Nothing was installed. Segmentation needs PyTorch.")
        return False

    def _offerProcessor(self, error, request):
        """Ask whether the processor shall do what another device could not; no question for other errors."""
        if not isinstance(error, UnavailableError) or request.device == CPU:
            return False
        question = _("{error}\n\nCompute on the CPU instead? This takes longer.").format(
            error=error
        )
        if slicer.util.confirmYesNoDisplay(question, windowTitle="MedMAP Segment"):
            self.start(CPU)
        return True

    def startJob(self, work, done, failed=None):
        """Carry out work on the worker thread.

        Args:
            work: function of (progress, cancelled), see ``runner``.
            done: called with its result on the main thread, unless it failed or was cancelled.
            failed: called with the error; returns True when nothing more needs saying.
        """
        # Python collects cyclic garbage on whichever thread allocates; a widget or a node must not end on the worker.
        # What is there now is therefore left alone until the job has ended.
        gc.freeze()
        self._job, self._done, self._failed = self.runner.start(work), done, failed
        self._started = time.monotonic()
        self.ui.progressBar.value = 0
        self.ui.progressBar.setVisible(True)
        self.ui.runCollapsibleButton.collapsed = (
            False  # progress and Cancel are there, whoever started the job
        )
        self.ui.statusLabel.text = ""
        self.panel.update()
        self._timer.start()

    def onPoll(self):
        """Let the worker work for a moment, then show how far it is."""
        if self._job is None:
            self._timer.stop()
            return
        state = self._job.poll(POLL_SECONDS)
        messages = self._job.takeMessages()
        if messages:
            fraction, text = messages[-1]
            left = timeLeft(fraction, time.monotonic() - self._started)
            self.ui.progressBar.value = round(100 * fraction)
            self.ui.statusLabel.text = f"{text}, {left}" if left else text
        if state.finished:
            self.finishJob()

    def finishJob(self):
        """Take the outcome of the finished job."""
        job, done, failed = self._job, self._done, self._failed
        gc.unfreeze()
        self.abandonJob()
        if cardsAreKnown():
            self._refreshDevices()
        if job.state is JobState.CANCELLED:
            self.ui.statusLabel.text = _("Canceled; the scene is unchanged.")
            return
        if job.state is JobState.FAILED:
            self.ui.statusLabel.text = str(job.error)
            if failed is None or not failed(job.error):
                slicer.util.errorDisplay(
                    str(job.error), **({"detailedText": job.details} if job.details else {})
                )
            return
        with saying(_("The result could not be added to the scene.")):
            done(resultOf(job))
        self.panel.update()

    def abandonJob(self):
        """Cancel what is under way, without waiting, and make the panel ready again."""
        if self._job is not None:
            self._job.cancel()
        self._job = self._done = self._failed = None
        self._timer.stop()
        self.ui.progressBar.setVisible(False)
        self.panel.update()

    def stop(self):
        """Cancel and give the worker thread a few seconds to end."""
        self.abandonJob()
        if self.runner.shutdown():
            gc.unfreeze()

    def noteDevice(self, asked, used):
        """Say it visibly when the processor had to do what was asked of any device."""
        fellBack = used == CPU and asked == AUTO
        text = _(
            "\u26a0 No usable graphics card was found: computed on the CPU, which takes longer."
        )
        showText(self.ui.runNoteLabel, text if fellBack else "")

    def clear(self):
        """A new scene: nothing was said about the last one."""
        self.ui.statusLabel.text = ""
        showText(self.ui.runNoteLabel, "")


def timeLeft(fraction, seconds):
    """Words for how long it may still take after some seconds; empty while that cannot be said."""
    if fraction < 0.1 or seconds < 2:
        return ""
    left = seconds * (1 - fraction) / fraction
    if left < 90:
        return _("about {seconds} s left").format(seconds=max(1, round(left)))
    return _("about {minutes} min left").format(minutes=round(left / 60))
