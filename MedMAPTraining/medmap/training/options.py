"""How a training is run, and how it is stopped; none of it decides what is learned."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

LEAST_SECONDS_BETWEEN_CHECKPOINTS = 60.0
CHECKPOINT_SHARE = 0.05
"""Checkpoints by time: at most a minute of work is lost, or five percent of the run's time."""


@dataclass(frozen=True)
class RuntimeOptions:
    """How a training is run; none of it decides what is learned, but for rounding.

    Attributes:
        device: torch device, or ``auto``.
        precision: ``bf16`` or ``fp16`` (autocast, fp16 with a scaled loss), ``fp32``, or ``auto``:
            what the device computes fast and safely
            (``medmap.training.distributed.choose_precision``).
        devices: processes to start on this machine, one per device; launchers (``torchrun``) start
            their own.
        workers: processes that make batches ahead of time; 0 makes them in between.
        compiled: compile the backbone's encoder and decoder (``torch.compile``): slow to start, one
            graph per subset.
        channels_last: store weights and images channels-last; None: on a CPU the weights of narrow
            convolutions (``medmap.training.acceleration.narrow_channels_last``), else nothing.
        minutes: stop after this time with a checkpoint, so that long trainings go in short runs.
        save_every: steps between checkpoints; 0 saves by time.
        validate_every: steps between validations; 0 makes it twenty in all. The first comes after a
            fifth of it, so that a mistake shows early.
    """

    device: str = "auto"
    precision: str = "auto"
    devices: int = 1
    workers: int = 0
    compiled: bool = False
    channels_last: bool | None = None
    minutes: float | None = None
    save_every: int = 0
    validate_every: int = 0


class CheckpointSchedule:
    """When a checkpoint is due: every so many steps, or by time where ``save_every`` is 0."""

    def __init__(self, save_every: int):
        self.save_every = save_every
        self._started = time.monotonic()
        self._last = self._started

    def is_due(self, step: int) -> bool:
        """Whether to save after this step; by time, the next interval begins now."""
        if self.save_every:
            return step % self.save_every == 0
        current_seconds = time.monotonic()
        elapsed_seconds = current_seconds - self._started
        interval = max(LEAST_SECONDS_BETWEEN_CHECKPOINTS, CHECKPOINT_SHARE * elapsed_seconds)
        if current_seconds - self._last < interval:
            return False
        self._last = current_seconds
        return True


class StopRequest:
    """The first Ctrl-C or SIGTERM lets the running step end; the second ends the run at once.

    Attributes:
        is_set: whether a stop was asked for.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._owner = os.getpid()
        # What ``signal.signal`` returns and takes: a function, a constant, or None.
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python lets only the main thread handle signals.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous = signal.signal(number, self._on_signal)
                self._previous[number] = previous
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A forked worker: a terminal sends Ctrl-C to all of a command,
            # and the parent answers it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
