"""From a recipe to the objective around its network, checked before any case is prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medmap.errors import UsageError
from medmap.networks import NETWORKS, Backbone, build_network
from medmap.networks.fixed_subset import FixedSubset
from medmap.networks.stem import naming_modalities
from medmap.task import Task
from medmap.training.batch import Batch, Sampler
from medmap.training.objectives import Context, Objective, WithAnchor, build_objective
from medmap.training.optimizers import make_optimizer
from medmap.training.recipe import Recipe, check_numbers


def make_objective(
    recipe: Recipe,
    task: Task,
    sampler: Sampler | None = None,
    teacher: Backbone | None = None,
    held_out: Callable[[int], Batch] | None = None,
) -> Objective:
    """The recipe's objective around its backbone, freshly initialized.

    Without a sampler it is only good for loading weights.

    Raises:
        UsageError: the network cannot take patches of the recipe's size.
    """
    options = naming_modalities(_network_options(recipe, task), task.modality_names)
    backbone = build_network(recipe.network, options)
    _check_patches(recipe, backbone)
    case_ids: Sequence[str] = ()
    available = {}
    if sampler is not None:
        case_ids = sampler.case_ids
        available = {case_id: sampler.available(case_id) for case_id in case_ids}
    cases_with = {}
    for m, name in enumerate(task.modality_names):
        cases_with[name] = sum(bool(mask[m]) for mask in available.values())
    context = Context(
        task=task,
        backbone=backbone,
        teacher=teacher,
        steps=recipe.steps,
        epoch_steps=recipe.epoch_steps or max(1, -(-len(case_ids) // recipe.batch)),
        cases=len(case_ids),
        cases_with=cases_with,
        held_out=held_out,
    )
    objective = build_objective(recipe.objective, context, recipe.objective_options)
    if recipe.alignment:
        return WithAnchor(objective, task, **recipe.alignment)
    return objective


def check_recipe(recipe: Recipe, task: Task, teacher: Backbone | None) -> int:
    """Build everything that a recipe names, so that a mistake shows before hours of preparation.

    Args:
        recipe: to be trained.
        task: of the data.
        teacher: a trained network, where there is one.

    Returns:
        Voxels along the shortest side of the deepest feature map of a patch.

    Raises:
        UsageError, BundleError: a name is unknown, an option does not fit,
            or a number is impossible.
    """
    check_numbers(recipe)
    recipe.micro_batch_size()
    objective = make_objective(recipe, task, teacher=teacher)
    for group in objective.groups().values():
        make_optimizer(group, recipe)
    sides = list(recipe.patch)
    if recipe.large_share:
        sides += recipe.large_patch
    return min(sides) // objective.deploy().stride


def _check_patches(recipe: Recipe, backbone: Backbone) -> None:
    patches = {recipe.patch}
    if recipe.large_share:
        patches.add(recipe.large_patch)
    for patch in patches:
        if any(size % backbone.stride for size in patch):
            raise UsageError(
                f"Patches of {' x '.join(map(str, patch))} do not fit {recipe.network}.",
                f"Give sizes that {backbone.stride} divides.",
            )


def _network_options(recipe: Recipe, task: Task) -> dict:
    """Options of the recipe's network, with what follows from the task and the data.

    A stack of modalities that is trained on complete cases only is made for these, and its bundle
    states it: such a network has never met a missing modality.
    """
    options = {
        "modalities": len(task.modalities),
        "classes": task.num_classes,
        **recipe.network_options,
    }
    if recipe.preprocess.slices:
        options = {"spatial_dims": 2, **options}
    is_stack = issubclass(NETWORKS.get(recipe.network, Backbone), FixedSubset)
    if is_stack and recipe.missingness == "full" and options.get("inputs") is None:
        options["inputs"] = list(range(len(task.modalities)))
    return options
