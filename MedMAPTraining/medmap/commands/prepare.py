"""``medmap prepare``: the cases of a recipe into the cache, or an estimate of what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.commands.preparation import Available, Estimate, estimate_preparation, prepare_cases
from medmap.commands.training_data import cache_of, split_cases
from medmap.commands.training_options import TrainOptions
from medmap.commands.training_recipe import load_recipe, task_of_training
from medmap.io.cases import Case
from medmap.io.cohorts import find_cohort
from medmap.io.labels import with_conventions
from medmap.progress import Progress
from medmap.task import Task
from medmap.training.cache_folder import CacheFolder
from medmap.training.missingness import build_missingness
from medmap.training.published import find_split
from medmap.training.recipe import Recipe
from medmap.training.splits import read_folds


@dataclass(frozen=True)
class CohortPlan:
    """What a training with these options would prepare.

    Attributes:
        training: cases to train on.
        validation: cases to score meanwhile.
        available: what training may see of a training case.
        task: of the recipe.
        recipe: of the training.
        cache: where prepared cases go.
    """

    training: list[Case]
    validation: list[Case]
    available: Available
    task: Task
    recipe: Recipe
    cache: CacheFolder


def plan_cohort(data: Path, options: TrainOptions) -> CohortPlan:
    """The cases that ``medmap train`` would prepare; errors as there."""
    recipe = load_recipe(options)
    task = task_of_training(recipe, options)
    cohort = find_cohort(
        data, task, affine=options.affine, assume_orientation=options.assume_orientation
    )
    cases, _ = with_conventions(cohort.cases, task, options.labels)
    if recipe.split and read_folds(find_split(recipe.split)) is not None:
        # Every case of a cross-validation is trained on in some fold.
        parts = {"train": cases}
    else:
        parts = split_cases(cases, recipe.split)
    names = [case.case_id for case in parts["train"]]
    missingness = build_missingness(recipe.missingness, task, recipe.missingness_options, names)
    return CohortPlan(
        parts["train"],
        parts.get("val", []),
        missingness.available,
        task,
        recipe,
        cache_of(options.cache),
    )


def prepare_cohort(plan: CohortPlan, processes: int | None, report: Progress) -> int:
    """Prepare the cases of a plan; returns how many there are. Raises as ``prepare_cases``."""
    parts: Sequence[tuple[list[Case], Available | None]] = (
        (plan.training, plan.available),
        (plan.validation, None),
    )
    for cases, available in parts:
        prepare_cases(
            cases,
            plan.task,
            plan.recipe.preprocess,
            plan.cache,
            report,
            available=available,
            processes=processes,
        )
    return len(plan.training) + len(plan.validation)


def estimate_cohort(plan: CohortPlan, processes: int | None, report: Progress) -> Estimate:
    """What preparing would take; nothing is written. Raises as ``estimate_preparation``."""
    return estimate_preparation(
        [*plan.training, *plan.validation],
        plan.task,
        plan.recipe.preprocess,
        plan.cache,
        report,
        processes,
    )
