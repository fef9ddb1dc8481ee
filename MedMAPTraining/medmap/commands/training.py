"""``medmap train``: a folder of cases to a bundle."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medmap.bundle.format import METADATA
from medmap.bundle.loading import Bundle, load_bundle
from medmap.bundle.training_cases import TrainingCases
from medmap.commands.dedicated import expand_subsets, load_teacher, record_teacher
from medmap.commands.training_data import (
    TrainingData,
    cohort_data,
    generated_data,
    require_inputs,
)
from medmap.commands.training_options import TrainOptions
from medmap.commands.training_recipe import load_recipe, task_of_training
from medmap.devices import resolve_device
from medmap.errors import OutputError, UsageError
from medmap.io.atomic import make_folder
from medmap.networks import Backbone
from medmap.progress import Progress, ignore_progress
from medmap.task import Task
from medmap.training.batch import Sampler
from medmap.training.checkpoint import load_checkpoint
from medmap.training.distributed import Team, choose_precision, launch
from medmap.training.export import export
from medmap.training.generated import GeneratedSampler
from medmap.training.log import TrainingLog
from medmap.training.loop import train
from medmap.training.options import RuntimeOptions
from medmap.training.published import find_split, row_name
from medmap.training.recipe import Recipe
from medmap.training.run_cases import cases_of_sampler, record_cases
from medmap.training.run_task import write_task
from medmap.training.setup import check_recipe
from medmap.training.sources import GENERATED, require_known_sources
from medmap.training.splits import read_folds

ALL_FOLDS = "all"


@dataclass(frozen=True)
class Plan:
    """The networks of a training.

    Attributes:
        recipe: of the training.
        task: of the recipe.
        parts: modality subset and recipe of each network; one network for
            any subset has the key "".
        folds: numbers of the folds, each of which trains the parts; None stands for no fold.
        run: folder of the run.
    """

    recipe: Recipe
    task: Task
    parts: list[tuple[str, Recipe]]
    folds: list[int | None]
    run: Path

    @property
    def steps(self) -> int:
        """Steps of all networks."""
        return self.recipe.steps * len(self.parts) * len(self.folds)

    def fold_folder(self, fold: int | None) -> Path:
        """Folder of a fold's runs."""
        return self.run if fold is None else self.run / f"fold_{fold}"

    def folder(self, fold: int | None, subset: str) -> Path:
        """Folder of the run of one network."""
        return self.fold_folder(fold) / subset if subset else self.fold_folder(fold)

    def runs(self) -> list[Path | list[Path]]:
        """Per modality subset, the run of its network, or those of its folds."""
        runs: list[Path | list[Path]] = []
        for subset, _ in self.parts:
            folders = [self.folder(fold, subset) for fold in self.folds]
            # Several folds become the members of an ensemble.
            if len(folders) > 1:
                runs.append(folders)
            else:
                runs.append(folders[0])
        return runs

    def is_finished(self) -> bool:
        """Whether every network has done all of its steps with this recipe."""
        for fold in self.folds:
            for subset, recipe in self.parts:
                folder = self.folder(fold, subset)
                state = load_checkpoint(folder) if folder.is_dir() else None
                if state is None or state["step"] < recipe.steps:
                    return False
                if state["recipe"] != recipe.digest():
                    return False
        return True


@dataclass(frozen=True)
class Origin:
    """What a training begins with.

    Attributes:
        start: bundle whose weights the networks begin with.
        teacher: a trained network, for distillation.
        earlier: what both were trained on.
    """

    start: Bundle | None
    teacher: Backbone | None
    earlier: tuple[TrainingCases, ...]


