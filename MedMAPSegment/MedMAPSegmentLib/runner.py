"""Runs one unit of work, here or on a worker thread, behind one small interface. Knows no Qt, VTK,
MRML or torch.

Slicer's main thread keeps Python's interpreter lock while it idles in the Qt event loop, so a plain
worker thread starves. Whoever waits must therefore call ``Job.poll`` with a short timeout again and
again (the panel does so from a zero-interval timer): the timed wait is what lets the worker run.

A unit of work is a function ``work(progress, cancelled)``: it may call ``progress(fraction,
text)``, and raises ``medmap.errors.Cancelled`` soon after ``cancelled()`` turns true. It must not
touch MRML, VTK or Qt.
"""

from __future__ import annotations

import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable
from enum import Enum
from queue import SimpleQueue
from typing import Any, Protocol

from medmap.errors import Cancelled, InternalError, MedMAPError

Progress = Callable[[float, str], None]
Work = Callable[[Progress, Callable[[], bool]], Any]

MESSAGE_LIMIT = 500


class JobState(Enum):
    """Where a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """True once nothing more will happen."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Job:
    """One unit of work under way.

    Attributes:
        result: what the work returned; None unless the state is DONE.
        error: why it failed, as a cause and a remedy; None unless the state is FAILED.
        details: the Python traceback of an unexpected failure; empty otherwise.
    """

    def __init__(self, work: Work, listener: Progress | None = None):
        self.result: Any = None
        self.error: MedMAPError | None = None
        self.details = ""
        self._work: Work | None = work
        self._listener = listener
        self._state = JobState.WAITING
        self._cancel = threading.Event()
        self._finished = threading.Event()
        self._messages: deque[tuple[float, str]] = deque(maxlen=MESSAGE_LIMIT)

    @property
    def state(self) -> JobState:
        """Where the job is now."""
        return self._state

    @property
    def cancelRequested(self) -> bool:
        """True once ``cancel`` was called."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Ask the work to stop; it does so between two windows. A result that arrives all the same
        is dropped.
        """
        self._cancel.set()

    def poll(self, timeout: float = 0.0) -> JobState:
        """Wait up to ``timeout`` seconds for the end, leaving the interpreter to the worker
        meanwhile.
        """
        self._finished.wait(timeout)
        return self._state

    def takeMessages(self) -> list[tuple[float, str]]:
        """Progress messages (fraction 0..1, text) since the last call, oldest first."""
        messages = []
        while self._messages:
            messages.append(self._messages.popleft())
        return messages

    def execute(self) -> None:
        """Do the work on the calling thread. Never raises: the outcome is in ``state``, ``result``
        and ``error``.
        """
        self._state = JobState.RUNNING
        state = JobState.FAILED
        try:
            state = self._attempt()
        except MedMAPError as error:
            self.error = error.with_traceback(None)
        except (
            BaseException
        ) as error:  # a worker thread that dies silently would leave the panel waiting for ever
            self.details = traceback.format_exc()
            self.error = InternalError(
                f"Something unexpected went wrong: {type(error).__name__}: {error}.".replace(
                    "..", "."
                ),
                "Please report it together with the details.",
            )
        finally:
            self._work = None  # it holds the input volumes
            self._state = state
            self._finished.set()

    def _attempt(self) -> JobState:
        try:
            if self.cancelRequested or self._work is None:
                raise Cancelled()
            result = self._work(self._report, self._cancel.is_set)
        except Cancelled:
            return JobState.CANCELLED
        if self.cancelRequested:
            return JobState.CANCELLED
        self.result = result
        return JobState.DONE

    def _report(self, fraction: float, text: str) -> None:
        self._messages.append((float(fraction), str(text)))
        if self._listener is not None:
            self._listener(float(fraction), str(text))


class Runner(Protocol):
    """Something that carries out work."""

    def start(self, work: Work) -> Job:
        """Begin, and return the job to poll."""


class InlineRunner:
    """Does the work at once on the calling thread; ``start`` returns a finished job. For scripts
    and tests.
    """

    def __init__(self, listener: Progress | None = None):
        self._listener = listener

    def start(self, work: Work) -> Job:
        """Do the work now."""
        job = Job(work, self._listener)
        job.execute()
        return job


class ThreadRunner:
    """Does all work, one job after the other, on one daemon thread that lives as long as the
    runner.

    One thread for every job because the plan cache of cuDNN belongs to a thread: a fresh thread for
    each run would plan again each time. Daemon, so that a hung driver call cannot keep Slicer from
    closing.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: weakref.ref[Job] | None = None  # weak: a job holds its result

    def start(self, work: Work) -> Job:
        """Queue the work behind whatever still runs."""
        job = Job(work)
        self._last = weakref.ref(job)
        self._queue.put(job)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._serve, name="MedMAP worker", daemon=True)
            self._thread.start()
        return job

    def shutdown(self, timeout: float = 5.0) -> bool:
        """Cancel, wait up to ``timeout`` seconds for the thread to end; False if it is still busy
        then.
        """
        last = self._last() if self._last is not None else None
        if last is not None:
            last.cancel()
        thread, self._thread = self._thread, None
        if thread is None:
            return True
        self._queue.put(None)
        thread.join(timeout)
        return not thread.is_alive()

    def _serve(self) -> None:
        while True:
            job = self._queue.get()
            if job is None:
                return
            job.execute()
            del job  # or the last result would live until the next job comes
