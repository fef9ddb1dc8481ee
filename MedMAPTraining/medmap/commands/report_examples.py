"""The examples of a report: cases by modality subsets, one method alone and several together."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from medmap.commands.report_sources import Figures, Sources
from medmap.errors import UsageError
from medmap.evaluation import Evaluation
from medmap.report.slices import Slice
from medmap.report.subset_grid import GridRow, subset_grid
from medmap.task import Task

EXAMPLE_CASES = 4

CaseScores = dict[str, dict[str, dict[str, float]]]
"""case -> subset -> region -> Dice."""


def examples(sources: Sources, figures: Figures) -> str:
    """Cases by subsets, the same cases for every evaluation; then every method for each case.

    Raises:
        UsageError: no evaluation has a picture of a case, or a prediction from a subset, that was
            asked for.
    """
    if not sources.evaluations:
        _refuse_choice(sources)
        return ""
    cases = _chosen_cases(sources)
    subsets = _chosen_subsets(sources, cases)
    order = "cases from the best to the worst segmented, at even quantiles"
    if sources.example_cases:
        order = "chosen cases"
    parts = []
    for name, evaluation in sources.named_evaluations:
        rows = []
        dice = dice_by_case(evaluation)
        for case in cases:
            picture = evaluation.picture(case)
            if picture is not None:
                rows.append(GridRow(case, picture, dice.get(case, {})))
        if rows:
            grid = subset_grid(rows, sources.task, subsets)
            caption = f"{name}: {order}."
            title = f"grid-{slug(name)}"
            parts.append(figures.show(title, grid, "Cases by modality subset", caption, 1.0))
    if len(sources.evaluations) > 1:
        for case in cases:
            parts.append(_methods_of_case(case, sources, subsets, figures))
    return "".join(parts)


def _methods_of_case(
    case: str, sources: Sources, subsets: list[tuple[str, ...]] | None, figures: Figures
) -> str:
    """One case: a row for each evaluation that has its picture; nothing where fewer than two do."""
    rows: list[GridRow] = []
    for name, evaluation in sources.named_evaluations:
        picture = evaluation.picture(case)
        if picture is None:
            continue
        # Slices differ where the reference is empty: each then follows its own predictions.
        is_repeated = bool(rows) and _same_reference(rows[-1].picture, picture)
        dice = dice_by_case(evaluation).get(case, {})
        rows.append(GridRow(name, picture, dice, with_reference=not is_repeated))
    if len(rows) < 2:
        return ""
    return figures.show(
        f"methods-{case}",
        subset_grid(rows, sources.task, subsets),
        f"Methods by modality subset, {case}",
        f"{case}: every method, and every modality subset.",
        1.0,
    )


def _same_reference(first: Slice, second: Slice) -> bool:
    return first.title == second.title and np.array_equal(first.reference, second.reference)


def dice_by_case(evaluation: Evaluation) -> CaseScores:
    """Dice of every prediction of an evaluation, 0..1."""
    scores: CaseScores = {}
    for row in evaluation.rows:
        subsets = scores.setdefault(row.case, {})
        subsets.setdefault(row.subset, {})[row.region] = row.dice
    return scores


def slug(name: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _refuse_choice(sources: Sources) -> None:
    """Raises UsageError where examples were chosen and no source has any."""
    if sources.example_cases or sources.example_subsets:
        raise UsageError(
            "Examples were chosen, but no evaluation was given.",
            "Add the folder of an evaluation, or leave the choice out.",
        )


def _chosen_cases(sources: Sources) -> Sequence[str]:
    """The cases that were asked for, or some of the first evaluation. Raises UsageError."""
    for case in sources.example_cases:
        if not any(evaluation.picture(case) for evaluation in sources.evaluations):
            raise UsageError(
                f"No evaluation has a picture of the case {case}.",
                "Name one of the scored cases, and keep pictures when evaluating.",
            )
    return sources.example_cases or _representative_cases(sources.evaluations[0])


def _chosen_subsets(sources: Sources, cases: Sequence[str]) -> list[tuple[str, ...]] | None:
    """The subsets that were asked for, None for all. Raises UsageError."""
    if not sources.example_subsets:
        return None
    task = sources.task
    predicted = _predicted_keys(sources, cases)
    subsets = []
    for text in sources.example_subsets:
        subset = _subset_of(text, task)
        if task.subset_key(subset) not in predicted:
            raise UsageError(
                f"No picture has a prediction from {task.subset_title(subset)}.",
                f"Choose from {', '.join(sorted(predicted))}.",
            )
        subsets.append(subset)
    return subsets


def _subset_of(text: str, task: Task) -> tuple[str, ...]:
    """``flair+t1ce`` as names in the task's order. Raises UsageError for an unknown one."""
    names = {task.find(word) for word in text.split("+")}
    return tuple(name for name in task.modality_names if name in names)


def _predicted_keys(sources: Sources, cases: Sequence[str]) -> set[str]:
    predicted: set[str] = set()
    for evaluation in sources.evaluations:
        for case in cases:
            picture = evaluation.picture(case)
            if picture is not None:
                predicted.update(picture.predictions)
    return predicted


def _representative_cases(evaluation: Evaluation) -> list[str]:
    """Cases with pictures at even quantiles of mean Dice over all their subsets, best first."""
    means = {}
    for case, subsets in dice_by_case(evaluation).items():
        subset_means = [mean_of(scores) for scores in subsets.values()]
        means[case] = np.mean(subset_means)
    ranked = sorted(means, key=lambda case: -means[case])
    with_picture = [case for case in ranked if evaluation.picture(case)]
    number = min(EXAMPLE_CASES, len(with_picture))
    quantiles = np.linspace(0, len(with_picture) - 1, number)
    positions = quantiles.round().astype(int)
    # Each once: of few cases, two quantiles may be one.
    unique_positions = dict.fromkeys(positions.tolist())
    return [with_picture[position] for position in unique_positions]


def mean_of(scores: dict[str, float]) -> float:
    """Mean over the regions."""
    return float(np.mean(list(scores.values())))