def train_bundle(
    run: Path, data: Path | None, bundle: Path, options: TrainOptions, report: Progress
) -> tuple[int, int]:
    """Prepare, train (or resume) and, after the last step, export.

    Without ``data`` cases are generated on the fly as the recipe's ``generation`` says. A dedicated
    method has a run of its own per modality subset, in a folder of that name; a cross-validation
    one per fold, in ``fold_0`` and so on.

    Args:
        run: folder of the run.
        data: the cohort; None generates cases.
        bundle: folder for the bundle.
        options: see ``medmap train --help``.
        report: called with the fraction done and a text, on the first process.

    Returns:
        Steps done and steps of the whole training, summed over its networks.
    """
    started = time.monotonic()
    start = load_bundle(options.start) if options.start else None
    plan = make_plan(run, options, start)
    if bundle.exists() and not options.bundle.overwrite and plan.is_finished():
        report(1.0, "nothing to do: the training is finished, and its bundle was exported")
        return plan.steps, plan.steps
    check_output_folder(bundle, options.bundle.overwrite)
    origin = _origin(plan, options, start)

    # Everything that the recipe names is built once before cases are prepared: a mistake shows now,
    # not after hours.
    require_known_sources(plan.recipe.sources)
    deepest_grid = min(check_recipe(part, plan.task, origin.teacher) for _, part in plan.parts)
    runtime = options.runtime
    precision = choose_precision(runtime.precision, resolve_device(runtime.device), deepest_grid)
    fabric = launch(runtime.device, precision, runtime.devices)
    runtime = replace(runtime, precision=precision, device=str(fabric.device))
    if data is None:
        runtime = replace(runtime, workers=0)  # generated cases are prepared ahead by the sampler
    options = replace(options, runtime=runtime)
    team = Team(fabric)
    team.share(plan.recipe.batch // plan.recipe.accumulate)
    if not team.first:
        report = ignore_progress
    _make_folder(plan.run, team)

    steps_done = 0
    card = {}
    for number, fold in enumerate(plan.folds):
        fold_report = _part_report(
            report, number, len(plan.folds), "" if fold is None else f"fold {fold}"
        )
        training_data = _data_of(plan, fold, data, options, team, fold_report)
        # Only now: a run keeps its task, and cases that do not fit it may have named the wrong one.
        _keep_task(plan, team)
        if origin.teacher and team.first:
            record_teacher(plan.fold_folder(fold), origin.teacher)
        # Preparing the data counts: a scheduler's limit is for the whole program.
        fold_runtime = _with_minutes_left(runtime, started)
        if number and _is_over(fold_runtime, team):
            break
        steps_done += _train_parts(
            plan, fold, training_data, origin, team, fold_runtime, fold_report
        )
        card = _card(plan, training_data, options, start, team)
    if steps_done == plan.steps and team.first:
        export(
            plan.runs(),
            plan.recipe,
            plan.task,
            bundle,
            name=options.bundle.name,
            version=options.bundle.version,
            card=card,
            overwrite=options.bundle.overwrite,
            row=row_name(options.recipe) if options.recipe is not None else "",
        )
    team.wait()
    return steps_done, plan.steps


def make_plan(run: Path, options: TrainOptions, start: Bundle | None) -> Plan:
    """The networks that the options ask for.

    Raises:
        UsageError: the recipe, its modality subsets or its folds do not fit together.
    """
    recipe = load_recipe(options, start)
    task = task_of_training(recipe, options, start, run)
    parts = expand_subsets(recipe, task, options.subsets)
    folds = _folds(recipe, options.fold)
    return Plan(recipe, task, parts, folds, run)


def _folds(recipe: Recipe, choice: str | None) -> list[int | None]:
    """Numbers of the folds to train; [None] for a training without folds."""
    if not recipe.split:
        if choice is not None:
            raise UsageError("A fold needs a split with folds.", "Name its file.", option="split")
        return [None]
    folds = read_folds(find_split(recipe.split))
    if choice is None:
        if folds is None:
            return [None]
        raise UsageError(
            f"The split {Path(recipe.split).name} has {len(folds)} folds.",
            "Choose one, or all of them.",
            option="fold",
        )
    if folds is None:
        raise UsageError(
            f"The split {Path(recipe.split).name} has no folds.",
            "Train without one, or make folds of the cases first.",
            option="fold",
        )
    if choice == ALL_FOLDS:
        return list(range(len(folds)))
    if not choice.isdecimal() or int(choice) >= len(folds):
        raise UsageError(
            f"The split {Path(recipe.split).name} has no fold '{choice}'.",
            f"Choose one from 0 to {len(folds) - 1}, or {ALL_FOLDS}.",
            option="fold",
        )
    return [int(choice)]


def check_output_folder(path: Path, overwrite: bool) -> None:
    """Refuse a bundle folder that exists, before hours of work rather than after."""
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists.", "Choose another name, or allow overwriting.", option="overwrite"
        )


def _origin(plan: Plan, options: TrainOptions, start: Bundle | None) -> Origin:
    """Start and teacher, and the cases that they were trained on."""
    earlier = []
    if start is not None:
        # A bundle that does not say what it saw claims every modality; its cases are not known.
        earlier.append(start.training_cases or TrainingCases(0, {}, start.modalities))
    teacher = None
    if options.teacher:
        teacher = load_teacher(options.teacher, plan.recipe, plan.task)
        earlier += _cases_of_teacher(options.teacher)
    return Origin(start, teacher, tuple(earlier))


def _cases_of_teacher(path: Path) -> list[TrainingCases]:
    """A student has learned from its teacher's cases, but takes only modalities of its own."""
    if not (path / METADATA).is_file():
        return []
    cases = load_bundle(path).training_cases
    if cases is None:
        return []
    return [replace(cases, modalities=())]


