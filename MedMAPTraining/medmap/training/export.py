"""From a run to a bundle: the network of the best validation, or the last without validation."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.bundle.loading import save_bundle
from medmap.bundle.memory_estimate import bytes_per_voxel
from medmap.bundle.training_cases import TrainingCases
from medmap.networks import ENSEMBLE, Backbone, Ensemble, build_network
from medmap.task import Task
from medmap.training.checkpoint import load_best, require_checkpoint
from medmap.training.recipe import Recipe
from medmap.training.run_cases import RunCases, training_cases

WHOLE_SLICES = InferenceSpec(window=(512, 512, 512))
"""Slices go through in one pass."""

Run = str | Path
Folds = Sequence[Run]
"""Runs on the folds of one cohort, which become the members of an ensemble."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A network of a run, or the ensemble of several.

    Attributes:
        spec: name and options.
        network: with averaged weights.
        step: of the weights; of an ensemble, the first member's.
        selection: by what the step was chosen; of an ensemble, one entry per member.
    """

    spec: NetworkSpec
    network: Backbone
    step: int
    selection: Mapping


def export(
    run: Run | Sequence[Run | Folds],
    recipe: Recipe,
    task: Task,
    bundle: str | Path,
    *,
    name: str,
    version: str,
    card: Mapping,
    overwrite: bool = False,
    networks: Sequence[TrainedNetwork] | None = None,
    row: str = "",
) -> Path:
    """Write averaged weights as a bundle.

    Of each run, the weights of its best validation, or of its last step without validation; the
    card's ``selection`` names the step. Of several networks the best-validated one stands first.

    Args:
        run: folder of the run; or one entry per modality subset, each a run or, for an
            ensemble, the runs of all folds.
        recipe: of the training.
        task: of the recipe.
        bundle: folder of the bundle.
        name: of the bundle; empty for a name made of the row's or run's name and a hash of the
            weights.
        version: of the bundle.
        card: texts for the model card; ``describe`` writes a description where it has none.
        overwrite: replace an existing bundle.
        networks: one for each run, instead of the averaged weights of its checkpoint.
        row: name of the published row that was trained; empty for another recipe.

    Raises:
        BundleError: a run has no intact checkpoint.
        OutputError: the bundle exists.
    """
    runs = [run] if isinstance(run, str | Path) else list(run)
    trained = list(networks or [_trained(entry) for entry in runs])
    selections = {}
    for entry, network in zip(runs, trained, strict=True):
        selections[_title(entry)] = network.selection
    # Where several networks of a bundle can run, the first among equals does.
    trained.sort(key=lambda network: -_validated_dice(network.selection))
    first, *other_networks = trained
    cases = cases_of_runs([_folders(entry) for entry in runs], task)
    subsets = []
    for network in trained:
        if network.network.needs is not None:
            subsets.append([task.modality_names[m] for m in sorted(network.network.needs)])
    texts = {"description": describe(task, subsets, cases), **cost_of(trained), **card}
    return save_bundle(
        bundle,
        name=name or default_name(row or _run_folder(runs).resolve().name, trained),
        version=version,
        task=task,
        network=first.network,
        network_spec=first.spec,
        further_networks=[(network.spec, network.network) for network in other_networks],
        preprocess=recipe.preprocess,
        inference=inference_spec(recipe, first.network),
        postprocess=recipe.postprocess,
        card={
            **texts,
            "steps": first.step,
            "selection": selections if other_networks else first.selection,
            "recipe": asdict(recipe),
        },
        training_cases=cases,
        overwrite=overwrite,
    )


def _validated_dice(selection: Mapping) -> float:
    """Dice by which a network was chosen; below all others where nothing was validated.

    Of an ensemble, the mean over its members.
    """
    members = [entry for entry in selection.values() if isinstance(entry, Mapping)]
    if members:
        total = sum(_validated_dice(member) for member in members)
        return total / len(members)
    return float(selection.get("validation_dice", -1.0))


def cases_of_runs(networks: Sequence[Sequence[Path]], task: Task) -> TrainingCases | None:
    """What the networks of a bundle learned from; None where a run does not say.

    Args:
        networks: per network, the run of each of its folds.
        task: of the runs.
    """
    folds = []
    for folders in zip(*networks, strict=True):
        records = []
        for folder in folders:
            record = RunCases.read(folder)
            if record is None:
                return None
            records.append(record)
        folds.append(records)
    return training_cases(folds, task)


def describe(
    task: Task, subsets: Sequence[Sequence[str]] = (), cases: TrainingCases | None = None
) -> str:
    """What a bundle does, in one sentence.

    Args:
        task: of the bundle.
        subsets: modality subsets that have a network of their own; empty for one network for any.
        cases: what it was trained on: modalities that no case had are not among its inputs.
    """
    if subsets:
        titles = "; ".join(task.titles(subset) for subset in subsets)
        source = f"one of these modality subsets, each with its own network: {titles}"
    else:
        names = task.modality_names
        if cases is not None:
            names = tuple(name for name in names if name in cases.modalities)
        source = f"any subset of {task.titles(names)}"
    regions = ", ".join(region.name for region in task.regions)
    return f"{task.name} segmentation ({regions}) from {source}."


def cost_of(trained: Sequence[TrainedNetwork]) -> dict[str, str]:
    """The card's entry ``cost`` of an ensemble; empty for single networks."""
    if trained[0].spec.name != ENSEMBLE:
        return {}
    count = len(trained[0].spec.options["members"])
    text = (
        f"{count} networks, whose class probabilities are averaged: {count} times the computation"
    )
    return {"cost": f"{text} and {count} times the weights of one network."}


