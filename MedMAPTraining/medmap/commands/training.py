"""``medmap train``: a folder of cases to a bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from medmap.bundle.loading import Bundle, load_bundle
from medmap.commands.dedicated import keep_teacher, load_teacher, parts_of
from medmap.commands.heads import generated_patches
from medmap.devices import resolve_device
from medmap.errors import (
    InputDataError,
    MedMAPError,
    MissingInputError,
    OutputError,
    UsageError,
    combined_error,
)
from medmap.io.atomic import make_folder
from medmap.io.cohorts import Case, find_cases
from medmap.preprocess import PreprocessSpec
from medmap.task import Task, find_task
from medmap.training.batch import Batch, Sampler
from medmap.training.cache import cache_case
from medmap.training.dataset import PatchSampler
from medmap.training.distributed import Team, launch
from medmap.training.export import export
from medmap.training.generated import GeneratedSampler
from medmap.training.log import TrainingLog
from medmap.training.loop import train
from medmap.training.missingness import build_missingness, full, write_masks
from medmap.training.options import RuntimeOptions
from medmap.training.published import find_recipe, find_split, require_teacher
from medmap.training.recipe import Recipe
from medmap.training.sources import GENERATED, MixedSampler, by_tumor, require_sources
from medmap.training.splits import part_of, read_split
from medmap.training.validation import Validation

Report = Callable[[float, str], None]


FINE_TUNING = Recipe(
    about="Fine-tuning on a few cases of one's own, from a bundle's weights.",
    steps=500,
    learning_rate=2e-4,
    ema=0.99,
)


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``medmap train`` besides the folders; see its help."""

    recipe: str | Path | None = None
    split: str | None = None
    teacher: Path | None = None
    subsets: tuple[str, ...] = ()
    start: Path | None = None
    anatomy: Path | None = None
    steps: int | None = None
    seed: int | None = None
    minutes: float | None = None
    precision: str = "bf16"
    device: str = "auto"
    devices: int = 1
    workers: int = 0
    save_every: int = 250
    validate_every: int = 0
    compiled: bool = False
    channels_last: bool = False
    name: str = "medmap-custom"
    version: str = "1.0.0"
    data_statement: str = "not stated"
    overwrite: bool = False

    def engine(self) -> RuntimeOptions:
        """How the training is run, as ``medmap.training.loop`` wants it."""
        return RuntimeOptions(**{f.name: getattr(self, f.name) for f in fields(RuntimeOptions)})


def train_bundle(
    run: Path, data: Path | None, bundle: Path, options: TrainOptions, report: Report
) -> tuple[int, int]:
    """Prepare, train (or go on) and, when the steps are done, export; returns steps done and steps wanted.

    Without ``data`` the training's heads are generated as the recipe's ``generation`` says. A dedicated method has a
    run of its own for each set of scans, in a folder of that name, and steps are those of all.
    """
    begin = load_bundle(options.start) if options.start else None
    recipe = load_recipe(options, begin)
    task = find_task(recipe.task)
    parts = parts_of(recipe, task, options.subsets)
    check_output_folder(bundle, options.overwrite)
    teacher = load_teacher(options.teacher, recipe, task) if options.teacher else None
    fabric = launch(options.device, options.precision, options.devices)
    options = replace(options, device=str(fabric.device))
    team, done, started = Team(fabric), 0, time.monotonic()
    report = report if team.first else lambda fraction, text: None
    if data:
        if GENERATED not in recipe.sources:
            recipe = replace(recipe, generation=None)
        data_of = _given(recipe, task, data, run, options, team, report)
    else:
        options = replace(options, workers=0)  # heads are made ahead in another way
        data_of = _generated(recipe, task, run, options, team)
    if teacher and team.first:
        keep_teacher(run, teacher)
    shared = {
        **data_of,
        "teacher": teacher,
        "start": begin.network if begin else None,
        "fabric": fabric,
    }
    for n, (subset, part) in enumerate(parts):
        engine = options.engine()
        if engine.minutes is not None:
            engine = replace(engine, minutes=engine.minutes - (time.monotonic() - started) / 60)
            if n and team.from_first(engine.minutes <= 0):
                break

        def tell(fraction: float, text: str, n: int = n, subset: str = subset) -> None:
            report(
                (n + fraction) / len(parts),
                f"{subset} ({n + 1} of {len(parts)}): {text}" if subset else text,
            )

        done += _train_one(run / subset if subset else run, part, task, shared, engine, tell)
    wanted = recipe.steps * len(parts)
    if done == wanted and team.first:
        places = [run / subset for subset, _ in parts] if parts[0][0] else run
        card = _card(recipe, task, parts, data_of["sampler"], options, team)
        names = {"name": options.name, "version": options.version}
        export(places, recipe, task, bundle, **names, card=card, overwrite=options.overwrite)
    team.wait()
    return done, wanted


