"""The one computation that may be under way: started, followed and ended on the main thread."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import qt
from slicer.i18n import tr as _

from .. import dependencies
from ..devices import cardsAreKnown
from ..i18n.sentences import errorText, sentence
from ..logic import resultOf
from ..runner import Job, JobState, ThreadRunner, Work
from ..state import PanelState
from .dialogs import saying, showError

POLL_SECONDS = 0.02


class Jobs:
    """Carries out work on the worker thread.

    Args:
        state: notified when a computation begins and ends.

    Attributes:
        runner: carries out the work (``runner.Runner``).
        installer: installs what is missing (``dependencies.Installer``).
        fraction: how far the computation is, 0 to 1.
        onProgress: called when the message or the fraction changed.
        onDevicesKnown: called once graphics cards can be listed.
    """

    def __init__(self, state: PanelState):
        self.state = state
        self.runner = ThreadRunner()
        self.installer = dependencies.SlicerInstaller()
        self.fraction = 0.0
        self.onProgress: Callable[[], None] = lambda: None
        self.onDevicesKnown: Callable[[], None] = lambda: None
        self._job: Job | None = None
        self._done: Callable[[Any], None] | None = None
        self._failed: Callable[[Exception], bool] | None = None
        self._started = 0.0
        # A zero-interval timer whose slot waits a little: the wait lets the worker have the
        # interpreter lock, which Slicer's main thread keeps otherwise even while it idles.
        self._timer = qt.QTimer()
        self._timer.setInterval(0)
        self._timer.connect("timeout()", self.onPoll)

    @property
    def isCanceling(self) -> bool:
        """True from the wish to cancel until the computation has ended."""
        return self._job is not None and self._job.cancelRequested

    def canCompute(self) -> bool:
        """Whether PyTorch is there, after asking for it to be installed if it is not."""
        if dependencies.ensure(self.installer):
            return True
        self.state.say(_("Nothing was installed. MedMAP needs PyTorch for this."))
        return False

    def start(
        self,
        work: Work,
        done: Callable[[Any], None],
        failed: Callable[[Exception], bool] | None = None,
    ) -> None:
        """Carry out work on the worker thread.

        Args:
            work: function of (progress, cancelled), see ``runner``.
            done: called with its result on the main thread, unless it failed or was cancelled.
            failed: called with the error; returns True when nothing more needs saying.
        """
        # Python collects cyclic garbage on whichever thread allocates; a widget or a node must not
        # end on the worker. What is there now is therefore left alone until the job has ended.
        gc.freeze()
        self._job = self.runner.start(work)
        self._done = done
        self._failed = failed
        self._started = time.monotonic()
        self.fraction = 0.0
        self.state.isBusy = True
        self.state.say("")
        self._timer.start()

    def cancel(self) -> None:
        """Ask the computation to stop; it does so between two windows."""
        if self._job is not None:
            self._job.cancel()
            self.state.changed()

    def onPoll(self) -> None:
        """Let the worker work for a moment, then show how far it is."""
        if self._job is None:
            self._timer.stop()
            return
        state = self._job.poll(POLL_SECONDS)
        messages = self._job.takeMessages()
        if messages:
            self.fraction, text = messages[-1]
            remaining = timeLeft(self.fraction, time.monotonic() - self._started)
            self.state.status = sentence(text)
            if remaining:
                self.state.status += f", {remaining}"
            self.onProgress()
        if state.finished:
            self._finish(self._job)

    def _finish(self, job: Job) -> None:
        """Take the outcome of the finished job."""
        done = self._done
        failed = self._failed
        gc.unfreeze()
        self.abandon()
        if cardsAreKnown():
            self.onDevicesKnown()
        if job.state is JobState.CANCELLED:
            self.state.say(_("Canceled; the scene is unchanged."))
            return
        if job.error is not None:
            self.state.say(errorText(job.error))
            if failed is None or not failed(job.error):
                showError(job.error, job.details)
            return
        with saying(_("The result could not be added to the scene.")):
            result = resultOf(job)
            if done is not None:
                done(result)
        self.state.changed()

    def abandon(self) -> None:
        """Cancel what is under way, without waiting, and make the panel ready again."""
        if self._job is not None:
            self._job.cancel()
        self._job = None
        self._done = None
        self._failed = None
        self._timer.stop()
        self.state.isBusy = False
        self.state.changed()

    def stop(self) -> None:
        """Cancel and give the worker thread a few seconds to end."""
        self.abandon()
        if self.runner.shutdown():
            gc.unfreeze()


def timeLeft(fraction: float, seconds: float) -> str:
    """Words for how long it may still take after some seconds; empty while that is unknown."""
    if fraction < 0.1 or seconds < 2:
        return ""
    remaining = seconds * (1 - fraction) / fraction
    if remaining < 90:
        return _("about {seconds} s left").format(seconds=max(1, round(remaining)))
    return _("about {minutes} min left").format(minutes=round(remaining / 60))
