"""The recipe of a training: what is named, what the initial bundle demands, what options change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from medmap.bundle.loading import Bundle
from medmap.commands.training_options import TrainOptions
from medmap.errors import UsageError
from medmap.preprocess import PreprocessSpec
from medmap.task import Task, find_task
from medmap.training.published import find_recipe, recipe_fields, require_teacher
from medmap.training.recipe import Recipe
from medmap.training.run_task import has_task, task_of_run

FINE_TUNING = "fine_tuning"
"""The recipe of a training that begins with a bundle's weights, if no other is named."""

SLICES: dict = {
    "preprocess": PreprocessSpec(slices=True),
    "patch": (192, 192),
    "large_patch": (192, 192),
    "large_share": 0.0,
}
"""What the default recipe changes for tasks that are segmented slice by slice."""


def load_recipe(options: TrainOptions, start: Bundle | None = None) -> Recipe:
    """The recipe of a file or of a published row (``medmap recipes``), with the options' changes.

    A training that begins with a bundle's weights has the network, task and preprocessing of the
    bundle, and without a recipe that of fine-tuning: few steps at a low rate.

    Raises:
        MissingInputError: there is no such recipe.
        BundleError: it is not understood.
        UsageError: the bundle is one of several networks or contradicts the recipe; or the recipe
            needs a teacher, and none is named.
    """
    recipe = Recipe()
    row = None
    if start:
        recipe = _fine_tuning(start)
    if options.recipe is not None:
        recipe, row = find_recipe(options.recipe)
    require_teacher(row, options.teacher)
    if start:
        if options.recipe is not None:
            _refuse_contradiction(recipe_fields(options.recipe), recipe, start)
        recipe = _recipe_of_bundle(recipe, start)
    if options.task is not None:
        task = find_task(options.task)
        recipe = replace(recipe, task=task.name)
        if options.recipe is None and start is None and task.spatial_dims == 2:
            recipe = replace(recipe, **SLICES)
    if options.steps is not None:
        recipe = replace(recipe, steps=options.steps)
    if options.seed is not None:
        recipe = replace(recipe, seed=options.seed)
    if options.split is not None:
        split = "" if options.split == "none" else options.split
        recipe = replace(recipe, split=split)
    return recipe


def task_of_training(
    recipe: Recipe, options: TrainOptions, start: Bundle | None = None, run: Path | None = None
) -> Task:
    """The task that is asked for, or the one of the bundle, the run or the recipe.

    Raises:
        UsageError: the run has begun with another one, or the recipe has other dimensions.
    """
    run_task = task_of_run(run) if run is not None and has_task(run) else None
    if options.task is not None:
        task = find_task(options.task)
    elif start is not None:
        task = start.task
    elif run_task is not None:
        task = run_task
    else:
        task = find_task(recipe.task)
    if run is not None and run_task is not None and run_task != task:
        raise UsageError(
            f"The run {run.name} has begun with another description of the task {task.name}.",
            "Choose another folder, or give the task as it was.",
            option="run",
        )
    if task.spatial_dims == 2 and not recipe.preprocess.slices:
        raise UsageError(
            f"The task {task.name} is segmented slice by slice, the recipe in volumes.",
            'Add "preprocess": {"slices": true} and a patch of two numbers to the recipe.',
        )
    return task


def _fine_tuning(start: Bundle) -> Recipe:
    """The default recipe of a training that begins with a bundle's weights."""
    recipe, _ = find_recipe(FINE_TUNING)
    # Only a brain has another side that shows the same tissue without the tumor.
    if start.task.organ != "brain" or start.preprocess.slices:
        return replace(recipe, sources={})
    return recipe


def _recipe_of_bundle(recipe: Recipe, start: Bundle) -> Recipe:
    if start.further_networks:
        raise UsageError(
            f"The bundle {start.id} holds several networks.", "Begin with a bundle of one."
        )
    spec = start.network_spec
    return replace(
        recipe,
        task=start.task.name,
        network=spec.name,
        network_options=dict(spec.options),
        preprocess=start.preprocess,
    )


def _refuse_contradiction(fields: Mapping, recipe: Recipe, start: Bundle) -> None:
    """Raises UsageError where a recipe asks for another network or preprocessing than a bundle's.

    What the recipe does not state follows the bundle; what it states counts, even where it is the
    default.
    """
    differences = []
    if "task" in fields and recipe.task != start.task.name:
        differences.append("task")
    if "network" in fields and recipe.network != start.network_spec.name:
        differences.append("network")
    for option, value in recipe.network_options.items():
        if _plain(value) != _plain(start.network_spec.options.get(option)):
            differences.append(f"network option {option}")
    recipe_preprocess = asdict(recipe.preprocess)
    bundle_preprocess = asdict(start.preprocess)
    for option in fields.get("preprocess", {}):
        if _plain(recipe_preprocess[option]) != _plain(bundle_preprocess[option]):
            differences.append(f"preprocess option {option}")
    if differences:
        raise UsageError(
            f"The recipe contradicts the bundle {start.id} that training starts from: "
            f"{', '.join(differences)}.",
            "Remove these fields from the recipe, or train it without the bundle's weights.",
            option="from",
        )


def _plain(value: object) -> object:
    """JSON's lists for tuples, so that both compare."""
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value
