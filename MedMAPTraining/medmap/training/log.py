"""The log of a training: a line of JSON per step, curves for TensorBoard, and the time left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from medmap.io.atomic import write_text

Report = Callable[[float, str], None]
LOG = "log.jsonl"
CURVES = "tensorboard"


class TrainingLog:
    """Writes ``log.jsonl`` and ``tensorboard/`` of a run.

    It also is a report for ``medmap.training.loop.train``.

    A run that was killed goes on from its last checkpoint, and so does its log: lines of later
    steps are removed, so that every step is there once.

    Args:
        run: the run's folder.
        steps: of the whole training.
        report: called with the share of the work done, and a line for people, after every step.
        extra_figures: gives figures to add to each step.
    """

    def __init__(
        self,
        run: Path,
        steps: int,
        report: Report,
        extra_figures: Callable[[], dict] | None = None,
    ):
        self.run = run
        self.steps = steps
        self.report = report
        self.extra_figures = extra_figures
        self._file: IO[str] | None = None
        # TensorBoard is imported with the first figures: it takes seconds.
        self._curves: Any = None
        self._first_step = 0
        self._first_seconds = 0.0

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._curves.close()

    def __call__(self, step: int, figures: dict) -> None:
        """Write the figures of a step."""
        if self._file is None:
            self._file = self._open(step)
            self._first_step = step
            self._first_seconds = figures["seconds"]
        if self.extra_figures is not None:
            figures = figures | self.extra_figures()
        record = {"step": step}
        for name, value in figures.items():
            record[name] = round(value, 5)
            group = "training"
            if name.startswith("validation_"):
                group = "validation"
            short_name = name.removeprefix("validation_")
            self._curves.add_scalar(f"{group}/{short_name}", value, step)
        self._file.write(json.dumps(record) + "\n")
        self.report(step / self.steps, self._line(step, figures))

    def _open(self, step: int) -> IO[str]:
        """Start the curves; returns the log, open behind the lines of earlier steps."""
        path = self.run / LOG
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            # A run that stopped between two checkpoints logged steps that are computed again.
            earlier = [line for line in lines if 0 < _step_of(line) < step]
            if len(earlier) < len(lines):
                write_text(path, "".join(line + "\n" for line in earlier))
        from torch.utils.tensorboard import SummaryWriter

        self._curves = SummaryWriter(str(self.run / CURVES), purge_step=step)
        return path.open("a", buffering=1, encoding="utf-8")

    def _line(self, step: int, figures: dict) -> str:
        line = f"step {step} of {self.steps}, loss {figures['loss']:.3f}"
        if "validation_dice" in figures:
            line += f", validation Dice {figures['validation_dice']:.3f}"
        # Of a resumed run, only the steps since then were timed.
        steps_timed = step - self._first_step
        if steps_timed > 0:
            seconds = figures["seconds"] - self._first_seconds
            seconds_per_step = seconds / steps_timed
            seconds_left = seconds_per_step * (self.steps - step)
            line += f", {duration(seconds_left)} left"
        return line


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # The last line of a killed run may be half written.
        return 0


def duration(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
