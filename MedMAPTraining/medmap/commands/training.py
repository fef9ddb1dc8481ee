"""``medmap train``: a folder of cases to a bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from medmap.bundle.loading import Bundle, load_bundle
from medmap.commands.dedicated import expand_subsets, load_teacher, record_teacher
from medmap.commands.generated import build_generated_sampler
from medmap.devices import resolve_device
from medmap.errors import (
    BundleError,
    InputDataError,
    MedMAPError,
    MissingInputError,
    OutputError,
    UsageError,
    combined_error,
)
from medmap.evaluation.training_cases import TRAINING_SCANS, scan_hashes
from medmap.io.atomic import make_folder
from medmap.io.cohorts import Case, find_cohort
from medmap.io.labels import with_conventions
from medmap.networks import Backbone
from medmap.preprocess import PreprocessSpec
from medmap.task import Task, find_task
from medmap.training.augmentation import StandardAugmentation
from medmap.training.batch import Batch, Sampler
from medmap.training.cache import cache_case
from medmap.training.checkpoint import load_checkpoint
from medmap.training.dataset import Augmentation, PatchSampler
from medmap.training.distributed import Team, choose_precision, launch
from medmap.training.export import export
from medmap.training.generated import GeneratedSampler
from medmap.training.log import TrainingLog
from medmap.training.loop import train
from medmap.training.missingness import build_missingness, full, write_masks
from medmap.training.options import RuntimeOptions
from medmap.training.published import find_recipe, find_split, require_teacher
from medmap.training.recipe import Recipe
from medmap.training.run_task import has_task, task_of_run, write_task
from medmap.training.setup import check_recipe
from medmap.training.sources import GENERATED, MixedSampler, by_tumor, require_sources
from medmap.training.splits import part_of, read_split
from medmap.training.validation import Validation

Report = Callable[[float, str], None]


FINE_TUNING = Recipe(
    about="Fine-tuning on a few cases of one's own, from a bundle's weights.",
    steps=500,
    learning_rate=2e-4,
    ema=0.99,
    augmentation=Augmentation(standard=StandardAugmentation()),
)

SLICES: dict = {
    "preprocess": PreprocessSpec(slices=True),
    "patch": (192, 192),
    "large_patch": (192, 192),
    "large_share": 0.0,
}
"""What the default recipe changes for tasks that are segmented slice by slice."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``medmap train`` besides the folders; see its help.

    Attributes:
        name: of the bundle; None names it after the recipe.
        runtime: how the training is run (device, precision, workers and so on).
    """

    recipe: str | Path | None = None
    split: str | None = None
    teacher: Path | None = None
    subsets: tuple[str, ...] = ()
    start: Path | None = None
    anatomy: Path | None = None
    steps: int | None = None
    seed: int | None = None
    name: str | None = None
    version: str = "1.0.0"
    data_statement: str = "not stated"
    overwrite: bool = False
    labels: str = ""
    affine: str | None = None
    assume_orientation: bool = False
    task: str | None = None
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)


@dataclass(frozen=True)
class TrainingData:
    """Where the batches of a training come from.

    Attributes:
        sampler: batches to train on.
        held_out: batches of cases kept out of training, by number, for objectives that learn on two
            levels; None if the recipe holds out no case.
        validation: scores networks on the ``val`` part of the split; None if there is none.
        labels: how the values of the label files were read, and why; empty for generated cases.
        cases: of the cohort, that are trained on; empty for generated cases.
    """

    sampler: Sampler
    held_out: Callable[[int], Batch] | None = None
    validation: Validation | None = None
    labels: str = ""
    cases: tuple[Case, ...] = ()


def train_bundle(
    run: Path, data: Path | None, bundle: Path, options: TrainOptions, report: Report
) -> tuple[int, int]:
    """Prepare, train (or resume) and, after the last step, export.

    Without ``data`` cases are generated on the fly as the recipe's ``generation`` says. A dedicated
    method has a run of its own per modality subset, in a folder of that name.

    Args:
        run: folder of the run.
        data: the cohort; None generates cases.
        bundle: folder for the bundle.
        options: see ``medmap train --help``.
        report: called with the fraction done and a text, on the first process.

    Returns:
        Steps done and steps of the whole training, summed over its networks.
    """
    start = load_bundle(options.start) if options.start else None
    recipe = load_recipe(options, start)
    task = _task_of(recipe, options, start, run)
    parts = expand_subsets(recipe, task, options.subsets)
    if bundle.exists() and not options.overwrite and _is_finished(run, parts):
        report(1.0, "nothing to do: the training is finished, and its bundle was exported")
        return recipe.steps * len(parts), recipe.steps * len(parts)
    check_output_folder(bundle, options.overwrite)
    teacher = load_teacher(options.teacher, recipe, task) if options.teacher else None

    # Everything that the recipe names is built once before cases are prepared: a mistake shows now,
    # not after hours.
    deepest_grid = min(check_recipe(part, task, teacher) for _, part in parts)
    runtime = options.runtime
    precision = choose_precision(runtime.precision, resolve_device(runtime.device), deepest_grid)
    runtime = replace(runtime, precision=precision)
    fabric = launch(runtime.device, runtime.precision, runtime.devices)
    runtime = replace(runtime, device=str(fabric.device))
    if data is None:
        runtime = replace(runtime, workers=0)  # generated cases are prepared ahead by the sampler
    options = replace(options, runtime=runtime)
    team = Team(fabric)
    started = time.monotonic()
    if not team.first:
        report = _ignore_progress
    if data is None:
        training_data = _generated_data(recipe, task, run, options, team)
    else:
        if GENERATED not in recipe.sources:
            recipe = replace(recipe, generation=None)
        training_data = _cohort_data(recipe, task, data, run, options, team, report)
    if teacher and team.first:
        record_teacher(run, teacher)

    if runtime.minutes is not None:
        # Preparing the data counts: a scheduler's limit is for the whole program.
        runtime = replace(runtime, minutes=runtime.minutes - (time.monotonic() - started) / 60)
    steps_done = _train_parts(
        run, parts, task, training_data, teacher, start, team, runtime, report
    )
    steps = recipe.steps * len(parts)
    if steps_done == steps and team.first:
        card = _card(recipe, task, parts, training_data, options, team)
        export(
            _run_folders(run, parts),
            recipe,
            task,
            bundle,
            name=options.name or bundle_name(options.recipe),
            version=options.version,
            card=card,
            overwrite=options.overwrite,
        )
    team.wait()
    return steps_done, steps


def _task_of(recipe: Recipe, options: TrainOptions, start: Bundle | None, run: Path) -> Task:
    """The task that is asked for, or the one of the bundle, the run or the recipe.

    Raises UsageError where the run has begun with another one, or the recipe has other dimensions.
    """
    if options.task is not None:
        task = find_task(options.task)
    elif start is not None:
        task = start.task
    elif has_task(run):
        task = task_of_run(run)
    else:
        task = find_task(recipe.task)
    if has_task(run) and task_of_run(run) != task:
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


def bundle_name(recipe: str | Path | None) -> str:
    """The bundle's name where none is given: that of its recipe."""
    if recipe is None:
        return "medmap-custom"
    return Path(recipe).stem


