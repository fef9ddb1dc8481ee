"""Imbalanced missing rates on synthetic patients: baseline, ModDrop, PMR, PASSION; and MCKD with and without its point.

    python MedMAPTraining/experiments/imbalanced_missing.py FOLDER [--seeds 0 1 2] [--methods ...] [--minutes 6]
    python MedMAPTraining/experiments/imbalanced_missing.py FOLDER --table

Equal budget: the same cases, steps, patches and network for all methods of a group. A seed sets weights, patches and
which scans are missing; the patients are the same for all seeds. Finished runs are kept, so call it again to go on.
``--table`` prints what the page on synthetic patients shows and draws the curves into FOLDER.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from medmap.bundle.loading import load_bundle
from medmap.commands.phantoms import write_phantoms
from medmap.evaluation import score_case
from medmap.io.cohorts import find_cases
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.cache import cache_case
from medmap.training.dataset import PatchSampler
from medmap.training.export import export
from medmap.training.loop import train
from medmap.training.missingness import build_missingness, full
from medmap.training.recipe import Recipe

RATES = {"t1": 0.2, "t1ce": 0.4, "flair": 0.6, "t2": 0.8}
SPACING, TRAINED, TESTED = 3.0, 20, 6
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
)
OWN = replace(
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
    "mckd-without": replace(OWN, objective_options={"alpha": 0.0}),
    "mckd": replace(OWN, objective_options={"alpha": 0.1, "meta_every": 20, "meta_batches": 5}),
}
GROUPS = (("baseline", "moddrop", "pmr", "passion", "passion-released"), ("mckd-without", "mckd"))
SINGLES = ("t1", "t1ce", "t2", "flair")
REGIONS = ("WT", "TC", "ET")


def cohort(folder: Path, number: int, seed: int) -> Path:
    """Synthetic patients, made once."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_phantoms(
            folder, number, seed, SPACING, False, "cpu", False, lambda fraction, text: None
        )
    return folder


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with everything drawn anew, missing scans included."""
    options = dict(recipe.missingness_options)
    if recipe.missingness == "fixed":
        options = {"rates": RATES, "seed": seed}
    if recipe.missingness == "dropped":
        options = {"inner": "fixed", "options": {"rates": RATES, "seed": seed}}
    return replace(recipe, seed=seed, missingness_options=options)


def run(root: Path, name: str, seed: int) -> dict:
    """Train and score one method with one seed."""
    recipe = seeded(METHODS[name], seed)
    cases = find_cases(cohort(root / "train", TRAINED, 7000), BRATS)
    names = [case.case_id for case in cases]
    missingness = build_missingness(recipe.missingness, BRATS, recipe.missingness_options, names)
    aside = recipe.hold_out(names)
    place = root / "runs" / f"{name}-{seed}"
    (place / "cache").mkdir(parents=True, exist_ok=True)
    cached = [
        cache_case(c, BRATS, recipe.preprocess, place / "cache", missingness.available(c.case_id))
        for c in cases
    ]
    shown = [folder for folder in cached if folder.name not in aside]
    kept = [folder for folder in cached if folder.name in aside]
    sampler = PatchSampler(shown, missingness, seed, recipe.augmentation)
    others = (
        PatchSampler(kept, full(BRATS), 2**32 - 1 - seed, recipe.augmentation) if kept else None
    )
    log = []
    began = time.process_time()
    train(
        recipe,
        BRATS,
        sampler,
        place / "run",
        held_out=(lambda n: others.batch(n, 1, recipe.patch)) if others else None,
        device="cpu",
        precision="fp32",
        report=lambda step, figures: log.append({"step": step, **figures}),
    )
    spent = time.process_time() - began
    (place / "log.jsonl").write_text(
        "\n".join(json.dumps(entry) for entry in log) + "\n", encoding="utf-8"
    )
    if not (place / "bundle").is_dir():
        export(
            place / "run", recipe, BRATS, place / "bundle", name="experiment", version="0", card={}
        )
    bundle = load_bundle(place / "bundle")
    rows = [
        row
        for case in find_cases(cohort(root / "test", TESTED, 9000), BRATS)
        for row in score_case(case, bundle).rows
    ]
    dice: dict[str, dict[str, float]] = {}
    for subset in {row.subset for row in rows}:
        dice[subset] = {
            region: statistics.mean(
                row.dice for row in rows if (row.subset, row.region) == (subset, region)
            )
            for region in REGIONS
        }
    epochs = [
        entry for entry in log if any(key.startswith(("preference", "importance")) for key in entry)
    ]
    return {"method": name, "seed": seed, "cpu_seconds": spent, "dice": dice, "epochs": epochs}


def columns(result: dict) -> dict[str, float]:
    """What a table shows of one run, in percent: singles (mean of the regions), regions over all 15 subsets, mean."""
    dice = result["dice"]
    singles = {name: statistics.mean(dice[name].values()) for name in SINGLES}
    regions = {
        region: statistics.mean(subset[region] for subset in dice.values()) for region in REGIONS
    }
    return {
        k: 100 * v
        for k, v in {**singles, **regions, "mean": statistics.mean(regions.values())}.items()
    }


def table(root: Path) -> str:
    """Mean and SD over the seeds, and per seed the difference of the mean to the group's first method."""
    results = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((root / "results").glob("*.json"))
    ]
    heads = (*SINGLES, *REGIONS, "mean")
    lines = []
    for group in GROUPS:
        lines += [
            "",
            "| method | " + " | ".join(heads) + " | difference of the mean, per seed | CPU s |",
        ]
        lines += ["|---|" + "--:|" * (len(heads) + 2)]
        first = {r["seed"]: columns(r)["mean"] for r in results if r["method"] == group[0]}
        for name in group:
            own = sorted((r for r in results if r["method"] == name), key=lambda r: r["seed"])
            if not own:
                continue
            values = [columns(r) for r in own]
            cells = [_mean_sd([v[head] for v in values]) for head in heads]
            deltas = [
                f"{columns(r)['mean'] - first[r['seed']]:+.1f}" for r in own if r["seed"] in first
            ]
            seconds = statistics.mean(r["cpu_seconds"] for r in own)
            lines.append(f"| {name} | {' | '.join(cells)} | {', '.join(deltas)} | {seconds:.0f} |")
    return "\n".join(lines)


def _mean_sd(values: list[float]) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {sd:.1f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--minutes", type=float, default=6, help="start no further run after so long"
    )
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print(table(options.folder))
        return
    torch.set_num_threads(1)
    began = time.monotonic()
    (options.folder / "results").mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for name in options.methods:
            path = options.folder / "results" / f"{name}-{seed}.json"
            if path.exists():
                continue
            if time.monotonic() - began > 60 * options.minutes:
                print("time is up; call again to go on")
                return
            result = run(options.folder, name, seed)
            path.write_text(json.dumps(result), encoding="utf-8")
            print(
                name,
                seed,
                {k: round(v, 1) for k, v in columns(result).items()},
                round(result["cpu_seconds"]),
                "s",
            )


if __name__ == "__main__":
    main()
