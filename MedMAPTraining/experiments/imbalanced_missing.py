"""Imbalanced missing rates on synthetic patients: baseline, ModDrop, PMR, PASSION, and MCKD.

    python MedMAPTraining/experiments/imbalanced_missing.py FOLDER
        [--seeds 0 1 2] [--methods ...] [--minutes 6]
    python MedMAPTraining/experiments/imbalanced_missing.py FOLDER --table

Equal budget: the same cases, steps, patches and network for all methods of a group. A seed sets
weights, patches and which modalities are missing; the patients are the same for all seeds. Finished
runs are kept: run the same command again to resume. ``--table`` prints what the page on synthetic
patients shows.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from shared import (
    REGIONS,
    Job,
    mean_dice,
    mean_sd,
    read_results,
    resumable_parser,
    run_missing,
    synthetic_cohort,
    table_head,
    table_row,
)

from medmap.bundle.loading import load_bundle
from medmap.evaluation import score_case
from medmap.io.cohorts import find_cases
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.cache import cache_case
from medmap.training.dataset import PatchSampler
from medmap.training.export import export
from medmap.training.loop import train
from medmap.training.missingness import build_missingness, full
from medmap.training.recipe import Recipe, WindowedInference

RATES = {"t1": 0.2, "t1ce": 0.4, "flair": 0.6, "t2": 0.8}
SPACING = 3.0
TRAINING_PATIENTS = 20
TEST_PATIENTS = 6
FUSED = {"deep": 0.5, "deep_decay": 0.5}
BASE = Recipe(
    network="SubsetUNet",
    network_options={"widths": (8, 16, 24)},
    objective="sls",
    objective_options={"separate": 0.0, **FUSED},
    missingness="fixed",
    steps=300,
    patch=(32, 32, 32),
    large_share=0.0,
    learning_rate=3e-3,
    preprocess=PreprocessSpec(spacing=SPACING),
    # Instance normalization takes its statistics over the patch: whole volumes would be others.
    inference=WindowedInference(),
)
MCKD = replace(
    BASE,
    network="MCKD",
    network_options={"width": 0.125, "blocks": (1, 1, 1)},
    objective="mckd",
    missingness="random-subset",
    missingness_options={"by": "cardinality"},
    held_out_cases=3,
)
METHODS = {
    "baseline": BASE,
    "moddrop": replace(BASE, missingness="dropped"),
    "pmr": replace(BASE, objective="pmr", objective_options=FUSED),
    "passion": replace(BASE, objective="passion", objective_options=FUSED),
    "passion-released": replace(
        BASE, objective="passion", objective_options={"variant": "released", **FUSED}
    ),
    "mckd-without": replace(MCKD, objective_options={"alpha": 0.0}),
    "mckd": replace(MCKD, objective_options={"alpha": 0.1, "meta_every": 20, "meta_batches": 5}),
}
GROUPS = (("baseline", "moddrop", "pmr", "passion", "passion-released"), ("mckd-without", "mckd"))
SINGLES = ("t1", "t1ce", "t2", "flair")


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with this seed for all that is drawn, missing modalities included."""
    options = dict(recipe.missingness_options)
    if recipe.missingness == "fixed":
        options = {"rates": RATES, "seed": seed}
    if recipe.missingness == "dropped":
        options = {"inner": "fixed", "options": {"rates": RATES, "seed": seed}}
    return replace(recipe, seed=seed, missingness_options=options)


def run(root: Path, name: str, seed: int) -> dict:
    """Train and score one method with one seed."""
    recipe = seeded(METHODS[name], seed)
    folder = root / "runs" / f"{name}-{seed}"
    log: list[dict] = []
    cpu_seconds = _train(root, folder, recipe, log)
    lines = [json.dumps(entry) for entry in log]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    bundle_folder = folder / "bundle"
    if not bundle_folder.is_dir():
        export(
            folder / "run", recipe, BRATS, bundle_folder, name="experiment", version="0", card={}
        )
    bundle = load_bundle(bundle_folder)
    rows = []
    for case in find_cases(synthetic_cohort(root / "test", TEST_PATIENTS, 9000, SPACING), BRATS):
        rows += score_case(case, bundle).rows
    return {
        "method": name,
        "seed": seed,
        "cpu_seconds": cpu_seconds,
        "dice": mean_dice(rows),
        "epochs": [entry for entry in log if _has_modality_figures(entry)],
    }


