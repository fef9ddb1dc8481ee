"""``medmap train``: a folder of cases to a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from medmap.bundle import load_bundle
from medmap.dataset import Batch, Case, PatchSampler, cache_case, find_cases
from medmap.errors import OutputError
from medmap.files import make_folder
from medmap.inference import resolve_device
from medmap.missingness import build_missingness, full, write_masks
from medmap.recipe import Recipe
from medmap.task import Task, find_task
from medmap.train import export, train

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class TrainOptions:
    """Options of ``medmap train`` besides the folders; see its help."""

    recipe: Path | None = None
    teacher: Path | None = None
    steps: int | None = None
    seed: int | None = None
    minutes: float | None = None
    precision: str = "bf16"
    device: str = "auto"
    name: str = "medmap-custom"
    version: str = "1.0.0"
    data_statement: str = "not stated"
    overwrite: bool = False


def train_bundle(run: Path, data: Path, bundle: Path, options: TrainOptions, report: Report) -> tuple[int, int]:
    """Cache, train (or go on) and, when the steps are done, export; returns steps done and steps wanted."""
    recipe = load_recipe(options)
    task = find_task(recipe.task)
    check_output_folder(bundle, options.overwrite)
    cases = find_cases(data, task)
    sampler, held_out = cached_patches(recipe, task, cases, make_folder(run), report)
    teacher = load_bundle(options.teacher).network if options.teacher else None
    log = (run / "log.jsonl").open("a", encoding="utf-8")

    def tell(step: int, figures: dict) -> None:
        log.write(json.dumps({"step": step, **{k: round(v, 5) for k, v in figures.items()}}) + "\n")
        report(step / recipe.steps, f"step {step} of {recipe.steps}, loss {figures['loss']:.3f}")

    with log:
        done = train(
            recipe,
            task,
            sampler,
            run,
            teacher=teacher,
            held_out=held_out,
            device=options.device,
            precision=options.precision,
            minutes=options.minutes,
            report=tell,
        )
    if done == recipe.steps:
        place = (
            "CUDA GPU" if resolve_device(options.device).type == "cuda" else f"{torch.get_num_threads()} CPU threads"
        )
        number = len(sampler.case_ids)
        card = {
            "description": describe(task),
            "data": options.data_statement,
            "training": f"{recipe.steps} steps, {number} cases, {options.precision}, {place}, seed {recipe.seed}.",
        }
        export(
            run,
            recipe,
            task,
            bundle,
            name=options.name,
            version=options.version,
            card=card,
            overwrite=options.overwrite,
        )
    return done, recipe.steps


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
    for n, case in enumerate(cases):
        report(0.0, f"preparing case {n + 1} of {len(cases)}")
        folder = cache_case(case, task, recipe.preprocess, cache, missingness.ever(case.case_id))
        folders[case.case_id in aside].append(folder)
    sampler = PatchSampler(folders[False], missingness, recipe.seed, recipe.augmentation)
    if not aside:
        return sampler, None
    # They show all that may be seen of them; the seed's complement keeps the two draws apart.
    others = PatchSampler(folders[True], full(task), 2**32 - 1 - recipe.seed, recipe.augmentation)
    return sampler, lambda n: others.batch(n, recipe.batch, recipe.patch)


def describe(task: Task) -> str:
    """What a bundle for any subset of a task's modalities does, in one sentence."""
    regions, titles = (", ".join(x) for x in ([r.name for r in task.regions], [m.title for m in task.modalities]))
    return f"{task.name} segmentation ({regions}) from any subset of {titles}."


def check_output_folder(path: Path, overwrite: bool) -> None:
    """Refuse a bundle folder that is there, before hours of work rather than after."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists.", "Choose another name or add --overwrite.")


def load_recipe(options: TrainOptions) -> Recipe:
    """The recipe of a JSON file (``medmap.train.Recipe``'s fields) with the options' changes. Raises BundleError."""
    recipe = Recipe() if options.recipe is None else Recipe.read(options.recipe)
    changes = {key: value for key in ("steps", "seed") if (value := getattr(options, key)) is not None}
    return replace(recipe, **changes)