def _is_finished(run: Path, parts: Sequence[tuple[str, Recipe]]) -> bool:
    """Whether every network of a run has done all of its steps with this recipe."""
    for subset, recipe in parts:
        folder = run / subset if subset else run
        state = load_checkpoint(folder) if folder.is_dir() else None
        if state is None or state["step"] < recipe.steps:
            return False
        if state["recipe"] != recipe.digest():
            return False
    return True


def _train_parts(
    run: Path,
    parts: Sequence[tuple[str, Recipe]],
    task: Task,
    data: TrainingData,
    teacher: Backbone | None,
    start: Bundle | None,
    team: Team,
    runtime: RuntimeOptions,
    report: Report,
) -> int:
    """Train the networks one after another within the time allowed; returns the steps done."""
    started = time.monotonic()
    steps_done = 0
    for number, (subset, recipe) in enumerate(parts):
        part_runtime = runtime
        if runtime.minutes is not None:
            minutes_left = runtime.minutes - (time.monotonic() - started) / 60
            # Processes have clocks of their own: the first one decides for all.
            if number and team.from_first(minutes_left <= 0):
                break
            part_runtime = replace(runtime, minutes=minutes_left)
        folder = run / subset if subset else run
        part_report = _part_report(report, number, len(parts), subset)
        with _log(folder, recipe, data.sampler, part_report) as log:
            steps_done += train(
                recipe,
                task,
                data.sampler,
                folder,
                teacher=teacher,
                start=start.network if start else None,
                held_out=data.held_out,
                validation=data.validation,
                options=part_runtime,
                fabric=team.fabric,
                report=log,
            )
    return steps_done


