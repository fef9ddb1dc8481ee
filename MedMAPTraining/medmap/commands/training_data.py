"""Where the batches of a training come from: prepared cases, generated ones, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.commands.generated import build_generated_sampler
from medmap.commands.preparation import prepare_cases
from medmap.commands.training_options import CacheOptions, TrainOptions
from medmap.errors import InputDataError, UsageError
from medmap.io.atomic import make_folder
from medmap.io.cases import Case
from medmap.io.cohorts import find_cohort
from medmap.io.labels import with_conventions
from medmap.progress import Progress
from medmap.task import Task
from medmap.training.batch import Batch, Sampler
from medmap.training.cache_folder import CacheFolder
from medmap.training.dataset import PatchSampler
from medmap.training.distributed import Team
from medmap.training.missingness import Missingness, build_missingness, full, write_masks
from medmap.training.pseudo_healthy import PseudoHealthySampler
from medmap.training.published import find_split
from medmap.training.recipe import Recipe
from medmap.training.sources import (
    CASES,
    GENERATED,
    PSEUDO_HEALTHY,
    TRANSPLANTED,
    TUMOR_FREE,
    MixedSampler,
    by_tumor,
    require_sources,
)
from medmap.training.splits import part_of, read_split
from medmap.training.transplanted import TransplantedSampler
from medmap.training.validation import Validation

SCANS = "scans.csv"


@dataclass(frozen=True)
class TrainingData:
    """Where the batches of a training come from.

    Attributes:
        sampler: batches to train on.
        held_out: batches of cases kept out of training, by number, for objectives that learn on two
            levels; None if the recipe holds out no case.
        held_out_folders: folders of these cases.
        validation: scores networks on the ``val`` part of the split; None if there is none.
        labels: how the values of the label files were read, and why; empty for generated cases.
    """

    sampler: Sampler
    held_out: Callable[[int], Batch] | None = None
    held_out_folders: tuple[Path, ...] = ()
    validation: Validation | None = None
    labels: str = ""


@dataclass(frozen=True)
class Patches:
    """Prepared cases as batches.

    Attributes:
        sampler: of the training cases.
        held_out: of the cases that are held out; None if there is none.
        recipe: gives batch and patch of the held-out batches.
    """

    sampler: PatchSampler
    held_out: PatchSampler | None
    recipe: Recipe

    def held_out_batch(self, number: int) -> Batch:
        """A batch of the held-out cases."""
        if self.held_out is None:
            raise ValueError("no case is held out")
        return self.held_out.batch(number, self.recipe.batch, self.recipe.patch)


def cache_of(options: CacheOptions) -> CacheFolder:
    """The cache that the options name."""
    return CacheFolder.at(options.folder, options.budget_gb)


def generated_data(
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
    _make_run(run, team)
    device = options.runtime.device
    return TrainingData(
        build_generated_sampler(recipe, task, run, device, options.anatomy, team.rank)
    )


def cohort_data(
    recipe: Recipe,
    task: Task,
    data: Path,
    run: Path,
    options: TrainOptions,
    team: Team,
    report: Progress,
    fold: int | None = None,
) -> TrainingData:
    """Batches of a cohort's cases, mixed with the recipe's other sources.

    Args:
        recipe: to be trained.
        task: of the recipe.
        data: the cohort.
        run: folder of the run, created if need be.
        options: of the command.
        team: processes of the training.
        report: called while cases are prepared.
        fold: number of the split's fold; None for a split without folds.
    """
    cohort = find_cohort(
        data, task, affine=options.affine, assume_orientation=options.assume_orientation
    )
    all_cases, reading = with_conventions(cohort.cases, task, options.labels)
    cases = split_cases(all_cases, recipe.split, fold)
    for text in (reading.statement, cohort.warning):
        if text:
            report(0.0, text)
    _make_run(run, team)
    patches = _patches(recipe, task, cases["train"], run, options, team, report)
    sampler: Sampler = patches.sampler
    if recipe.sources:
        sampler = _mixed(recipe, task, patches.sampler, run, options, team)
    validation = None
    if cases.get("val"):
        folders = prepare_cases(
            cases["val"],
            task,
            recipe.preprocess,
            cache_of(options.cache),
            report,
            processes=options.cache.processes,
            team=team,
        )
        validation = Validation(folders, task, recipe)
    if patches.held_out is None:
        return TrainingData(sampler, validation=validation, labels=reading.statement)
    held_out_folders = tuple(patches.held_out.folders)
    return TrainingData(
        sampler, patches.held_out_batch, held_out_folders, validation, reading.statement
    )


def split_cases(
    cases: Sequence[Case], split: str, fold: int | None = None
) -> dict[str, list[Case]]:
    """The cases of a split's parts ``train`` and ``val``; without a split all cases train.

    Raises:
        InputDataError: cases of the split are not in the data.
        UsageError: the fold does not fit the split.
    """
    if not split:
        if fold is not None:
            raise UsageError("A fold needs a split with folds.", "Name its file.", option="split")
        return {"train": list(cases)}
    parts = read_split(find_split(split), fold)
    names_of = {"train": part_of(parts, "train"), "val": parts.get("val", ())}
    by_name = {case.case_id: case for case in cases}
    for part, title in (("train", "training"), ("val", "validation")):
        missing = [name for name in names_of[part] if name not in by_name]
        if missing:
            raise InputDataError(
                f"{len(missing)} of the {len(names_of[part])} {title} cases of the split "
                f"{Path(split).stem} are not in the data, such as {missing[0]}.",
                "Give the folder of that release, choose another split, or train on every case "
                "without one.",
                option="data, --split none",
            )
    cases_of = {}
    for part, names in names_of.items():
        cases_of[part] = [by_name[name] for name in names]
    return cases_of


def _make_run(run: Path, team: Team) -> None:
    if team.first:
        make_folder(run)
    team.wait()


def _patches(
    recipe: Recipe,
    task: Task,
    cases: Sequence[Case],
    run: Path,
    options: TrainOptions,
    team: Team,
    report: Progress,
) -> Patches:
    """Prepare the training cases.

    ``scans.csv`` in the run says which scans on disk training sees of each
    case; no other is opened.
    """
    names = [case.case_id for case in cases]
    missingness = build_missingness(recipe.missingness, task, recipe.missingness_options, names)
    held_out_names = recipe.hold_out(names)
    if team.first:
        masks = {}
        for case in cases:
            on_disk = [name in case.scans for name in task.modality_names]
            masks[case.case_id] = missingness.available(case.case_id) & on_disk
        write_masks(run / SCANS, task, masks)
    folders = prepare_cases(
        cases,
        task,
        recipe.preprocess,
        cache_of(options.cache),
        report,
        available=missingness.available,
        processes=options.cache.processes,
        team=team,
    )
    training_folders = []
    held_out_folders = []
    for folder, name in zip(folders, names, strict=True):
        if name in held_out_names:
            held_out_folders.append(folder)
        else:
            training_folders.append(folder)
    sampler = PatchSampler(training_folders, missingness, recipe.seed, recipe.augmentation)
    held_out = None
    if held_out_folders:
        # Held-out cases show every modality that may be seen of them. The complement of the seed
        # keeps their random stream apart from the training's.
        seed = 2**32 - 1 - recipe.seed
        held_out = PatchSampler(held_out_folders, full(task), seed, recipe.augmentation)
    return Patches(sampler, held_out, recipe)


def _mixed(
    recipe: Recipe, task: Task, sampler: PatchSampler, run: Path, options: TrainOptions, team: Team
) -> MixedSampler:
    """The sources of a recipe, of which the cases' sampler becomes one or two."""
    folders = by_tumor(sampler.folders)
    require_sources(recipe.sources, folders)
    samplers: dict[str, Sampler] = {}
    for name in recipe.sources:
        if name == GENERATED:
            device = options.runtime.device
            samplers[name] = build_generated_sampler(
                recipe, task, run, device, options.anatomy, team.rank
            )
        else:
            samplers[name] = _sampler_of_cases(name, folders, sampler.missingness, recipe)
    return MixedSampler(samplers, recipe.sources, recipe.seed)


