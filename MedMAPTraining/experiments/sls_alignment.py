"""Does alignment help one network for all subsets? SubsetUNet on synthetic patients.

Variants: none, T*, P_N, P_k, P_*.

    python MedMAPTraining/experiments/sls_alignment.py FOLDER
        [--seeds 0 1 2] [--arms ...] [--minutes 6]
    python MedMAPTraining/experiments/sls_alignment.py FOLDER --table

Equal budget: all variants have the same patients, steps, patches and backbone. A seed sets weights,
patches and the hidden modalities; patients are the same for all seeds. Encoders see complete cases
and the fusion a random subset, so that all four latents are aligned in every step, as the papers
do. Finished runs are kept: run the same command again to resume. ``--table`` prints what the page
on synthetic patients shows; ``medmap analyze`` draws the latents of the bundles in FOLDER/runs.
"""

from __future__ import annotations

import statistics
import time
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
from medmap.evaluation.modality_gap import collect_latents, gap_measures
from medmap.io.cohorts import find_cases
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.cache import cache_case
from medmap.training.dataset import PatchSampler
from medmap.training.export import export
from medmap.training.loop import train
from medmap.training.missingness import full
from medmap.training.recipe import Recipe, WindowedInference

SPACING = 3.0
TRAINING_PATIENTS = 20
TEST_PATIENTS = 6
BASE = Recipe(
    network="SubsetUNet",
    network_options={"widths": (8, 16, 24)},
    objective="sls",
    objective_options={"hide": True, "deep": 0.5, "deep_decay": 0.5},
    missingness="full",
    steps=250,
    patch=(32, 32, 32),
    large_share=0.0,
    learning_rate=3e-3,
    preprocess=PreprocessSpec(spacing=SPACING),
    # Instance normalization takes its statistics over the patch: whole volumes would be others.
    inference=WindowedInference(),
)
STEMMED = replace(BASE, network_options={**BASE.network_options, "stem": {"at": "mod_bottleneck"}})
ARMS = {
    "none": BASE,
    "T*": STEMMED,
    "P_N": replace(STEMMED, alignment={"anchor": "normal"}),
    "P_k": replace(STEMMED, alignment={"anchor": "peer", "k": "t1ce"}),
    "P_*": replace(STEMMED, alignment={"anchor": "mixture"}),
    "P_* (Eq. 13)": replace(STEMMED, alignment={"anchor": "mixture", "form": "eq13"}),
    "P_*, alpha 1": replace(STEMMED, alignment={"anchor": "mixture", "alpha": 1.0}),
}
GAPS = ("centroid_distance", "mmd", "two_sample_accuracy", "paired_distance")


def folder_of(root: Path, arm: str, seed: int) -> Path:
    """Folder of one run."""
    characters = []
    for character in arm:
        if character == "*":
            characters.append("star")
        elif character.isalnum():
            characters.append(character)
        elif character != ".":
            characters.append("-")
    return root / "runs" / f"{''.join(characters)}-{seed}"


def run(root: Path, arm: str, seed: int) -> dict:
    """Train, export and score one arm with one seed, and measure its latents."""
    recipe = replace(ARMS[arm], seed=seed)
    folder = folder_of(root, arm, seed)
    folder.mkdir(parents=True, exist_ok=True)
    cache = root / "cache"
    cache.mkdir(exist_ok=True)
    training = synthetic_cohort(root / "train", TRAINING_PATIENTS, 7000, SPACING)
    cases = find_cases(training, BRATS)
    cached = [cache_case(case, BRATS, recipe.preprocess, cache) for case in cases]
    sampler = PatchSampler(cached, full(BRATS), seed, recipe.augmentation)
    log: list[dict] = []
    started = time.process_time()
    train(
        recipe,
        BRATS,
        sampler,
        folder / "run",
        device="cpu",
        precision="fp32",
        report=lambda step, figures: log.append(figures),
    )
    cpu_seconds = time.process_time() - started
    bundle_folder = folder / "bundle"
    if not bundle_folder.is_dir():
        export(
            folder / "run", recipe, BRATS, bundle_folder, name="experiment", version="0", card={}
        )
    bundle = load_bundle(bundle_folder)
    test_cases = find_cases(synthetic_cohort(root / "test", TEST_PATIENTS, 9000, SPACING), BRATS)
    rows = []
    for case in test_cases:
        rows += score_case(case, bundle).rows
    gaps = gap_measures(collect_latents(bundle, test_cases))
    return {
        "arm": arm,
        "seed": seed,
        "cpu_seconds": cpu_seconds,
        "dice": mean_dice(rows),
        "gap": {name: gaps[name]["mean"] for name in GAPS},
        "align": [entry["align"] for entry in log if "align" in entry][::20],
        "weights": _logged_weights(log),
    }


