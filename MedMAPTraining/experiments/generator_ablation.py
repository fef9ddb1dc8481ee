"""What does each ingredient of the generator contribute? The same small training without one of them, on real cases.

    python MedMAPTraining/experiments/generator_ablation.py FOLDER --anatomy LABELMAPS --cases REAL [--seeds 0 1]
    python MedMAPTraining/experiments/generator_ablation.py FOLDER --table

``REAL`` holds cases with reference labels in a layout that MedMAP reads; nothing is trained on them. Equal budget: each
arm has the same network, steps, patches and number of heads, whose seeds are the same; a seed sets weights and patches.
Coarse (3 mm) and short on purpose: the differences between arms are the result, not the figures themselves. Finished
runs are kept, so call it again to go on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

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
HEADS = Generation(first_seed=5_000_000, pool=16, reuse=10**6, procedural=0.0)
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
    generation=HEADS,
)
CLEAN = Style(
    shift_mm=0.01, thick_slices=0.0, gamma=(1.0, 1.0), noise=(0.005, 0.006), bias=0.001, strip=0.1, motion=0.0,
    truncated=0.0,
)  # fmt: skip
ARMS = {
    "everything": HEADS,
    "no people's anatomy": replace(HEADS, procedural=1.0),
    "no scanner": replace(HEADS, style=CLEAN),
    "no spread of contrast": replace(HEADS, style=Style(jitter=0.25, pale=0.0, haze=0.0)),
    "no variety of tumors": replace(
        HEADS, healthy=0.0, style=Style(low_grade=0.0, multifocal=0.0, small=0.0, distractors=0.0)
    ),
}
"""The whole generator, and the generator without one of the four ingredients that matter most."""


def run(arm: str, seed: int, root: Path, anatomy: Path, cases: Path) -> dict:
    """Train one arm with one seed, and score it on every case and subset."""
    plan = ARMS[arm]
    recipe = replace(RECIPE, seed=seed, generation=plan)
    place = arm.replace(" ", "-").replace("'", "")
    folder, heads = root / f"{place}-{seed}", root / f"heads-{place}"
    for new in (folder, heads):
        new.mkdir(parents=True, exist_ok=True)
    missing = random_subset(BRATS, weights=WEIGHTS)
    sampler = GeneratedSampler(
        plan, BRATS, recipe.preprocess, missing, seed, recipe.augmentation,
        anatomy=find_label_maps(anatomy), folder=heads,
    )  # fmt: skip
    began = time.process_time()
    train(recipe, BRATS, sampler, folder / "run", device="cpu", precision="fp32")
    spent = time.process_time() - began
    export(
        folder / "run",
        recipe,
        BRATS,
        folder / "bundle",
        name=place,
        version="1.0.0",
        card={},
        overwrite=True,
    )
    bundle, found = load_bundle(folder / "bundle"), []
    for case in find_cases(cases, BRATS):
        rows = score_case(case, bundle).rows
        found += [
            {"case": r.case, "subset": r.subset, "region": r.region, "dice": r.dice} for r in rows
        ]
    return {"arm": arm, "seed": seed, "cpu": spent, "rows": found}


def table(root: Path) -> str:
    """Mean Dice of each arm by region, for the sets that matter most and over all, as Markdown."""
    results = [json.loads(path.read_text()) for path in sorted(root.glob("result-*.json"))]
    sets = ("flair", "t1ce+flair", "t1+t1ce+t2+flair", "all sets")
    lines = ["| arm | seeds | " + " | ".join(sets) + " |", "|---|--:|" + "--:|" * len(sets)]
    for arm in ARMS:
        mine = [r["rows"] for r in results if r["arm"] == arm]
        if mine:
            cells = [_cell(mine, s) for s in sets]
            lines.append(f"| {arm} | {len(mine)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(runs: list[list[dict]], subset: str) -> str:
    values = []
    for region in ("WT", "TC", "ET"):
        per_seed = [
            statistics.mean(
                r["dice"]
                for r in rows
                if r["region"] == region and subset in (r["subset"], "all sets")
            )
            for rows in runs
        ]
        values.append(f"{statistics.mean(per_seed):.2f}")
    return " / ".join(values)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--table", action="store_true", help="only print what is there")
    given = parser.parse_args()
    for seed in [] if given.table else given.seeds:
        for arm in given.arms:
            path = given.folder / f"result-{list(ARMS).index(arm)}-{seed}.json"
            if not path.exists():
                result = run(arm, seed, given.folder, given.anatomy, given.cases)
                path.write_text(json.dumps(result))
                print(arm, seed, f"{result['cpu']:.0f} CPU s", flush=True)
    print(table(given.folder))


if __name__ == "__main__":
    main()
