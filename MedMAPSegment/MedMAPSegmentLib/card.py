"""The subset card: what the chosen combination of scans is good for, as measured. No number is ever made up.

The figures come from the bundle's own table (``medmap.evaluation.summarize``): the Dice of exactly this subset. A subset
that is not in the table, or whose entry is damaged, is "not validated".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from medmap.task import Task

NOT_VALIDATED = "This combination was not validated with this model."


@dataclass(frozen=True)
class Score:
    """Measured Dice of one region.

    Attributes:
        region: short name (``WT``).
        title: as a person writes it (``Whole tumor``).
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
    """What is known about one combination of scans.

    Attributes:
        subset: key of the combination (``t1ce+flair``); empty without any scan.
        title: the combination in words.
        scores: measured Dice, in the task's order of regions; empty if not validated.
        complete: the same for all modalities together, to compare with; empty if unknown or if this is that.
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
        """True when the model was measured on exactly this combination."""
        return bool(self.scores)

    @property
    def text(self) -> str:
        """The card, one line a fact, for a plain label."""
        lines = [self.title]
        full = {score.region: score for score in self.complete}
        for score in self.scores:
            beside = f" (all scans: {full[score.region].mean:.2f})" if score.region in full else ""
            lines.append(f"Dice {score.title} ({score.region}): {score.text}{beside}")
        if self.validated:
            lines.append(f"Mean ± SD, {self.data}")
        elif self.subset:
            lines.append(NOT_VALIDATED)
        return "\n".join([*lines, *(f"\u26a0 {warning}" for warning in self.warnings)])


def subsetCard(task: Task, card: Mapping, names: Collection[str]) -> SubsetCard:
    """The card of a combination.

    Args:
        task: the model's task.
        card: the bundle's card (``Bundle.card`` or ``ModelEntry.card``); its ``dice`` table may be absent or damaged.
        names: the modalities that are used, in any order.

    Raises:
        UsageError: a name is no modality of the task.
    """
    subset = task.subset_key(names)
    used = [modality for modality in task.modalities if modality.name in set(names)]
    absent = [modality for modality in task.modalities if modality.name not in set(names)]
    if not used:
        return SubsetCard("", "No scan is chosen.", (), (), "", ())
    warnings = tuple(
        modality.warning_if_absent for modality in absent if modality.warning_if_absent
    )
    title = f"{' + '.join(modality.title for modality in used)} ({len(used)} of {len(task.modalities)} scans)"
    scores = _scores(task, card, subset)
    complete = (
        _scores(task, card, task.subset_key(task.modality_names)) if scores and absent else ()
    )
    return SubsetCard(
        subset, title, scores, complete, _data(card, scores) if scores else "", warnings
    )


def _scores(task: Task, card: Mapping, subset: str) -> tuple[Score, ...]:
    """One score per region; empty unless every one is there and possible."""
    entry = _at(_at(_at(card, "dice"), "subsets"), subset)
    scores = []
    for region in task.regions:
        found = _at(entry, region.name)
        mean, sd, cases = (_at(found, key) for key in ("mean", "sd", "n"))
        if not (_isNumber(mean) and 0 <= mean <= 1 and _isNumber(sd) and 0 <= sd <= 1):
            return ()
        cases = cases if isinstance(cases, int) and not isinstance(cases, bool) and cases > 0 else 0
        scores.append(Score(region.name, region.title, float(mean), float(sd), cases))
    return tuple(scores)


def _data(card: Mapping, scores: tuple[Score, ...]) -> str:
    """``20 cases (generated phantoms)``. The number is that of the subset, which not every case need have."""
    described = _at(_at(card, "dice"), "data")
    described = described.strip() if isinstance(described, str) else ""
    least, most = min(s.cases for s in scores), max(s.cases for s in scores)
    count = "number of cases unknown" if not least else f"{most} case{'s' if most > 1 else ''}"
    return f"{count} ({described})" if described else f"{count}; what they are is not recorded"


def _at(data, key: str):
    return data.get(key) if isinstance(data, Mapping) else None


def _isNumber(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
