"""Dedicated methods: one training a set of scans, and the teacher that they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medmap.bundle.loading import METADATA, load_bundle
from medmap.errors import BundleError, MissingInputError, UsageError
from medmap.io.atomic import write_json
from medmap.networks import NETWORKS, Backbone, build_network
from medmap.networks.fixed_subset import FixedSubset
from medmap.task import Task
from medmap.training.checkpoint import load_checkpoint
from medmap.training.objectives import OBJECTIVES
from medmap.training.recipe import Recipe


def parts_of(recipe: Recipe, task: Task, chosen: Sequence[str] = ()) -> list[tuple[str, Recipe]]:
    """The trainings that a recipe stands for: (name of the set of scans, recipe of its network).

    A recipe that makes one network for any set is one part, with an empty name. Dedicated methods make one a set:
    ``chosen`` (``t1ce+flair``), else the recipe's ``subsets``, else every non-empty one.

    Raises:
        UsageError: a set is unknown or named twice, or the network takes any set.
    """
    wanted = list(chosen) or list(recipe.subsets)
    kind = OBJECTIVES.get(recipe.objective)
    if (
        not wanted
        and kind is not None
        and kind.dedicated
        and "inputs" not in recipe.network_options
    ):
        wanted = ["+".join(subset) for subset in task.subsets()]
    if not wanted:
        return [("", recipe)]
    network = NETWORKS.get(recipe.network)
    if network is not None and not issubclass(network, FixedSubset):
        raise UsageError(
            f"The network {recipe.network} takes any set of scans, so one training is all there is.",
            "Leave --subset out, or use UNet, VNet or SegResNet.",
        )
    parts = {}
    for text in wanted:
        key = task.subset_key(text.split("+"))
        if key in parts:
            raise UsageError(f"The set of scans {key} is named twice.", "Name each once.")
        inputs = [task.index(name) for name in key.split("+")]
        parts[key] = replace(
            recipe, network_options={**recipe.network_options, "inputs": inputs}, subsets=()
        )
    return list(parts.items())


def load_teacher(path: Path, recipe: Recipe, task: Task) -> Backbone:
    """The network of a bundle or a run (its averaged weights) that sees every modality.

    Raises:
        MissingInputError: there is neither.
        BundleError: it lacks modalities, or was trained with other preprocessing than the recipe has.
    """
    if (path / METADATA).is_file():
        bundle = load_bundle(path)
        network, preprocess = (
            bundle.entry_for(bundle.task.modality_names).network,
            bundle.preprocess,
        )
    else:
        state = load_checkpoint(path) if path.is_dir() else None
        if state is None:
            raise MissingInputError(
                f"{path} is neither a bundle nor a run.", "Check the path given with --teacher."
            )
        network, preprocess = (
            build_network(*state["network"]),
            Recipe.read(path / "recipe.json").preprocess,
        )
        network.load_state_dict(state["average"])
    if network.needs is not None and len(network.needs) < len(task.modalities):
        raise BundleError(
            f"The teacher {path.name} does not take every scan.", "Train one that does."
        )
    if preprocess != recipe.preprocess:
        raise BundleError(
            f"The teacher {path.name} was trained with other preprocessing than the recipe has.",
            "Use the same spacing and normalization for both.",
        )
    return network.eval()


def keep_teacher(run: Path, teacher: Backbone) -> None:
    """Note in the run which teacher it has. Raises BundleError when it was started with another."""
    digest = hashlib.sha256()
    for name, value in sorted(teacher.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    note = run / "teacher.json"
    if not note.exists():
        write_json(note, {"sha256": digest.hexdigest()})
    elif json.loads(note.read_text(encoding="utf-8"))["sha256"] != digest.hexdigest():
        raise BundleError(
            f"The run {run.name} was started with another teacher.",
            "Give that one, or another --run folder.",
        )