def _train(root: Path, folder: Path, recipe: Recipe, log: list[dict]) -> float:
    """Train one recipe, filling the log; returns its CPU seconds."""
    cases = find_cases(synthetic_cohort(root / "train", TRAINING_PATIENTS, 7000, SPACING), BRATS)
    names = [case.case_id for case in cases]
    missingness = build_missingness(recipe.missingness, BRATS, recipe.missingness_options, names)
    held_out_names = recipe.hold_out(names)
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    training_folders = []
    held_out_folders = []
    for case in cases:
        available = missingness.available(case.case_id).tolist()
        cached = cache_case(case, BRATS, recipe.preprocess, cache, available)
        if case.case_id in held_out_names:
            held_out_folders.append(cached)
        else:
            training_folders.append(cached)
    seed = recipe.seed
    sampler = PatchSampler(training_folders, missingness, seed, recipe.augmentation)
    held_out: Callable[[int], Batch] | None = None
    if held_out_folders:
        # Another stream of random numbers than the training's.
        held_out_seed = 2**32 - 1 - seed
        held_out_sampler = PatchSampler(
            held_out_folders, full(BRATS), held_out_seed, recipe.augmentation
        )

        def held_out_batch(number: int) -> Batch:
            return held_out_sampler.batch(number, 1, recipe.patch)

        held_out = held_out_batch

    started = time.process_time()
    train(
        recipe,
        BRATS,
        sampler,
        folder / "run",
        held_out=held_out,
        device="cpu",
        precision="fp32",
        report=lambda step, figures: log.append({"step": step, **figures}),
    )
    return time.process_time() - started


def _has_modality_figures(entry: dict) -> bool:
    return any(name.startswith(("preference", "importance")) for name in entry)


def columns(result: dict) -> dict[str, float]:
    """What a table shows of one run, mean Dice in percent.

    Of single modalities over regions, of regions over all 15 subsets, and the mean of those.
    """
    dice = result["dice"]
    values = {name: statistics.mean(dice[name].values()) for name in SINGLES}
    region_means = []
    for region in REGIONS:
        mean = statistics.mean(regions[region] for regions in dice.values())
        values[region] = mean
        region_means.append(mean)
    values["mean"] = statistics.mean(region_means)
    return {name: 100 * value for name, value in values.items()}


def table(root: Path) -> str:
    """Mean ± SD over the seeds, and per seed the difference to the group's first method."""
    results = read_results(root)
    headings = [*SINGLES, *REGIONS, "mean"]
    lines = []
    for group in GROUPS:
        lines.append("")
        lines += table_head(["method", *headings, "difference of the mean, per seed", "CPU s"])
        first_means = {}
        for result in results:
            if result["method"] == group[0]:
                first_means[result["seed"]] = columns(result)["mean"]
        for name in group:
            results_of_method = [result for result in results if result["method"] == name]
            if results_of_method:
                lines.append(_method_row(name, results_of_method, headings, first_means))
    return "\n".join(lines)


def _method_row(
    name: str, results: list[dict], headings: list[str], first_means: dict[int, float]
) -> str:
    results = sorted(results, key=lambda result: result["seed"])
    values = [columns(result) for result in results]
    cells = [name]
    for heading in headings:
        cells.append(mean_sd([value[heading] for value in values]))
    differences = []
    for result, value in zip(results, values, strict=True):
        if result["seed"] in first_means:
            differences.append(f"{value['mean'] - first_means[result['seed']]:+.1f}")
    cells.append(", ".join(differences))
    cells.append(f"{statistics.mean(result['cpu_seconds'] for result in results):.0f}")
    return table_row(cells)


def describe(result: dict) -> str:
    """A result in a line."""
    figures = {name: round(value, 1) for name, value in columns(result).items()}
    return f"{figures} {result['cpu_seconds']:.0f} CPU s"


def main() -> None:
    """The command line."""
    parser = resumable_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    options = parser.parse_args()
    if options.table:
        print(table(options.folder))
        return
    jobs = []
    for seed in options.seeds:
        for name in options.methods:
            jobs.append(Job(f"{name}-{seed}", partial(run, options.folder, name, seed)))
    run_missing(options.folder, jobs, options.minutes, describe)


if __name__ == "__main__":
    main()