def _data_of(
    plan: Plan,
    fold: int | None,
    data: Path | None,
    options: TrainOptions,
    team: Team,
    report: Progress,
) -> TrainingData:
    folder = plan.fold_folder(fold)
    if data is None:
        return generated_data(plan.recipe, plan.task, folder, options, team)
    recipe = plan.recipe
    if options.anatomy is not None and GENERATED not in recipe.sources:
        raise UsageError(
            "Anatomy is for synthetic cases, and this training has none.",
            "Leave it out, or add generated cases to the recipe's sources.",
            option="anatomy",
        )
    if GENERATED not in recipe.sources:
        recipe = replace(recipe, generation=None)
    training_data = cohort_data(recipe, plan.task, data, folder, options, team, report, fold)
    require_inputs(plan.parts, plan.task, training_data.sampler)
    return training_data


def _train_parts(
    plan: Plan,
    fold: int | None,
    data: TrainingData,
    origin: Origin,
    team: Team,
    runtime: RuntimeOptions,
    report: Progress,
) -> int:
    """Train the networks one after another within the time allowed; returns the steps done."""
    started = time.monotonic()
    steps_done = 0
    cases = cases_of_sampler(data.sampler, plan.task, data.held_out_folders, origin.earlier)
    for number, (subset, recipe) in enumerate(plan.parts):
        part_runtime = _with_minutes_left(runtime, started)
        if number and _is_over(part_runtime, team):
            break
        folder = plan.folder(fold, subset)
        if team.first:
            record_cases(make_folder(folder), cases)
        team.wait()
        part_report = _part_report(report, number, len(plan.parts), subset)
        with _log(folder, recipe, data.sampler, part_report) as log:
            steps_done += train(
                recipe,
                plan.task,
                data.sampler,
                folder,
                teacher=origin.teacher,
                start=origin.start.network if origin.start else None,
                held_out=data.held_out,
                validation=data.validation,
                options=part_runtime,
                fabric=team.fabric,
                report=log,
            )
    return steps_done


def _with_minutes_left(runtime: RuntimeOptions, started: float) -> RuntimeOptions:
    if runtime.minutes is None:
        return runtime
    minutes_used = (time.monotonic() - started) / 60
    return replace(runtime, minutes=runtime.minutes - minutes_used)


def _is_over(runtime: RuntimeOptions, team: Team) -> bool:
    """Whether no time is left.

    Processes have clocks of their own: the first process decides for all.
    """
    return team.from_first(runtime.minutes is not None and runtime.minutes <= 0)


def _make_folder(run: Path, team: Team) -> None:
    if team.first:
        make_folder(run)
    team.wait()


def _keep_task(plan: Plan, team: Team) -> None:
    if team.first:
        write_task(plan.run, plan.task)
    team.wait()


def _part_report(report: Progress, number: int, count: int, title: str) -> Progress:
    """Progress of one of several trainings as progress of all of them."""

    def report_part(fraction: float, text: str) -> None:
        if title:
            text = f"{title} ({number + 1} of {count}): {text}"
        report((number + fraction) / count, text)

    return report_part


def _log(run: Path, recipe: Recipe, sampler: Sampler, report: Progress) -> TrainingLog:
    """The log of one network; with the seconds waited for cases, where they are generated."""
    extra_figures = None
    if hasattr(sampler, "seconds"):

        def extra_figures() -> dict:
            return {"waited": sampler.seconds}

    return TrainingLog(run, recipe.steps, report, extra_figures)


def _card(
    plan: Plan, data: TrainingData, options: TrainOptions, start: Bundle | None, team: Team
) -> dict[str, str]:
    """The model card's texts about a training."""
    recipe = plan.recipe
    each_text = ""
    if len(plan.parts) * len(plan.folds) > 1:
        each_text = " a network"
    start_text = ""
    if start is not None:
        start_text = f" from the weights of {start.id} (SHA-256 {start.sha256[:12]})"
    sampler = data.sampler
    case_text = f"{len(sampler.case_ids)} cases"
    if isinstance(sampler, GeneratedSampler):
        first_seed, last_seed = sampler.plan.seeds(recipe.steps)
        case_text = f"cases generated while training (seeds {first_seed} to {last_seed})"
    elif plan.folds != [None]:
        case_text = f"folds {', '.join(map(str, plan.folds))} of {Path(recipe.split).name}"
    card = {
        "data": options.bundle.data_statement,
        "training": f"{recipe.steps} steps{each_text}{start_text}, {case_text}, "
        f"{options.runtime.precision}, {_hardware(options.runtime, team)}, seed {recipe.seed}. "
        f"{data.labels}".rstrip(),
    }
    return card | card_of_owner(options.bundle.author, options.bundle.license)


def card_of_owner(author: str, license_name: str) -> dict[str, str]:
    """The card's entries about who made a bundle, where they are stated."""
    entries = {"author": author, "license": license_name}
    return {key: text for key, text in entries.items() if text}


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
