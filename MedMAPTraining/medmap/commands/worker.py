"""A worker process of a cohort stops at the parent's request, and ends with the parent.

A worker gets the reading end of a pipe. When the parent closes the other end, or is killed, the
worker's case is cancelled at its next step, leaving nothing behind, and the process ends. Signals
of a terminal go to all processes of a command; here the parent alone answers them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

_asked = threading.Event()
_busy = threading.Lock()


def begin(lifeline: Connection) -> None:
    """Called once in each worker process, before its first case."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as SIGINT: the parent answers for all
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def asked_to_stop() -> bool:
    """Whether this process should leave its case; never true outside a worker."""
    return _asked.is_set()


@contextmanager
def working() -> Iterator[None]:
    """While this lasts, the process does not end but lets its case clean up first."""
    with _busy:
        yield


def _watch(lifeline: Connection) -> None:
    wait([lifeline])  # nothing is ever sent: what comes is the end
    _asked.set()
    with _busy:
        os._exit(0)
