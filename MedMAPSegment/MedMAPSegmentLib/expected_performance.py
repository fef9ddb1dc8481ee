"""Expected performance: the measured Dice of a modality subset. No number is ever made up.

The figures come from the bundle's own table (``medmap.evaluation.summarize``): the Dice of exactly
this subset. A subset that is not in the table, or whose entry is damaged, is "not validated".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from medmap.task import Region, Task

NOT_VALIDATED = "This modality subset was not validated with this model."


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
    def text(self) -> str:
        """``0.89 ± 0.05``."""
        return f"{self.mean:.2f} ± {self.sd:.2f}"


@dataclass(frozen=True)
class SubsetCard:
    """Expected performance with one modality subset.

    Attributes:
        subset: key of the subset (``t1ce+flair``); empty without any modality.
        title: the subset for display.
        scores: measured Dice, in the task's order of regions; empty if not validated.
        complete: the same for all modalities together, to compare with; empty if unknown or if this
            is that.
        data: what the figures are from; empty if not validated.
        warnings: what to know about the modalities that are absent.
    """

    subset: str
    title: str
    scores: tuple[Score, ...]
    complete: tuple[Score, ...]
    data: str
    warnings: tuple[str, ...]

    @property
    def validated(self) -> bool:
        """True when the model was measured on exactly this subset."""
        return bool(self.scores)

    @property
    def text(self) -> str:
        """The card, one line per fact, for a plain label."""
        lines = [self.title]
        completeMeans = {score.region: score.mean for score in self.complete}
        for score in self.scores:
            line = f"Dice {score.title} ({score.region}): {score.text}"
            if score.region in completeMeans:
                line += f" (all modalities: {completeMeans[score.region]:.2f})"
            lines.append(line)
        if self.validated:
            lines.append(f"Mean ± SD, {self.data}")
        elif self.subset:
            lines.append(NOT_VALIDATED)
        lines.extend(f"\u26a0 {warning}" for warning in self.warnings)
        return "\n".join(lines)


def subsetCard(task: Task, card: Mapping, names: Collection[str]) -> SubsetCard:
    """The card of a modality subset.

    Args:
        task: the model's task.
        card: the bundle's card (``Bundle.card`` or ``ModelEntry.card``); its ``dice`` table may be
            absent or damaged.
        names: the modalities that are used, in any order.

    Raises:
        UsageError: a name is no modality of the task.
    """
    subset = task.subset_key(names)
    if not subset:
        return SubsetCard("", "No volume is selected.", (), (), "", ())
    count = len(set(names))
    title = f"{task.subset_title(names)} ({count} of {len(task.modalities)} modalities)"
    scores = _scores(task, card, subset)
    complete: tuple[Score, ...] = ()
    completeSubset = task.subset_key(task.modality_names)
    if scores and subset != completeSubset:
        complete = _scores(task, card, completeSubset)
    data = _data(card, scores) if scores else ""
    return SubsetCard(subset, title, scores, complete, data, _warnings(task, names))


def _warnings(task: Task, names: Collection[str]) -> tuple[str, ...]:
    """What to know about the absent modalities, in task order."""
    warnings = []
    for modality in task.modalities:
        if modality.name not in names and modality.warning_if_absent:
            warnings.append(modality.warning_if_absent)
    return tuple(warnings)


def _scores(task: Task, card: Mapping, subset: str) -> tuple[Score, ...]:
    """One score per region; empty unless every one is there and possible."""
    entry = _at(_at(_at(card, "dice"), "subsets"), subset)
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


def _data(card: Mapping, scores: tuple[Score, ...]) -> str:
    """``20 cases (generated phantoms)``; some cases may lack the subset."""
    description = _at(_at(card, "dice"), "data")
    if not isinstance(description, str):
        description = ""
    counts = [score.cases for score in scores]
    if min(counts) == 0:
        count = "number of cases unknown"
    elif max(counts) == 1:
        count = "1 case"
    else:
        count = f"{max(counts)} cases"
    if not description.strip():
        return f"{count}; what they are is not recorded"
    return f"{count} ({description.strip()})"


def _at(data: Any, key: str) -> Any:
    """An entry of damaged or missing data: None where there is none."""
    return data.get(key) if isinstance(data, Mapping) else None


def _isFraction(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value <= 1
