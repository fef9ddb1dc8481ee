"""Networks of published recipes, on a task's own sizes."""

from __future__ import annotations

from medmap.networks import build_network
from medmap.training.recipe import Recipe


def network_for(recipe: Recipe, task):
    """A recipe's network on a task's modalities, classes and dimensions."""
    dims = 2 if recipe.preprocess.slices else 3
    sizes = {
        "modalities": len(task.modalities),
        "classes": task.num_classes,
        "spatial_dims": dims,
    }
    return build_network(recipe.network, recipe.network_options | sizes)