def _part_report(report: Report, number: int, count: int, subset: str) -> Report:
    """Progress of one network as progress of all of them."""

    def report_part(fraction: float, text: str) -> None:
        if subset:
            text = f"{subset} ({number + 1} of {count}): {text}"
        report((number + fraction) / count, text)

    return report_part


def _ignore_progress(fraction: float, text: str) -> None:
    """Progress of processes other than the first, which reports for all."""


def _log(run: Path, recipe: Recipe, sampler: Sampler, report: Report) -> TrainingLog:
    """The log of one network; with the seconds waited for cases, where they are generated."""
    extra_figures = None
    if hasattr(sampler, "seconds"):

        def extra_figures() -> dict:
            return {"waited": sampler.seconds}

    return TrainingLog(run, recipe.steps, report, extra_figures)


def _run_folders(run: Path, parts: Sequence[tuple[str, Recipe]]) -> Path | list[Path]:
    """The run's folder, or one per modality subset for dedicated methods."""
    if not _is_dedicated(parts):
        return run
    return [run / subset for subset, _ in parts]


def _is_dedicated(parts: Sequence[tuple[str, Recipe]]) -> bool:
    """Whether each modality subset gets a network of its own; a single network has an empty key."""
    return parts[0][0] != ""


def _generated_data(
    recipe: Recipe, task: Task, run: Path, options: TrainOptions, team: Team
) -> TrainingData:
    """Batches of cases that are generated on the fly."""
    if recipe.split:
        raise UsageError(
            "The recipe is for the cases of a data set.",
            "Name the folder of that data set, or train without the split.",
            option="data, --split none",
        )
    require_sources(recipe.sources, None)
    _make_run(run, task, team)
    device = options.runtime.device
    return TrainingData(
        build_generated_sampler(recipe, task, run, device, options.anatomy, team.rank)
    )


def _cohort_data(
    recipe: Recipe,
    task: Task,
    data: Path,
    run: Path,
    options: TrainOptions,
    team: Team,
    report: Report,
) -> TrainingData:
    """Batches of a cohort's cases, mixed with the recipe's other sources."""
    cohort = find_cohort(
        data, task, affine=options.affine, assume_orientation=options.assume_orientation
    )
    all_cases, reading = with_conventions(cohort.cases, task, options.labels)
    cases = cases_of(all_cases, recipe.split)
    for text in (reading.statement, cohort.warning):
        if text:
            report(0.0, text)
    _make_run(run, task, team)
    sampler, held_out = cached_patches(recipe, task, cases["train"], run, report, team)
    if recipe.sources:
        sampler = mixed(recipe, task, sampler, run, options, team)
    validation = None
    if cases.get("val"):
        folders = cache_cases(cases["val"], task, recipe.preprocess, run / "cache", team, report)
        validation = Validation(folders, task, recipe)
    return TrainingData(sampler, held_out, validation, reading.statement, tuple(cases["train"]))


def _make_run(run: Path, task: Task, team: Team) -> None:
    if team.first:
        make_folder(run)
        write_task(run, task)
    team.wait()


def _card(
    recipe: Recipe,
    task: Task,
    parts: Sequence[tuple[str, Recipe]],
    data: TrainingData,
    options: TrainOptions,
    team: Team,
) -> dict:
    """The model card's texts about a training."""
    network_text = " a network" if _is_dedicated(parts) else ""
    start_text = f" from the weights of {options.start.name}" if options.start else ""
    sampler = data.sampler
    case_text = f"{len(sampler.case_ids)} cases"
    if isinstance(sampler, GeneratedSampler):
        first_seed, last_seed = sampler.plan.seeds(recipe.steps)
        case_text = f"cases generated while training (seeds {first_seed} to {last_seed})"
    card: dict = {
        "description": describe(task, [subset for subset, _ in parts if subset]),
        "data": options.data_statement,
        "training": f"{recipe.steps} steps{network_text}{start_text}, {case_text}, "
        f"{options.runtime.precision}, {_hardware(options.runtime, team)}, seed {recipe.seed}. "
        f"{data.labels}".rstrip(),
    }
    if data.cases and team.first:
        card[TRAINING_SCANS] = scan_hashes(data.cases)
    return card


def _hardware(runtime: RuntimeOptions, team: Team) -> str:
    """What a training ran on, in words."""
    if resolve_device(runtime.device).type == "cuda":
        if team.size == 1:
            return "CUDA GPU"
        return f"{team.size} processes of one CUDA GPU"
    threads = f"{torch.get_num_threads()} CPU threads"
    if team.size == 1:
        return threads
    return f"{team.size} x {threads}"