def _logged_weights(log: list[dict]) -> list[dict[str, float]]:
    """The mixture's weights of every step that logs them."""
    weights = []
    for entry in log:
        weights_of_step = {name: value for name, value in entry.items() if name.startswith("w_")}
        if weights_of_step:
            weights.append(weights_of_step)
    return weights


def columns(result: dict) -> dict[str, float]:
    """What the table shows of one run, mean Dice in percent.

    By number of modalities, by region over all subsets, and over all 15 subsets.
    """
    dice = result["dice"]
    values: dict[str, list[float]] = {name: [] for name in NUMBERS}
    for name in (*REGIONS, "ET without T1ce", MEAN):
        values[name] = []
    for subset, regions in dice.items():
        names = subset.split("+")
        mean = statistics.mean(regions.values())
        values[NUMBERS[len(names) - 1]].append(mean)
        values[MEAN].append(mean)
        for region in REGIONS:
            values[region].append(regions[region])
        if "t1ce" not in names:
            values["ET without T1ce"].append(regions["ET"])
    return {name: 100 * statistics.mean(scores) for name, scores in values.items()}


NUMBERS = ("1 modality", "2 modalities", "3 modalities", "4 modalities")
MEAN = "mean of 15"
GAP_HEADINGS = [
    "variant",
    "centroid distance",
    "MMD²",
    "domain-classifier accuracy",
    "paired distance",
    "weights, last epoch",
    "CPU s",
]


def table(root: Path) -> str:
    """Mean ± SD over the seeds, and per seed the difference of the mean to ``none`` and to T*."""
    results = {(result["arm"], result["seed"]): result for result in read_results(root)}
    arms_with_results = {arm for arm, _ in results}
    arms = [arm for arm in ARMS if arm in arms_with_results]
    seeds = []
    for seed in sorted({seed for _, seed in results}):
        if all((arm, seed) in results for arm in arms):
            seeds.append(seed)
    values = {key: columns(result) for key, result in results.items()}
    headings = list(next(iter(values.values())))
    lines = table_head(["variant", *headings, "against none, per seed", "against T*, per seed"])
    for arm in arms:
        cells = [arm]
        for heading in headings:
            cells.append(mean_sd([values[arm, seed][heading] for seed in seeds]))
        for base in ("none", "T*"):
            differences = []
            for seed in seeds:
                differences.append(values[arm, seed][MEAN] - values[base, seed][MEAN])
            cells.append(", ".join(f"{difference:+.1f}" for difference in differences))
        lines.append(table_row(cells))
    lines += ["", table_row(GAP_HEADINGS), "|---|--:|--:|--:|--:|---|--:|"]
    for arm in arms:
        lines.append(_gap_row(arm, [results[arm, seed] for seed in seeds]))
    seed_list = ", ".join(map(str, seeds))
    patients = f"{TRAINING_PATIENTS} training and {TEST_PATIENTS} test patients"
    lines += ["", f"Seeds {seed_list}; {patients}."]
    return "\n".join(lines)


def _gap_row(arm: str, results: list[dict]) -> str:
    cells = [arm]
    for name in GAPS:
        cells.append(mean_sd([result["gap"][name] for result in results], 3))
    final_weights = [result["weights"][-1] for result in results if result["weights"]]
    texts = []
    if final_weights:
        for name in final_weights[0]:
            mean = statistics.mean(weights[name] for weights in final_weights)
            texts.append(f"{name.removeprefix('w_')} {mean:.2f}")
    cells.append(", ".join(texts) or "–")
    cells.append(f"{statistics.mean(result['cpu_seconds'] for result in results):.0f}")
    return table_row(cells)


def describe(result: dict) -> str:
    """A result in a line."""
    figures = {name: round(value, 1) for name, value in columns(result).items()}
    gaps = {name: round(value, 3) for name, value in result["gap"].items()}
    return f"{figures} {gaps} {result['cpu_seconds']:.0f} CPU s"


def main() -> None:
    """The command line."""
    parser = resumable_parser(__doc__)
    parser.add_argument("--arms", nargs="+", default=list(ARMS)[:5], choices=ARMS)
    options = parser.parse_args()
    if options.table:
        print(table(options.folder))
        return
    jobs = []
    for seed in options.seeds:
        for arm in options.arms:
            name = folder_of(options.folder, arm, seed).name
            jobs.append(Job(name, partial(run, options.folder, arm, seed)))
    run_missing(options.folder, jobs, options.minutes, describe)


if __name__ == "__main__":
    main()
