"""From a run to a bundle: the network of the best validation, or the last one without validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.bundle.loading import save_bundle
from medmap.bundle.memory_estimate import bytes_per_voxel
from medmap.errors import BundleError
from medmap.networks import Backbone, build_network
from medmap.task import Task
from medmap.training.checkpoint import load_best, load_checkpoint
from medmap.training.recipe import Recipe

WHOLE_SLICES = InferenceSpec(window=(512, 512, 512))
"""Slices go through in one pass."""


def export(
    run: str | Path | Sequence[str | Path],
    recipe: Recipe,
    task: Task,
    bundle: str | Path,
    *,
    name: str,
    version: str,
    card: dict,
    overwrite: bool = False,
) -> Path:
    """Write averaged weights as a bundle: of one run, or of several, one per modality subset.

    Of each run, the weights of its best validation, or of its last step without validation; the
    card's ``selection`` names the step. Of several networks the best-validated one stands first.

    Raises:
        BundleError: a run has no intact checkpoint.
    """
    folders = [Path(run)] if isinstance(run, str | Path) else [Path(folder) for folder in run]
    networks = []
    selections = {}
    steps = 0
    for folder in folders:
        state = load_best(folder) or load_checkpoint(folder)
        if state is None:
            raise BundleError(
                f"The run {folder.name} has no checkpoint.", "Train until its first checkpoint."
            )
        network = build_network(*state["network"])
        network.load_state_dict(state["average"])
        networks.append((NetworkSpec(*network.built_from), network))
        steps = state["step"]
        last_step = {"step": steps, "by": "last step, nothing was validated"}
        selections[folder.name] = state.get("selection") or last_step
    if len(networks) > 1:
        # Where several networks of a bundle can run, the first among equals does.
        order = sorted(folders, key=lambda folder: -_validated_dice(selections[folder.name]))
        networks = [networks[folders.index(folder)] for folder in order]
    (spec, network), *others = networks
    selection = selections if others else next(iter(selections.values()))
    return save_bundle(
        bundle,
        name=name,
        version=version,
        task=task,
        network=network,
        network_spec=spec,
        others=others,
        preprocess=recipe.preprocess,
        inference=inference_spec(recipe, network),
        postprocess=recipe.postprocess,
        card={**card, "steps": steps, "selection": selection, "recipe": asdict(recipe)},
        overwrite=overwrite,
    )


def _validated_dice(selection: Mapping) -> float:
    """Dice by which a network was chosen; below all others where nothing was validated."""
    return float(selection.get("validation_dice", -1.0))


def inference_spec(recipe: Recipe, network: Backbone) -> InferenceSpec:
    """How a freshly trained network is run: as the recipe says, or whole volumes or slices.

    Whole ones where memory suffices; a recipe with ``inference`` has windows of its training patch.
    """
    spec = WHOLE_SLICES if recipe.preprocess.slices else InferenceSpec()
    windows = recipe.inference
    if windows is not None:
        patch = recipe.patch
        if recipe.preprocess.slices:
            # Which axis the slices stack along is known for a case only; all go through together.
            patch = (max(patch),) * 3
        spec = InferenceSpec(patch, windows.overlap, weighting=windows.weighting)
    return replace(spec, bytes_per_voxel=bytes_per_voxel(network))