def cached_patches(
    recipe: Recipe, task: Task, cases: Sequence[Case], run: Path, report: Report, team: Team
) -> tuple[PatchSampler, Callable[[int], Batch] | None]:
    """Prepare the cases under ``run/cache``; returns where patches come from, and held-out batches by number, if any.

    ``run/scans.csv`` says which scans training may see of each case; no other is opened.
    """
    names = [case.case_id for case in cases]
    missingness = build_missingness(recipe.missingness, task, recipe.missingness_options, names)
    if team.first:
        write_masks(run / "scans.csv", task, {name: missingness.available(name) for name in names})
    held_out_names = recipe.hold_out(names)
    case_folders = cache_cases(
        cases, task, recipe.preprocess, run / "cache", team, report, missingness.available
    )
    training_folders = []
    held_out_folders = []
    for folder, name in zip(case_folders, names, strict=True):
        if name in held_out_names:
            held_out_folders.append(folder)
        else:
            training_folders.append(folder)
    sampler = PatchSampler(training_folders, missingness, recipe.seed, recipe.augmentation)
    if not held_out_folders:
        return sampler, None
    # Held-out cases show every modality that may be seen of them. The complement of the seed keeps
    # their random stream apart from the training's.
    held_out_seed = 2**32 - 1 - recipe.seed
    held_out = PatchSampler(held_out_folders, full(task), held_out_seed, recipe.augmentation)
    return sampler, lambda number: held_out.batch(number, recipe.batch, recipe.patch)


def mixed(
    recipe: Recipe, task: Task, sampler: PatchSampler, run: Path, options: TrainOptions, team: Team
) -> MixedSampler:
    """The sources of a recipe, of which the cases' sampler becomes one or two. Raises UsageError for an empty one."""
    folders = by_tumor(sampler.folders)
    require_sources(recipe.sources, folders)
    samplers: dict[str, Sampler] = {}
    for name in recipe.sources:
        if name == GENERATED:
            samplers[name] = build_generated_sampler(
                recipe, task, run, options.runtime.device, options.anatomy, team.rank
            )
        else:
            samplers[name] = PatchSampler(
                folders[name], sampler.missingness, recipe.seed, recipe.augmentation
            )
    return MixedSampler(samplers, recipe.sources, recipe.seed)


def cache_cases(
    cases: Sequence[Case],
    task: Task,
    spec: PreprocessSpec,
    cache: Path,
    team: Team,
    report: Report,
    available: Callable[[str], Sequence[bool]] | None = None,
) -> list[Path]:
    """Prepare cases for training, each process its share; returns their folders when all are there.

    Raises InputDataError or MissingInputError with the faults of all cases, before the first step, not one a night.
    """
    if team.first:
        make_folder(cache)
    team.wait()
    folders: list[tuple[str, str]] = []
    faults: list[tuple[type[MedMAPError], str, str, str | None]] = []
    for n in range(team.rank, len(cases), team.size):
        case = cases[n]
        report(0.0, f"preparing case {n + 1} of {len(cases)}")
        try:
            visible = available(case.case_id) if available else None
            folder = cache_case(case, task, spec, cache, visible)
            folders.append((case.case_id, str(folder)))
        except (InputDataError, MissingInputError) as error:
            cause = f"{case.case_id}: {error.cause}"
            faults.append((type(error), cause, error.remedy, error.option))
    all_faults = [kind(*texts) for kind, *texts in team.gather(faults)]
    if all_faults:
        raise combined_error(all_faults, len(cases))
    folder_of = dict(team.gather(folders))
    return [Path(folder_of[case.case_id]) for case in cases]


def describe(task: Task, subsets: Sequence[str] = ()) -> str:
    """What a bundle does, in one sentence: for any subset of a task's modalities, or for some of them."""
    if subsets:
        titles = "; ".join(task.titles(subset.split("+")) for subset in subsets)
        source = f"one of these modality subsets, each with its own network: {titles}"
    else:
        source = f"any subset of {task.titles(task.modality_names)}"
    regions = ", ".join(region.name for region in task.regions)
    return f"{task.name} segmentation ({regions}) from {source}."


def check_output_folder(path: Path, overwrite: bool) -> None:
    """Refuse a bundle folder that is there, before hours of work rather than after."""
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists.", "Choose another name, or allow overwriting.", option="overwrite"
        )