def _sampler_of_cases(
    source: str, folders: Mapping[str, list[Path]], missingness: Missingness, recipe: Recipe
) -> PatchSampler:
    """The sampler of a source of prepared cases (``by_tumor``)."""
    tumors = folders[CASES]
    all_folders = tumors + folders[TUMOR_FREE]
    seed = recipe.seed
    augmentation = recipe.augmentation
    if source == TRANSPLANTED:
        return TransplantedSampler(all_folders, tumors, missingness, seed, augmentation)
    if source == PSEUDO_HEALTHY:
        return PseudoHealthySampler(all_folders, missingness, seed, augmentation)
    return PatchSampler(folders[source], missingness, seed, augmentation)


def require_inputs(parts: Sequence[tuple[str, Recipe]], task: Task, sampler: Sampler) -> None:
    """Refuse a network for a modality subset of which training has not one case.

    Raises:
        InputDataError: naming the modalities that no case has.
    """
    available: set[str] = set()
    for case_id in sampler.case_ids:
        pairs = zip(task.modality_names, sampler.available(case_id), strict=True)
        available.update(name for name, is_available in pairs if is_available)
    for subset, _ in parts:
        missing = [name for name in subset.split("+") if subset and name not in available]
        if missing:
            raise InputDataError(
                f"No training case has {task.titles(missing)}, which the network for "
                f"{task.titles(subset.split('+'))} needs.",
                "Add such cases, or train for other modality subsets.",
                option="subset",
            )
