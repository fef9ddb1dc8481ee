"""Expected performance: the measured Dice of a modality subset. No number is ever made up.

The figures come from the bundle's own tables (``medmap.evaluation.summarize``): the Dice of exactly
this subset, on patients if the bundle was measured on patients. A subset that is not in a table, or
whose entry is damaged, is "not validated".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from medmap.task import Region, Task

from .i18n import translator

_ = translator(__file__)

TABLES = ("dice", "dice_synthetic")
"""Tables of a card, the one that counts more first: real cases come before synthetic ones."""


@dataclass(frozen=True)
class Score:
    """Measured Dice of one region.

    Attributes:
        region: short name (``WT``).
        title: the name for display (``Whole tumor``).
        mean: 0..1.
        sd: standard deviation over cases.
        cases: number of cases; 0 if the table does not say.
    """

    region: str
    title: str
    mean: float
    sd: float
    cases: int

    @property
    def range(self) -> str:
        """Mean minus and plus one standard deviation, within 0 and 1: ``0.84–0.94``."""
        low = max(0.0, self.mean - self.sd)
        high = min(1.0, self.mean + self.sd)
        return f"{low:.2f}\u2013{high:.2f}"


@dataclass(frozen=True)
class ExpectedPerformance:
    """Expected performance with one modality subset.

    Attributes:
        subset: key of the subset (``t1ce+flair``).
        title: the subset for display.
        scores: measured Dice, in the task's order of regions; empty if not validated.
        onPatients: whether the cases were patients.
        data: what the cases were; empty if not validated.
        population: whom the model was made for; empty if the card does not say.
        warnings: what to know about the modalities that are absent.
        details: everything that the card says about data, training and measurement.
    """

    subset: str
    title: str
    scores: tuple[Score, ...]
    onPatients: bool
    data: str
    population: str
    warnings: tuple[str, ...]
    details: str

    @property
    def validated(self) -> bool:
        """True when the model was measured on exactly this subset."""
        return bool(self.scores)

    @property
    def cases(self) -> int:
        """Number of cases; 0 if a table does not say."""
        counts = [score.cases for score in self.scores]
        if not counts or min(counts) == 0:
            return 0
        return max(counts)

    @property
    def warning(self) -> str:
        """The warning that counts most; empty without any."""
        return self.warnings[0] if self.warnings else ""


def expectedPerformance(task: Task, card: Mapping, names: Collection[str]) -> ExpectedPerformance:
    """Expected performance of a model with a modality subset.

    Args:
        task: the model's task.
        card: the bundle's card (``Bundle.card`` or ``ModelEntry.card``); its tables may be absent
            or damaged.
        names: the modalities that are used, in any order; at least one.

    Raises:
        UsageError: a name is no modality of the task.
    """
    subset = task.subset_key(names)
    scores: tuple[Score, ...] = ()
    table: Any = None
    for name in TABLES:
        table = _at(card, name)
        scores = _scores(task, table, subset)
        if scores:
            break
    data = _text(table, "data") if scores else ""
    return ExpectedPerformance(
        subset=subset,
        title=task.subset_title(names),
        scores=scores,
        onPatients=bool(scores) and not _isSynthetic(card, table),
        data=data,
        population=_text(card, "population"),
        warnings=_warnings(task, names),
        details=_details(card, data),
    )


def measurementText(performance: ExpectedPerformance) -> str:
    """One sentence on whom the figures were measured, in the user's language."""
    if not performance.validated:
        return _("The model was not validated with this modality subset.")
    if performance.onPatients and performance.cases == 0:
        return _("Measured on patients that the model had not seen; how many is not recorded.")
    if performance.onPatients:
        text = _("Measured on {count} patients that the model had not seen.")
    elif performance.cases == 0:
        text = _("Measured on synthetic cases, not on patients; how many is not recorded.")
    else:
        text = _("Measured on {count} synthetic cases, not on patients.")
    return text.format(count=performance.cases)


def _isSynthetic(card: Mapping, table: Any) -> bool:
    """Whether the cases of a table are computed ones.

    Earlier bundles have one table only, whose description says what its cases were.
    """
    if table is _at(card, TABLES[1]):
        return True
    description = _text(table, "data").lower()
    return any(word in description for word in ("synthetic", "generated", "phantom"))


def _details(card: Mapping, data: str) -> str:
    """Paragraphs on measurement, data, training and limits, as far as the card has them."""
    paragraphs = [data]
    for key in ("data", "training", "limits"):
        paragraphs.append(_text(card, key))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _warnings(task: Task, names: Collection[str]) -> tuple[str, ...]:
    """What to know about the absent modalities, in task order."""
    warnings = []
    for modality in task.modalities:
        if modality.name not in names and modality.warning_if_absent:
            warnings.append(modality.warning_if_absent)
    return tuple(warnings)


def _scores(task: Task, table: Any, subset: str) -> tuple[Score, ...]:
    """One score per region; empty unless every one is there and possible."""
    entry = _at(_at(table, "subsets"), subset)
    scores = []
    for region in task.regions:
        score = _score(region, _at(entry, region.name))
        if score is None:
            return ()
        scores.append(score)
    return tuple(scores)


def _score(region: Region, entry: Any) -> Score | None:
    """The score of one region; None if the entry is missing or impossible."""
    mean = _at(entry, "mean")
    sd = _at(entry, "sd")
    if not (_isFraction(mean) and _isFraction(sd)):
        return None
    cases = _at(entry, "n")
    # JSON's true is an integer to Python, but no number of cases.
    if not isinstance(cases, int) or isinstance(cases, bool) or cases < 0:
        cases = 0
    return Score(region.name, region.title, float(mean), float(sd), cases)


def _at(data: Any, key: str) -> Any:
    """An entry of damaged or missing data: None where there is none."""
    return data.get(key) if isinstance(data, Mapping) else None


def _text(data: Any, key: str) -> str:
    """A text of damaged or missing data: empty where there is none."""
    value = _at(data, key)
    return value.strip() if isinstance(value, str) else ""


def _isFraction(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= 1
