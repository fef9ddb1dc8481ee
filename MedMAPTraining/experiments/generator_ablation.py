"""Ablation study of the generator: a small training without one of its ingredients, on real cases.

    python MedMAPTraining/experiments/generator_ablation.py FOLDER --anatomy LABELMAPS
        --cases REAL [--seeds 0 1]
    python MedMAPTraining/experiments/generator_ablation.py FOLDER --table

``REAL`` holds cases with reference labels in a layout that MedMAP reads; nothing is trained on
them. Equal budget: each variant has the same network, steps, patches and number of generated cases,
whose seeds are the same; a seed sets weights and patches. Coarse (3 mm) and short on purpose: the
differences between variants are the result, not the figures themselves. Finished runs are kept: run
the same command again to resume.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

from shared import REGIONS, script_parser, table_head, table_row

from medmap.bundle.loading import load_bundle
from medmap.evaluation.scoring import score_case
from medmap.io.cohorts import find_cases
from medmap.phantom import Style
from medmap.phantom.labelmap import find_label_maps
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.dataset import Augmentation
from medmap.training.export import export
from medmap.training.generated import GeneratedSampler, Generation
from medmap.training.loop import train
from medmap.training.missingness import random_subset
from medmap.training.recipe import Recipe

WEIGHTS = {"t1": 3, "t1ce": 3, "t2": 1.5, "flair": 2.5, "t1ce+flair": 2, "t1+t1ce+t2+flair": 2}
GENERATION = Generation(first_seed=5_000_000, pool=16, reuse=10**6, procedural=0.0)
RECIPE = Recipe(
    network_options={"widths": (12, 20, 32, 48)},
    missingness_options={"weights": WEIGHTS},
    steps=300,
    batch=2,
    patch=(48, 48, 48),
    large_share=0.0,
    learning_rate=2e-3,
    ema=0.99,
    augmentation=Augmentation(foreground=0.7),
    preprocess=PreprocessSpec(spacing=3.0),
    generation=GENERATION,
)
CLEAN = Style(
    shift_mm=0.01,
    thick_slices=0.0,
    gamma=(1.0, 1.0),
    noise=(0.005, 0.006),
    bias=0.001,
    strip=0.1,
    motion=0.0,
    truncated=0.0,
)
SUBSETS = ("flair", "t1ce+flair", "t1+t1ce+t2+flair")
ARMS = {
    "everything": GENERATION,
    "no people's anatomy": replace(GENERATION, procedural=1.0),
    "no scanner": replace(GENERATION, style=CLEAN),
    "no spread of contrast": replace(GENERATION, style=Style(jitter=0.25, pale=0.0, haze=0.0)),
    "no variety of tumors": replace(
        GENERATION,
        healthy=0.0,
        style=Style(low_grade=0.0, multifocal=0.0, small=0.0, distractors=0.0),
    ),
}
"""The complete generator, and it without one of the four ingredients that matter most."""


def run(arm: str, seed: int, root: Path, anatomy: Path, cases: Path) -> dict:
    """Train one arm with one seed, and score it on every case and subset."""
    generation = ARMS[arm]
    recipe = replace(RECIPE, seed=seed, generation=generation)
    name = arm.replace(" ", "-").replace("'", "")
    folder = root / f"{name}-{seed}"
    generated = root / f"heads-{name}"
    for new_folder in (folder, generated):
        new_folder.mkdir(parents=True, exist_ok=True)
    sampler = GeneratedSampler(
        generation,
        BRATS,
        recipe.preprocess,
        random_subset(BRATS, weights=WEIGHTS),
        seed,
        recipe.augmentation,
        anatomy=find_label_maps(anatomy),
        folder=generated,
    )
    started = time.process_time()
    train(recipe, BRATS, sampler, folder / "run", device="cpu", precision="fp32")
    cpu_seconds = time.process_time() - started
    export(
        folder / "run",
        recipe,
        BRATS,
        folder / "bundle",
        name=name,
        version="1.0.0",
        card={},
        overwrite=True,
    )
    bundle = load_bundle(folder / "bundle")
    scores = []
    for case in find_cases(cases, BRATS):
        for row in score_case(case, bundle).rows:
            scores.append(
                {"case": row.case, "subset": row.subset, "region": row.region, "dice": row.dice}
            )
    return {"arm": arm, "seed": seed, "cpu": cpu_seconds, "rows": scores}


def table(root: Path) -> str:
    """Mean Dice of each arm by region, for the subsets that matter most and over all."""
    results = [json.loads(path.read_text()) for path in sorted(root.glob("result-*.json"))]
    lines = table_head(["variant", "seeds", *SUBSETS, "all subsets"])
    for arm in ARMS:
        runs = [result["rows"] for result in results if result["arm"] == arm]
        if runs:
            cells = [_cell(runs, subset) for subset in SUBSETS]
            cells.append(_cell(runs, None))
            lines.append(table_row([arm, len(runs), *cells]))
    return "\n".join(lines)


def _cell(runs: list[list[dict]], subset: str | None) -> str:
    """Mean Dice of the regions over the seeds; None: over all subsets."""
    means = []
    for region in REGIONS:
        by_seed = []
        for rows in runs:
            scores = []
            for row in rows:
                if row["region"] == region and subset in (row["subset"], None):
                    scores.append(row["dice"])
            by_seed.append(statistics.mean(scores))
        means.append(f"{statistics.mean(by_seed):.2f}")
    return " / ".join(means)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = script_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table:
        run_missing_arms(options)
    print(table(options.folder))


def run_missing_arms(options: argparse.Namespace) -> None:
    """Train the arms that have no result yet."""
    for seed in options.seeds:
        for arm in options.arms:
            path = options.folder / f"result-{list(ARMS).index(arm)}-{seed}.json"
            if path.exists():
                continue
            result = run(arm, seed, options.folder, options.anatomy, options.cases)
            path.write_text(json.dumps(result))
            print(arm, seed, f"{result['cpu']:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
