"""What a training says of itself: a line of JSON a step, the same as curves for TensorBoard, and the time left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from medmap.io.atomic import write_text

Report = Callable[[float, str], None]
LOG, CURVES = "log.jsonl", "tensorboard"


class TrainingLog:
    """Writes ``log.jsonl`` and ``tensorboard/`` of a run; also a report for ``medmap.training.loop.train``.

    A run that was killed goes on from its last checkpoint, and so does its log: what was said of later steps is taken
    back, so that every step is there once.

    Args:
        run: the run's folder.
        steps: of the whole training.
        report: told the share that is done, and a line for people, after every step.
        further: figures to add to each step.
    """

    def __init__(
        self, run: Path, steps: int, report: Report, further: Callable[[], dict] | None = None
    ):
        self.run, self.steps, self.report, self.further = (
            run,
            steps,
            report,
            further or (lambda: {}),
        )
        self._file = self._curves = self._began = None

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *error) -> None:
        for sink in (self._file, self._curves):
            if sink:
                sink.close()

    def __call__(self, step: int, figures: dict) -> None:
        """Write the figures of a step."""
        if self._file is None:
            self._open(step)
        figures = figures | self.further()
        self._file.write(
            json.dumps({"step": step, **{k: round(v, 5) for k, v in figures.items()}}) + "\n"
        )
        for name, value in figures.items():
            part = "validation" if name.startswith("validation_") else "training"
            self._curves.add_scalar(f"{part}/{name.removeprefix('validation_')}", value, step)
        self.report(step / self.steps, self._line(step, figures))

    def _open(self, step: int) -> None:
        path = self.run / LOG
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if 0 < _step_of(line) < step]
            if len(kept) < len(lines):
                write_text(path, "".join(line + "\n" for line in kept))
        from torch.utils.tensorboard import SummaryWriter

        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._curves = SummaryWriter(str(self.run / CURVES), purge_step=step)

    def _line(self, step: int, figures: dict) -> str:
        line = f"step {step} of {self.steps}, loss {figures['loss']:.3f}"
        if "validation_dice" in figures:
            line += f", validation Dice {figures['validation_dice']:.3f}"
        if self._began is None:
            self._began = (step, figures["seconds"])
        elif step > self._began[0]:
            pace = (figures["seconds"] - self._began[1]) / (step - self._began[0])
            line += f", {duration(pace * (self.steps - step))} left"
        return line


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be half written
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
