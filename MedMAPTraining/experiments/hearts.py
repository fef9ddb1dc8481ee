"""Imbalanced missing rates on synthetic hearts: the baseline, PMR and PASSION.

    python MedMAPTraining/experiments/hearts.py FOLDER [--seeds 0 1] [--methods ...] [--minutes 30]
    python MedMAPTraining/experiments/hearts.py FOLDER --table

Modalities are missing permanently in training: bSSFP in .3 of the hearts, LGE in .5 and T2 in .7,
the first of the six orders in PASSION's Table 1 for MyoPS. Equal budget: the same hearts, steps,
slices and network for all methods. A seed sets weights, slices and which modalities are missing.
Finished runs are kept: run the same command again to resume.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from shared import (
    Job,
    mean_dice,
    mean_sd,
    quiet,
    read_results,
    resumable_parser,
    run_missing,
    table_head,
    table_row,
)

from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle
from medmap.commands.phantoms import write_hearts
from medmap.commands.training import train_bundle
from medmap.commands.training_options import BundleOptions, TrainOptions
from medmap.evaluation import read_rows
from medmap.preprocess import PreprocessSpec
from medmap.task import MYOPS_ANATOMY as TASK
from medmap.training.options import RuntimeOptions
from medmap.training.recipe import Recipe, WindowedInference

SPACING = 1.5
TRAINING_HEARTS = 24
TEST_HEARTS = 8
SLICE = (128, 128)
RATES = {"bssfp": 0.3, "lge": 0.5, "t2": 0.7}
REGIONS = tuple(region.name for region in TASK.regions)
ALL = TASK.subset_key(TASK.modality_names)

BASE = Recipe(
    task=TASK.name,
    network="SubsetUNet",
    network_options={"widths": (24, 32, 48, 64)},
    objective="sls",
    objective_options={"class_weighted": False},
    missingness="fixed",
    steps=400,
    batch=4,
    patch=SLICE,
    large_patch=SLICE,
    large_share=0.0,
    learning_rate=2e-3,
    preprocess=PreprocessSpec(spacing=SPACING, slices=True, field=192.0),
    inference=WindowedInference(),
)
EQUAL = {"class_weighted": False}
METHODS = {
    "baseline": BASE,
    "PMR": replace(BASE, objective="pmr", objective_options=EQUAL),
    "PASSION": replace(BASE, objective="passion", objective_options=EQUAL),
    "PASSION as released": replace(
        BASE, objective="passion", objective_options={"variant": "released", **EQUAL}
    ),
}


def hearts(folder: Path, number: int, seed: int) -> Path:
    """So many synthetic hearts, generated once."""
    if not folder.is_dir():
        write_hearts(folder, number, seed, SPACING, "cpu", overwrite=False, report=quiet)
    return folder


def train_and_score(root: Path, name: str, seed: int) -> dict:
    """One result: CPU seconds and mean Dice by subset and region."""
    folder = root / "runs" / f"{name.replace(' ', '-')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = replace(METHODS[name], seed=seed, missingness_options={"rates": RATES, "seed": seed})
    path = folder / "recipe.json"
    path.write_text(json.dumps(asdict(recipe)), encoding="utf-8")
    options = TrainOptions(
        recipe=path,
        runtime=RuntimeOptions(device="cpu", precision="auto"),
        bundle=BundleOptions(name="hearts"),
    )
    started = time.process_time()
    training = hearts(root / "train", TRAINING_HEARTS, 100)
    train_bundle(folder / "run", training, folder / "bundle", options, quiet)
    seconds = time.process_time() - started
    scoring = EvaluateOptions(output=folder / "evaluation", pictures=False, device="cpu")
    test = hearts(root / "test", TEST_HEARTS, 9000)
    evaluate_bundle(test, folder / "bundle", scoring, quiet)
    rows = read_rows(folder / "evaluation" / "scores.csv")
    return {"method": name, "seed": seed, "cpu_seconds": seconds, "dice": mean_dice(rows)}


def mean_of_subsets(result: dict, region: str) -> float:
    """Dice of a region in percent, averaged over the seven subsets."""
    return statistics.mean(100 * regions[region] for regions in result["dice"].values())


def mean_of_subset(result: dict, subset: str) -> float:
    """Dice from a subset in percent, averaged over the regions."""
    return statistics.mean(100 * dice for dice in result["dice"][subset].values())


def table(root: Path) -> str:
    """Dice of each region over the subsets, and from single modalities; mean ± SD over seeds."""
    results = read_results(root)
    columns = [*TASK.modality_names, ALL]
    titles = [TASK.subset_title(tuple(key.split("+"))) for key in columns]
    lines = table_head(["method", *REGIONS, "mean", *titles, "seeds", "CPU s"])
    for name in METHODS:
        of_method = [result for result in results if result["method"] == name]
        if not of_method:
            continue
        cells = [name]
        by_region = []
        for region in REGIONS:
            values = [mean_of_subsets(result, region) for result in of_method]
            by_region.append(values)
            cells.append(mean_sd(values))
        cells.append(mean_sd([statistics.mean(values) for values in zip(*by_region, strict=True)]))
        for subset in columns:
            cells.append(mean_sd([mean_of_subset(result, subset) for result in of_method]))
        cells.append(str(len(of_method)))
        cells.append(f"{statistics.mean(result['cpu_seconds'] for result in of_method):.0f}")
        lines.append(table_row(cells))
    return "\n".join(lines)


def describe(result: dict) -> str:
    """A result in a line."""
    return f"Dice from all {mean_of_subset(result, ALL):.1f}, {result['cpu_seconds']:.0f} CPU s"


def main() -> None:
    """The command line."""
    parser = resumable_parser(__doc__)
    parser.set_defaults(seeds=[0, 1])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    options = parser.parse_args()
    if options.table:
        print(table(options.folder))
        return
    jobs = []
    for seed in options.seeds:
        for name in options.methods:
            run = partial(train_and_score, options.folder, name, seed)
            jobs.append(Job(f"{name.replace(' ', '-')}-{seed}", run))
    run_missing(options.folder, jobs, options.minutes, describe)


if __name__ == "__main__":
    main()
