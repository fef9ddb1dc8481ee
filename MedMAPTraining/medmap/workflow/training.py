"""``medmap train``: a folder of cases to a bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medmap.bundle import Bundle, load_bundle
from medmap.dataset import Batch, Case, PatchSampler, Sampler, cache_case, find_cases
from medmap.errors import InputDataError, MedMAPError, MissingInputError, OutputError, UsageError, all_of
from medmap.export import export
from medmap.files import make_folder
from medmap.generated import GeneratedSampler
from medmap.inference import resolve_device
from medmap.missingness import build_missingness, full, write_masks
from medmap.published import find_recipe, find_split, require_teacher
from medmap.recipe import Recipe
from medmap.splits import part_of, read_split
from medmap.task import Task, find_task
from medmap.train import train
from medmap.workflow.dedicated import keep_teacher, load_teacher, parts_of
from medmap.workflow.heads import generated_patches

Report = Callable[[float, str], None]


FINE_TUNING = Recipe(
    about="Fine-tuning on a few cases of one's own, from a bundle's weights.", steps=500, learning_rate=2e-4, ema=0.99
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
    name: str = "medmap-custom"
    version: str = "1.0.0"
    data_statement: str = "not stated"
    overwrite: bool = False


def train_bundle(run: Path, data: Path | None, bundle: Path, options: TrainOptions, report: Report) -> tuple[int, int]:
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
    done, started = 0, time.monotonic()
    if data is None and recipe.split:
        raise UsageError("The recipe is for a data set's cases.", "Name their folder with --data, or say --split none.")
    if data is None:
        sampler, held_out = generated_patches(recipe, task, make_folder(run), options.device, options.anatomy), None
    else:
        recipe = replace(recipe, generation=None)
        cases = training_cases(find_cases(data, task), recipe.split)
        sampler, held_out = cached_patches(recipe, task, cases, make_folder(run), report)
    if teacher:
        keep_teacher(run, teacher)
    for n, (subset, part) in enumerate(parts):
        minutes = None if options.minutes is None else options.minutes - (time.monotonic() - started) / 60
        if n and minutes is not None and minutes <= 0:
            break

        def tell(fraction: float, text: str, n: int = n, subset: str = subset) -> None:
            report((n + fraction) / len(parts), f"{subset} ({n + 1} of {len(parts)}): {text}" if subset else text)

        place = make_folder(run / subset) if subset else run
        others = {"held_out": held_out, "teacher": teacher, "start": begin.network if begin else None}
        done += _train_one(place, part, task, sampler, others, replace(options, minutes=minutes), tell)
    wanted = recipe.steps * len(parts)
    if done == wanted:
        places = [run / subset for subset, _ in parts] if parts[0][0] else run
        card = _card(recipe, task, parts, sampler, options)
        names = {"name": options.name, "version": options.version}
        export(places, recipe, task, bundle, **names, card=card, overwrite=options.overwrite)
    return done, wanted


def _train_one(
    run: Path, recipe: Recipe, task: Task, sampler: Sampler, others: dict, options: TrainOptions, report: Report
) -> int:
    """Train one network, with a log; returns the steps done."""
    log = (run / "log.jsonl").open("a", buffering=1, encoding="utf-8")

    def tell(step: int, figures: dict) -> None:
        if isinstance(sampler, GeneratedSampler):
            figures = figures | {"waited": sampler.seconds}
        log.write(json.dumps({"step": step, **{k: round(v, 5) for k, v in figures.items()}}) + "\n")
        report(step / recipe.steps, f"step {step} of {recipe.steps}, loss {figures['loss']:.3f}")

    with log:
        return train(
            recipe,
            task,
            sampler,
            run,
            **others,
            device=options.device,
            precision=options.precision,
            minutes=options.minutes,
            report=tell,
        )


def _card(
    recipe: Recipe, task: Task, parts: Sequence[tuple[str, Recipe]], sampler: Sampler, options: TrainOptions
) -> dict:
    place = "CUDA GPU" if resolve_device(options.device).type == "cuda" else f"{torch.get_num_threads()} CPU threads"
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
    recipe: Recipe, task: Task, cases: Sequence[Case], run: Path, report: Report
) -> tuple[PatchSampler, Callable[[int], Batch] | None]:
    """Prepare the cases under ``run/cache``; returns where patches come from, and held-out batches by number, if any.

    ``run/scans.csv`` says which scans training may see of each case; no other is opened.
    """
    names = [case.case_id for case in cases]
    missingness = build_missingness(recipe.missingness, task, recipe.missingness_options, names)
    write_masks(run / "scans.csv", task, {name: missingness.ever(name) for name in names})
    cache, aside = make_folder(run / "cache"), recipe.hold_out(names)
    folders: dict[bool, list[Path]] = {False: [], True: []}
    faults: list[MedMAPError] = []
    for n, case in enumerate(cases):
        report(0.0, f"preparing case {n + 1} of {len(cases)}")
        try:
            folder = cache_case(case, task, recipe.preprocess, cache, missingness.ever(case.case_id))
            folders[case.case_id in aside].append(folder)
        except (InputDataError, MissingInputError) as error:
            faults.append(type(error)(f"{case.case_id}: {error.cause}", error.remedy))
    if faults:  # all at once, before the first step, instead of one a night
        raise all_of(faults, len(cases))
    sampler = PatchSampler(folders[False], missingness, recipe.seed, recipe.augmentation)
    if not aside:
        return sampler, None
    # They show all that may be seen of them; the seed's complement keeps the two draws apart.
    others = PatchSampler(folders[True], full(task), 2**32 - 1 - recipe.seed, recipe.augmentation)
    return sampler, lambda n: others.batch(n, recipe.batch, recipe.patch)


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
            raise UsageError(f"The bundle {begin.id} holds several networks.", "Begin with a bundle of one.")
        spec = begin.network_spec
        recipe = replace(
            recipe,
            task=begin.task.name,
            network=spec.name,
            network_options=dict(spec.options),
            preprocess=begin.preprocess,
        )
    changes = {key: value for key in ("steps", "seed", "split") if (value := getattr(options, key)) is not None}
    if changes.get("split") == "none":
        changes["split"] = ""
    return replace(recipe, **changes)


def training_cases(cases: Sequence[Case], split: str) -> list[Case]:
    """The cases of a split's part ``train``; all without a split. Raises InputDataError where some are missing."""
    if not split:
        return list(cases)
    wanted = part_of(read_split(find_split(split)), "train")
    known = {case.case_id: case for case in cases}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise InputDataError(
            f"{len(missing)} of the {len(wanted)} training cases of the split {Path(split).stem} are not in the data, "
            f"such as {missing[0]}.",
            "Give the folder of that release with --data, another --split, or --split none to train on every case.",
        )
    return [known[name] for name in wanted]