def load_recipe(options: TrainOptions, start: Bundle | None = None) -> Recipe:
    """The recipe of a JSON file or of a published row (``medmap recipes``), with the options' changes.

    A training that begins with a bundle's weights has the network, task and preprocessing of the bundle, and without a
    recipe that of fine-tuning: few steps at a low rate.

    Raises:
        MissingInputError: there is no such recipe.
        BundleError: it is not understood.
        UsageError: the bundle is one of several networks; or the recipe needs a teacher, and none is named.
    """
    recipe, row = (FINE_TUNING if start else Recipe()), None
    if options.recipe is not None:
        recipe, row = find_recipe(options.recipe)
    require_teacher(row, options.teacher)
    if start:
        if start.others:
            raise UsageError(
                f"The bundle {start.id} holds several networks.", "Begin with a bundle of one."
            )
        spec = start.network_spec
        if options.recipe is not None:
            _refuse_contradiction(recipe, start)
        recipe = replace(
            recipe,
            task=start.task.name,
            network=spec.name,
            network_options=dict(spec.options),
            preprocess=start.preprocess,
        )
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


def _refuse_contradiction(recipe: Recipe, start: Bundle) -> None:
    """Raises UsageError where a recipe asks for another network or preprocessing than a bundle's.

    What the recipe leaves at its default follows the bundle.
    """
    default = Recipe()
    stated = {
        "task": (recipe.task, default.task, start.task.name),
        "network": (recipe.network, default.network, start.network_spec.name),
        "preprocess": (recipe.preprocess, default.preprocess, start.preprocess),
    }
    for key, value in recipe.network_options.items():
        bundle_value = start.network_spec.options.get(key)
        if isinstance(bundle_value, list):
            bundle_value = tuple(bundle_value)
        if isinstance(value, list):
            value = tuple(value)
        stated[f"network option {key}"] = (value, None, bundle_value)
    differences = []
    for name, (value, default_value, bundle_value) in stated.items():
        if value not in (default_value, bundle_value):
            differences.append(name)
    if differences:
        raise UsageError(
            f"The recipe contradicts the bundle {start.id} that training starts from: "
            f"{', '.join(differences)}.",
            "Remove these fields from the recipe, or train it without the bundle's weights.",
            option="from",
        )


def export_run(
    run: Path, bundle: Path, *, name: str, version: str, data_statement: str, overwrite: bool
) -> int:
    """Export the averaged weights of a run as it stands, finished or not.

    Args:
        run: folder of the run.
        bundle: folder for the bundle.
        name, version, data_statement: of the bundle.
        overwrite: replace an existing bundle.

    Returns:
        The step that was exported.

    Raises:
        MissingInputError: there is no such run.
        BundleError: the run has no usable checkpoint.
        OutputError: the bundle exists.
    """
    recipe_path = run / "recipe.json"
    if not recipe_path.is_file():
        raise MissingInputError(
            f"{run} is no folder of a training.", "Name the folder that was given with --run."
        )
    check_output_folder(bundle, overwrite)
    recipe = Recipe.read(recipe_path)
    task = task_of_run(run)
    state = load_checkpoint(run)
    if state is None:
        raise BundleError(
            f"The run {run.name} has no checkpoint.", "Train until its first checkpoint."
        )
    card = {
        "description": describe(task),
        "data": data_statement,
        "training": f"Step {state['step']} of {recipe.steps}, seed {recipe.seed}.",
    }
    export(run, recipe, task, bundle, name=name, version=version, card=card, overwrite=overwrite)
    return int(state["step"])


def cases_of(cases: Sequence[Case], split: str) -> dict[str, list[Case]]:
    """The cases of a split's parts ``train`` and, if it has one, ``val``; without a split all train.

    Raises InputDataError where some are missing.
    """
    if not split:
        return {"train": list(cases)}
    parts = read_split(find_split(split))
    wanted = {"train": part_of(parts, "train"), "val": parts.get("val", ())}
    known = {case.case_id: case for case in cases}
    for part, title in (("train", "training"), ("val", "validation")):
        missing = [name for name in wanted[part] if name not in known]
        if missing:
            raise InputDataError(
                f"{len(missing)} of the {len(wanted[part])} {title} cases of the split {Path(split).stem} are not in "
                f"the data, such as {missing[0]}.",
                "Give the folder of that release, choose another split, or train on every case without one.",
                option="data, --split none",
            )
    return {part: [known[name] for name in names] for part, names in wanted.items()}