def _train_one(
    run: Path, recipe: Recipe, task: Task, shared: dict, engine: RuntimeOptions, report: Report
) -> int:
    """Train one network, with a log; returns the steps done."""
    sampler = shared["sampler"]
    waits = hasattr(sampler, "seconds")
    with TrainingLog(
        run, recipe.steps, report, lambda: {"waited": sampler.seconds} if waits else {}
    ) as log:
        return train(recipe, task, run=run, **shared, options=engine, report=log)


def _generated(recipe: Recipe, task: Task, run: Path, options: TrainOptions, team: Team) -> dict:
    """Where batches come from without data: heads that are generated."""
    if recipe.split:
        raise UsageError(
            "The recipe is for a data set's cases.",
            "Name their folder with --data, or say --split none.",
        )
    require_sources(recipe.sources, None)
    _make_run(run, team)
    return {
        "sampler": generated_patches(recipe, task, run, options.device, options.anatomy, team.rank)
    }


def _given(
    recipe: Recipe,
    task: Task,
    data: Path,
    run: Path,
    options: TrainOptions,
    team: Team,
    report: Report,
) -> dict:
    """Where batches come from with data: patches of the cases, held-out batches, and validation if the split has it."""
    cases = cases_of(find_cases(data, task), recipe.split)
    _make_run(run, team)
    sampler, held_out = cached_patches(recipe, task, cases["train"], run, report, team)
    if recipe.sources:
        sampler = mixed(recipe, task, sampler, run, options, team)
    found = {"sampler": sampler, "held_out": held_out}
    if cases.get("val"):
        folders = cache_cases(cases["val"], task, recipe.preprocess, run / "cache", team, report)
        found["validation"] = Validation(folders, task, recipe.preprocess)
    return found


def _make_run(run: Path, team: Team) -> None:
    if team.first:
        make_folder(run)
    team.wait()


def _card(
    recipe: Recipe,
    task: Task,
    parts: Sequence[tuple[str, Recipe]],
    sampler: Sampler,
    options: TrainOptions,
    team: Team,
) -> dict:
    cuda = resolve_device(options.device).type == "cuda"
    place = "CUDA GPU" if cuda else f"{torch.get_num_threads()} CPU threads"
    place = (
        place
        if team.size == 1
        else f"{team.size} processes of one {place}"
        if cuda
        else f"{team.size} x {place}"
    )
    each = " a network" if parts[0][0] else ""
    begun = f" from the weights of {options.start.name}" if options.start else ""
    cases = f"{len(sampler.case_ids)} cases"
    if isinstance(sampler, GeneratedSampler):
        first, last = sampler.plan.seeds(recipe.steps)
        cases = f"heads generated while training (seeds {first} to {last})"
    return {
        "description": describe(task, [subset for subset, _ in parts if subset]),
        "data": options.data_statement,
        "training": f"{recipe.steps} steps{each}{begun}, {cases}, {options.precision}, {place}, seed {recipe.seed}.",
    }


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
    aside = recipe.hold_out(names)
    made = cache_cases(
        cases, task, recipe.preprocess, run / "cache", team, report, missingness.available
    )
    folders = {
        kept: [f for f, name in zip(made, names, strict=True) if (name in aside) == kept]
        for kept in (0, 1)
    }
    sampler = PatchSampler(folders[0], missingness, recipe.seed, recipe.augmentation)
    if not aside:
        return sampler, None
    # They show all that may be seen of them; the seed's complement keeps the two draws apart.
    others = PatchSampler(folders[1], full(task), 2**32 - 1 - recipe.seed, recipe.augmentation)
    return sampler, lambda n: others.batch(n, recipe.batch, recipe.patch)


