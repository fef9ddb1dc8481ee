"""Dedicated methods: one training per modality subset, and the teacher that they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medmap.bundle.format import METADATA
from medmap.bundle.loading import load_bundle
from medmap.errors import BundleError, MissingInputError, UsageError
from medmap.io.atomic import write_json
from medmap.networks import NETWORKS, Backbone, build_network
from medmap.networks.fixed_subset import FixedSubset
from medmap.task import Task
from medmap.training.checkpoint import load_checkpoint
from medmap.training.objectives import OBJECTIVES
from medmap.training.recipe import Recipe


def expand_subsets(
    recipe: Recipe, task: Task, chosen: Sequence[str] = ()
) -> list[tuple[str, Recipe]]:
    """Expand a recipe into one training per modality subset: (key of the subset, recipe).

    A recipe of one network for any subset is one training, with an empty key. Dedicated methods
    train one network for each of ``chosen`` (``t1ce+flair``), else of the recipe's ``subsets``,
    else of all non-empty subsets.

    Raises:
        UsageError: a subset is unknown or named twice, or the network takes any subset.
    """
    subsets = list(chosen) or list(recipe.subsets)
    if not subsets and _trains_every_subset(recipe):
        subsets = ["+".join(subset) for subset in task.subsets()]
    if not subsets:
        return [("", recipe)]
    network = NETWORKS.get(recipe.network)
    if network is not None and not issubclass(network, FixedSubset):
        raise UsageError(
            f"{recipe.network} takes any modality subset, so it is trained once for all of them.",
            "Choose no subsets, or use UNet, VNet or SegResNet.",
            option="subset",
        )
    parts = {}
    for text in subsets:
        key = task.subset_key(text.split("+"))
        if key in parts:
            raise UsageError(f"The modality subset {key} is named twice.", "Name each subset once.")
        inputs = [task.index(name) for name in key.split("+")]
        parts[key] = replace(
            recipe, network_options={**recipe.network_options, "inputs": inputs}, subsets=()
        )
    return list(parts.items())


def _trains_every_subset(recipe: Recipe) -> bool:
    """Whether the objective trains one network per subset and the recipe names no subset itself."""
    objective = OBJECTIVES.get(recipe.objective)
    if objective is None or not objective.dedicated:
        return False
    return "inputs" not in recipe.network_options


def load_teacher(path: Path, recipe: Recipe, task: Task) -> Backbone:
    """The network of a bundle or a run (its averaged weights) that sees every modality.

    Raises:
        MissingInputError: there is neither.
        BundleError: it lacks modalities, or its preprocessing is not the recipe's.
    """
    if (path / METADATA).is_file():
        bundle = load_bundle(path)
        network = bundle.entry_for(bundle.task.modality_names).network
        preprocess = bundle.preprocess
    else:
        state = load_checkpoint(path) if path.is_dir() else None
        if state is None:
            raise MissingInputError(
                f"{path} is neither a bundle nor a run.",
                "Check the path of the teacher.",
                option="teacher",
            )
        network = build_network(*state["network"])
        preprocess = Recipe.read(path / "recipe.json").preprocess
        network.load_state_dict(state["average"])
    if network.needs is not None and len(network.needs) < len(task.modalities):
        raise BundleError(
            f"The teacher {path.name} does not take every modality.",
            "Train a teacher on complete cases.",
        )
    if preprocess != recipe.preprocess:
        raise BundleError(
            f"The teacher {path.name} was trained with other preprocessing than the recipe has.",
            "Use the same spacing and normalization for both.",
        )
    return network.eval()


def record_teacher(run: Path, teacher: Backbone) -> None:
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
            "Give that teacher, or another folder for the run.",
            option="run",
        )