def _run_folder(runs: Sequence) -> Path:
    """The folder that the training was started with.

    Networks per modality subset, and those of folds, lie in folders within it.
    """
    first = runs[0]
    folder = _folders(first)[0]
    has_folds = not isinstance(first, str | Path)
    if len(runs) > 1 or has_folds:
        return folder.resolve().parent
    return folder


def default_name(origin: str, trained: Sequence[TrainedNetwork]) -> str:
    """The name of a row or run, and a hash of the weights: two trainings never share it."""
    digest = hashlib.sha256()
    for network in trained:
        for name, value in sorted(network.network.state_dict().items()):
            array = value.cpu().contiguous().numpy()
            digest.update(name.encode())
            digest.update(array.tobytes())
    short_hash = digest.hexdigest()[:8]
    # What folders may be called on every system.
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", origin).strip("-.")
    return f"{stem or 'run'}-{short_hash}"


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


def _folders(entry: Run | Folds) -> list[Path]:
    if isinstance(entry, str | Path):
        return [Path(entry)]
    return [Path(folder) for folder in entry]


def _title(entry: Run | Folds) -> str:
    return _folders(entry)[0].name


def _trained(entry: Run | Folds) -> TrainedNetwork:
    """The network of a run, or the ensemble of its folds."""
    members = [_read(folder) for folder in _folders(entry)]
    if isinstance(entry, str | Path):
        return members[0]
    first = members[0].spec
    member_options = []
    for member in members:
        spec = member.spec
        member_options.append({"name": spec.name, "options": dict(spec.options)})
    options: dict = {"members": member_options}
    if first.options.get("inputs") is not None:
        options["inputs"] = first.options["inputs"]
    network = Ensemble([member.network for member in members])
    network.built_from = (ENSEMBLE, options)
    selection = {}
    for number, member in enumerate(members):
        selection[f"member {number}"] = member.selection
    return TrainedNetwork(NetworkSpec(ENSEMBLE, options), network, members[0].step, selection)


def _read(folder: Path) -> TrainedNetwork:
    """The network of a run. Raises BundleError where it has no checkpoint."""
    state = load_best(folder) or require_checkpoint(folder)
    network = build_network(*state["network"])
    network.load_state_dict(state["average"])
    last_step = {
        "step": state["step"],
        "by": "last step, nothing was validated",
    }
    selection = state.get("selection") or last_step
    spec = NetworkSpec(*network.built_from)
    return TrainedNetwork(spec, network, state["step"], selection)