def mixed(
    recipe: Recipe, task: Task, sampler: PatchSampler, run: Path, options: TrainOptions, team: Team
) -> MixedSampler:
    """The sources of a recipe, of which the cases' sampler becomes one or two. Raises UsageError for an empty one."""
    folders = by_tumor(sampler.folders)
    require_sources(recipe.sources, folders)
    samplers: dict[str, Sampler] = {}
    for name in recipe.sources:
        if name == GENERATED:
            samplers[name] = generated_patches(
                recipe, task, run, options.device, options.anatomy, team.rank
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
    faults: list[tuple[type[MedMAPError], str, str]] = []
    for n in range(team.rank, len(cases), team.size):
        case = cases[n]
        report(0.0, f"preparing case {n + 1} of {len(cases)}")
        try:
            visible = available(case.case_id) if available else None
            folder = cache_case(case, task, spec, cache, visible)
            folders.append((case.case_id, str(folder)))
        except (InputDataError, MissingInputError) as error:
            faults.append((type(error), f"{case.case_id}: {error.cause}", error.remedy))
    all_faults = [kind(cause, remedy) for kind, cause, remedy in team.gather(faults)]
    if all_faults:
        raise combined_error(all_faults, len(cases))
    folder_of = dict(team.gather(folders))
    return [Path(folder_of[case.case_id]) for case in cases]


def describe(task: Task, subsets: Sequence[str] = ()) -> str:
    """What a bundle does, in one sentence: for any subset of a task's modalities, or for some of them."""
    sets = "; ".join(task.titles(subset.split("+")) for subset in subsets)
    scans = f"one of these sets of scans, each with its own network: {sets}" if sets else ""
    regions = ", ".join(region.name for region in task.regions)
    return f"{task.name} segmentation ({regions}) from {scans or f'any subset of {task.titles(task.modality_names)}'}."


def check_output_folder(path: Path, overwrite: bool) -> None:
    """Refuse a bundle folder that is there, before hours of work rather than after."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists.", "Choose another name or add --overwrite.")


def load_recipe(options: TrainOptions, begin: Bundle | None = None) -> Recipe:
    """The recipe of a JSON file or of a published row (``medmap recipes``), with the options' changes.

    A training that begins with a bundle's weights has the network, task and preprocessing of the bundle, and without a
    recipe that of fine-tuning: few steps at a low rate.

    Raises:
        MissingInputError: there is no such recipe.
        BundleError: it is not understood.
        UsageError: the bundle is one of several networks; or the recipe needs a teacher, and none is named.
    """
    recipe, row = (FINE_TUNING if begin else Recipe()), None
    if options.recipe is not None:
        recipe, row = find_recipe(options.recipe)
    require_teacher(row, options.teacher)
    if begin:
        if begin.others:
            raise UsageError(
                f"The bundle {begin.id} holds several networks.", "Begin with a bundle of one."
            )
        spec = begin.network_spec
        recipe = replace(
            recipe,
            task=begin.task.name,
            network=spec.name,
            network_options=dict(spec.options),
            preprocess=begin.preprocess,
        )
    changes = {
        key: value
        for key in ("steps", "seed", "split")
        if (value := getattr(options, key)) is not None
    }
    if changes.get("split") == "none":
        changes["split"] = ""
    return replace(recipe, **changes)


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
                "Give the folder of that release with --data, another --split, or --split none to train on every case.",
            )
    return {part: [known[name] for name in names] for part, names in wanted.items()}
