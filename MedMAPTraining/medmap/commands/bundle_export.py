"""``medmap export``: the weights of a run as a bundle, at any time."""

from __future__ import annotations

import re
from pathlib import Path

from medmap.bundle.format import NetworkSpec
from medmap.commands.training import card_of_owner, check_output_folder
from medmap.commands.training_options import BundleOptions
from medmap.errors import BundleError, MissingInputError
from medmap.task import Task, find_task
from medmap.training.checkpoint import require_checkpoint
from medmap.training.export import TrainedNetwork, export
from medmap.training.recipe import Recipe
from medmap.training.run_task import has_task, task_of_run
from medmap.training.setup import make_objective

RECIPE = "recipe.json"


def export_run(run: Path, bundle: Path, options: BundleOptions, *, full_path: bool = False) -> int:
    """Export the averaged weights of a run as it stands, finished or not.

    The runs of several modality subsets become one bundle with a network for each; the runs of
    several folds become one ensemble, the mean of their class probabilities.

    Args:
        run: folder of the run.
        bundle: folder for the bundle.
        options: what the bundle says of itself.
        full_path: of a co-trained method, the network that sees every modality instead of the
            student; ``run`` is then that of one modality subset.

    Returns:
        The step that was exported; of several networks, that of the least trained one.

    Raises:
        MissingInputError: there is no such run.
        BundleError: a network of the run has no usable checkpoint, or there is not one full path.
        OutputError: the bundle exists.
    """
    groups = _groups(run)
    if full_path and (len(groups) > 1 or len(groups[0]) > 1):
        raise BundleError(
            f"{run.name} holds several trainings, each with a full path of its own.",
            "Name the folder of one of them.",
        )
    check_output_folder(bundle, options.overwrite)
    steps = []
    for folder in [folder for folders in groups for folder in folders]:
        steps.append(int(require_checkpoint(folder)["step"]))
    recipe = Recipe.read(groups[0][0] / RECIPE)
    runs = [folders if len(folders) > 1 else folders[0] for folders in groups]
    card = {
        "data": options.data_statement,
        "training": f"Step {min(steps)} of {recipe.steps}, seed {recipe.seed}.",
        **card_of_owner(options.author, options.license),
    }
    task = task_of_run(run) if has_task(run) else find_task(recipe.task)
    networks = [_full_path(groups[0][0], task)] if full_path else None
    export(
        runs,
        recipe,
        task,
        bundle,
        name=options.name,
        version=options.version,
        card=card,
        overwrite=options.overwrite,
        networks=networks,
    )
    return min(steps)


def _groups(run: Path) -> list[list[Path]]:
    """Per modality subset, the runs of its folds (or its one run).

    Raises:
        MissingInputError: the folder holds no run.
        BundleError: the folds are not of the same modality subsets.
    """
    folds = [folder for folder in _subfolders(run) if re.fullmatch(r"fold_\d+", folder.name)]
    folds.sort(key=lambda folder: int(folder.name.removeprefix("fold_")))
    columns = [_networks(folder) for folder in folds or [run]]
    columns = [networks for networks in columns if networks]
    if not columns:
        raise MissingInputError(
            f"{run} is no folder of a training.",
            "Name the folder of a run.",
        )
    if any(set(networks) != set(columns[0]) for networks in columns):
        raise BundleError(
            f"The folds of {run.name} have not trained the same networks.",
            "Train all folds further, then export again.",
        )
    groups = []
    for name in columns[0]:
        groups.append([networks[name] for networks in columns])
    return groups


def _networks(folder: Path) -> dict[str, Path]:
    """Runs by modality subset; one network for any subset has the key ""."""
    if (folder / RECIPE).is_file():
        return {"": folder}
    networks = {}
    for subfolder in _subfolders(folder):
        if (subfolder / RECIPE).is_file():
            networks[subfolder.name] = subfolder
    return networks


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _full_path(folder: Path, task: Task) -> TrainedNetwork:
    """The co-trained network of a run that an anchor aligns, as it is after the last step.

    Raises:
        BundleError: there is no checkpoint, or the method trains one network only.
    """
    state = require_checkpoint(folder)
    objective = make_objective(Recipe.read(folder / RECIPE), task)
    network = objective.aligned()
    if network is objective.deploy():
        raise BundleError(
            f"The run {folder.name} has no full path beside its network.",
            "Export the network itself.",
        )
    objective.load_state_dict(state["objective"])
    selection = {"step": state["step"], "by": "last step; the full path is never validated"}
    return TrainedNetwork(NetworkSpec(*network.built_from), network, state["step"], selection)
