"""Curves of a training from its log: losses, and what an objective logs of modalities (preferences, weights)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmap.errors import InputDataError
from medmap.report.figures import PALETTE, figure_png, new_figure, style

_NOT_DRAWN = {"step", "seconds", "waiting", "waited", "epoch"}
_VALIDATION = re.compile(r"(^|[/_ ])(val|validation|dice)", re.IGNORECASE)


@dataclass(frozen=True)
class TrainingLog:
    """A training's figures.

    Attributes:
        name: of the run.
        series: figure -> (steps [N], values [N]).
        modality_figures: family (``preference``) -> modality -> name of its series.
    """

    name: str
    series: dict[str, tuple[np.ndarray, np.ndarray]]
    modality_figures: dict[str, dict[str, str]]

    @property
    def losses(self) -> list[str]:
        """Names of the losses, the total first."""
        special = {name for family in self.modality_figures.values() for name in family.values()}
        found = [
            n
            for n in self.series
            if n not in special and n != "learning_rate" and n not in self.validation
        ]
        return sorted(found, key=lambda name: (name != "loss", found.index(name)))

    @property
    def validation(self) -> list[str]:
        """Names of figures measured on validation cases."""
        return [name for name in self.series if _VALIDATION.search(name)]


def read_log(path: str | Path, modalities: Sequence[str]) -> TrainingLog:
    """Read a run's ``log.jsonl``; lines that a kill cut off are left out.

    A figure whose name ends (or begins) with a modality's name belongs to a family of curves: ``preference/t1ce``,
    ``weight_flair``, ``t2.weight``.

    Args:
        path: the file, one JSON object with ``step`` a line.
        modalities: canonical names.

    Raises:
        InputDataError: it cannot be read or holds no step.
    """
    path = Path(path)
    points: dict[str, dict[int, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputDataError(f"{path.name} cannot be read.", "Give a run's log.jsonl.") from error
    for line in lines:
        entry = _entry(line)
        for name, value in entry.items():
            if (
                name not in _NOT_DRAWN
                and isinstance(value, (int, float))
                and not isinstance(value, bool)
            ):
                points.setdefault(name, {})[int(entry["step"])] = float(
                    value
                )  # a resumed run repeats steps
    if not points:
        raise InputDataError(
            f"{path.parent.name}/{path.name} holds no step.", "Give the log of a training."
        )
    series = {
        name: (np.array(sorted(p)), np.array([p[s] for s in sorted(p)]))
        for name, p in points.items()
    }
    return TrainingLog(path.parent.name, series, _families(series, modalities))


def training_curves(log: TrainingLog, title: str = "") -> bytes:
    """Losses (faint: every step, strong: running mean), learning rate, validation where it was measured."""
    panels = [
        ("Losses", log.losses),
        ("Validation", log.validation),
        ("Learning rate", ["learning_rate"]),
    ]
    panels = [(words, [n for n in names if n in log.series]) for words, names in panels]
    panels = [(words, names) for words, names in panels if names]
    figure = new_figure(3.7 * len(panels), 2.7)
    for axes, (words, names) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for n, name in enumerate(names[:8]):
            label = name.removeprefix("validation_")
            _draw(
                axes, *log.series[name], label, PALETTE[n % len(PALETTE)], smooth=words == "Losses"
            )
        unit = "Dice" if words == "Validation" else ""
        style(
            axes,
            title=words if words != "Losses" or not title else f"{title}: losses",
            x="step",
            y=unit,
        )
        if words == "Losses" and _spans_decades([log.series[n][1] for n in names]):
            axes.set_yscale("log")
        if len(names) > 1:
            _legend(axes)
    return figure_png(figure)


def modality_curves(log: TrainingLog, titles: Mapping[str, str]) -> bytes | None:
    """One panel a family (preference, weight ...), one line a modality; None where the objective logs none."""
    if not log.modality_figures:
        return None
    count = len(log.modality_figures)
    figure = new_figure(3.7 * count, 2.7)
    order = list(titles)
    for axes, (family, names) in zip(
        figure.subplots(1, count, squeeze=False)[0], log.modality_figures.items(), strict=True
    ):
        for modality in sorted(names, key=order.index):
            color = PALETTE[order.index(modality) % len(PALETTE)]
            _draw(axes, *log.series[names[modality]], titles[modality], color, smooth=False)
        style(axes, title=family.replace("_", " ").capitalize(), x="step")
        _legend(axes)
    return figure_png(figure)


def _spans_decades(values: Sequence[np.ndarray]) -> bool:
    """Whether a logarithmic axis tells more: all positive, and the largest more than ten times the least."""
    least, most = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    return least > 0 and most > 10 * least


def _legend(axes) -> None:
    """Below the axes, where it hides no curve."""
    axes.legend(
        fontsize=7,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=4,
        columnspacing=1.2,
        handlelength=1.4,
    )


def _entry(line: str) -> dict:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else {}


def _families(series: Mapping, modalities: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for name in series:
        parts = re.split(r"[/_. :-]+", name)
        for end, rest in ((parts[-1], parts[:-1]), (parts[0], parts[1:])):
            if end in modalities and rest:
                found.setdefault(" ".join(rest), {})[end] = name
                break
    return {family: names for family, names in found.items() if len(names) > 1}


def _draw(
    axes, steps: np.ndarray, values: np.ndarray, label: str, color: str, *, smooth: bool
) -> None:
    width = max(1, len(values) // 40)
    if smooth and width > 1:
        axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.25)
        values = np.convolve(
            np.pad(values, (width - 1, 0), mode="edge"), np.ones(width) / width, "valid"
        )
    marker = "o" if len(values) <= 12 else None
    axes.plot(steps, values, color=color, linewidth=1.6, label=label, marker=marker, markersize=3)
