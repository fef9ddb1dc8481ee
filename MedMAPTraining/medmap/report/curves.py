"""Curves of a training from its log: losses, and what an objective logs of modalities."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from medmap.errors import InputDataError
from medmap.report.figures import PALETTE, figure_png, new_figure, style

_NOT_DRAWN = {"step", "seconds", "waiting", "waited", "epoch"}
_VALIDATION = re.compile(r"(^|[/_ ])(val|validation|dice)", re.IGNORECASE)


@dataclass(frozen=True)
class LoggedSeries:
    """What a training logged, as series over its steps.

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
        excluded = {"learning_rate", *self.validation}
        for family in self.modality_figures.values():
            excluded.update(family.values())
        # Figures of single modalities have a picture of their own.
        names = [name for name in self.series if name not in excluded]
        # Sorting is stable: all but the total stay in the order of the log.
        return sorted(names, key=lambda name: name != "loss")

    @property
    def validation(self) -> list[str]:
        """Names of figures measured on validation cases."""
        return [name for name in self.series if _VALIDATION.search(name)]


def read_log(path: str | Path, modalities: Sequence[str]) -> LoggedSeries:
    """Read a run's ``log.jsonl``; lines that a kill cut off are left out.

    A figure whose name ends (or begins) with a modality's name belongs to a family of curves:
    ``preference/t1ce``, ``weight_flair``, ``t2.weight``.

    Args:
        path: the file, one JSON object with ``step`` per line.
        modalities: canonical names.

    Raises:
        InputDataError: it cannot be read or holds no step.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputDataError(f"{path.name} cannot be read.", "Give a run's log.jsonl.") from error
    points: dict[str, dict[int, float]] = {}
    for line in lines:
        entry = _entry(line)
        for name, value in entry.items():
            if name not in _NOT_DRAWN and _is_number(value):
                # By step, since a resumed run repeats steps.
                value_at = points.setdefault(name, {})
                value_at[int(entry["step"])] = float(value)
    if not points:
        raise InputDataError(
            f"{path.parent.name}/{path.name} holds no step.", "Give the log of a training."
        )
    series = {}
    for name, value_at in points.items():
        steps = sorted(value_at)
        values = [value_at[step] for step in steps]
        series[name] = (np.array(steps), np.array(values))
    return LoggedSeries(path.parent.name, series, _families(series, modalities))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def training_curves(log: LoggedSeries, title: str = "") -> bytes:
    """PNG of losses (faint: every step, strong: running mean), learning rate, validation scores."""
    panels = _panels(log)
    figure = new_figure(3.7 * len(panels), 2.7)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (heading, names) in zip(all_axes, panels.items(), strict=True):
        losses = heading == "Losses"
        # More lines than this cannot be distinguished by their colors.
        for number, name in enumerate(names[:8]):
            steps, values = log.series[name]
            label = name.removeprefix("validation_")
            color = PALETTE[number % len(PALETTE)]
            _draw(axes, steps, values, label, color, smooth=losses)
        panel_title = heading
        if losses and title:
            panel_title = f"{title}: losses"
        y_title = ""
        if heading == "Validation":
            y_title = "Dice"
        style(axes, title=panel_title, x="step", y=y_title)
        all_values = [log.series[name][1] for name in names]
        if losses and _spans_decades(all_values):
            axes.set_yscale("log")
        if len(names) > 1:
            _legend(axes)
    return figure_png(figure)


def _panels(log: LoggedSeries) -> dict[str, list[str]]:
    """Heading of each panel -> names of its series; panels without a series are left out."""
    candidates = {
        "Losses": log.losses,
        "Validation": log.validation,
        "Learning rate": ["learning_rate"],
    }
    panels = {}
    for heading, names in candidates.items():
        logged = [name for name in names if name in log.series]
        if logged:
            panels[heading] = logged
    return panels


def modality_curves(log: LoggedSeries, titles: Mapping[str, str]) -> bytes | None:
    """PNG with a panel for each family (preference, weight ...) and a line for each modality.

    None where the objective logs no such figures. ``titles`` are those of the modalities.
    """
    if not log.modality_figures:
        return None
    order = list(titles)
    count = len(log.modality_figures)
    figure = new_figure(3.7 * count, 2.7)
    all_axes = figure.subplots(1, count, squeeze=False)[0]
    for axes, (family, names) in zip(all_axes, log.modality_figures.items(), strict=True):
        for modality in sorted(names, key=order.index):
            series_name = names[modality]
            steps, values = log.series[series_name]
            # A modality has one color in all panels, also where another one is not drawn.
            position = order.index(modality)
            color = PALETTE[position % len(PALETTE)]
            _draw(axes, steps, values, titles[modality], color, smooth=False)
        heading = family.replace("_", " ").capitalize()
        style(axes, title=heading, x="step")
        _legend(axes)
    return figure_png(figure)


def _spans_decades(values: Sequence[np.ndarray]) -> bool:
    """Whether a logarithmic axis reads better: all positive, and spread over more than a decade."""
    minima = [float(series.min()) for series in values]
    maxima = [float(series.max()) for series in values]
    least = min(minima)
    greatest = max(maxima)
    return least > 0 and greatest > 10 * least


def _legend(axes: Axes) -> None:
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
    """A line of the log; empty for one that is damaged or holds no step."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    if isinstance(entry, dict) and isinstance(entry.get("step"), int):
        return entry
    return {}


def _families(series: Mapping, modalities: Sequence[str]) -> dict[str, dict[str, str]]:
    """Family -> modality -> name of its series; only families of two modalities or more."""
    families: dict[str, dict[str, str]] = {}
    for name in series:
        parts = re.split(r"[/_. :-]+", name)
        if len(parts) < 2:
            continue
        first, *_, last = parts
        # Names have the modality last (preference_t1) or first (t1/weight).
        if last in modalities:
            modality = last
            family = " ".join(parts[:-1])
        elif first in modalities:
            modality = first
            family = " ".join(parts[1:])
        else:
            continue
        members = families.setdefault(family, {})
        members[modality] = name
    return {family: names for family, names in families.items() if len(names) > 1}


def _draw(
    axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, color: str, *, smooth: bool
) -> None:
    """A line; if smooth, a running mean over a fortieth of it with the values faintly behind."""
    width = max(1, len(values) // 40)
    if smooth and width > 1:
        axes.plot(steps, values, color=color, linewidth=0.5, alpha=0.25)
        # The first value is repeated in front, so that the mean has as many steps.
        padded = np.pad(values, (width - 1, 0), mode="edge")
        weights = np.ones(width) / width
        values = np.convolve(padded, weights, "valid")
    # Few points are validations, far apart: a line alone would hide where they are.
    marker = None
    if len(values) <= 12:
        marker = "o"
    axes.plot(
        steps,
        values,
        color=color,
        linewidth=1.6,
        label=label,
        marker=marker,
        markersize=3,
    )
