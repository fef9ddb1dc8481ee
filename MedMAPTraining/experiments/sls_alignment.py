"""Does alignment help one network for all subsets? SubsetUNet on synthetic patients: none, T*, P_N, P_k, P_*.

    python MedMAPTraining/experiments/sls_alignment.py FOLDER [--seeds 0 1 2] [--arms ...] [--minutes 6]
    python MedMAPTraining/experiments/sls_alignment.py FOLDER --table

Equal budget: all arms have the same patients, steps, patches and backbone. A seed sets weights, patches and the hidden
scans; patients are the same for all seeds. Encoders see complete cases and the fusion a random subset, so that all four
latents are aligned in every step, as the papers do. Finished runs are kept, so call it again to go on. ``--table``
prints what the page on synthetic patients shows; ``medmap analyze`` draws the latents of the bundles in FOLDER/runs.
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
from medmap.evaluation.modality_gap import collect_latents, gap_measures
from medmap.io.cohorts import find_cases
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.cache import cache_case
from medmap.training.dataset import PatchSampler
from medmap.training.export import export
from medmap.training.loop import train
from medmap.training.missingness import full
from medmap.training.recipe import Recipe

SPACING, TRAINED, TESTED = 3.0, 20, 6
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
REGIONS = ("WT", "TC", "ET")
GAPS = ("centroid_distance", "mmd", "two_sample_accuracy", "paired_distance")


def place_of(root: Path, arm: str, seed: int) -> Path:
    """Folder of one run."""
    plain = "".join(c if c.isalnum() else {"*": "star", ".": ""}.get(c, "-") for c in arm)
    return root / "runs" / f"{plain}-{seed}"


def cohort(folder: Path, number: int, seed: int) -> Path:
    """Synthetic patients, made once."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_phantoms(
            folder, number, seed, SPACING, False, "cpu", False, lambda fraction, text: None
        )
    return folder


def run(root: Path, arm: str, seed: int) -> dict:
    """Train, export and score one arm with one seed, and measure its latents."""
    recipe, place, cache = replace(ARMS[arm], seed=seed), place_of(root, arm, seed), root / "cache"
    place.mkdir(parents=True, exist_ok=True)
    cache.mkdir(exist_ok=True)
    cases = find_cases(cohort(root / "train", TRAINED, 7000), BRATS)
    folders = [cache_case(case, BRATS, recipe.preprocess, cache) for case in cases]
    sampler, log, began = (
        PatchSampler(folders, full(BRATS), seed, recipe.augmentation),
        [],
        time.process_time(),
    )
    train(
        recipe,
        BRATS,
        sampler,
        place / "run",
        device="cpu",
        precision="fp32",
        report=lambda step, figures: log.append(figures),
    )
    spent = time.process_time() - began
    if not (place / "bundle").is_dir():
        export(
            place / "run", recipe, BRATS, place / "bundle", name="experiment", version="0", card={}
        )
    bundle = load_bundle(place / "bundle")
    tested = find_cases(cohort(root / "test", TESTED, 9000), BRATS)
    rows = [row for case in tested for row in score_case(case, bundle).rows]
    dice = {
        subset: {
            region: statistics.mean(
                row.dice for row in rows if (row.subset, row.region) == (subset, region)
            )
            for region in REGIONS
        }
        for subset in sorted({row.subset for row in rows})
    }
    gaps = gap_measures(collect_latents(bundle, tested))
    weights = [{k: v for k, v in entry.items() if k.startswith("w_")} for entry in log]
    return {
        "arm": arm,
        "seed": seed,
        "cpu_seconds": spent,
        "dice": dice,
        "gap": {name: gaps[name]["mean"] for name in GAPS},
        "align": [entry["align"] for entry in log if "align" in entry][::20],
        "weights": [entry for entry in weights if entry],
    }


def columns(result: dict) -> dict[str, float]:
    """What the table shows of one run, Dice in percent: by number of scans, by region over all subsets, mean."""
    dice = result["dice"]
    mean = {subset: statistics.mean(regions.values()) for subset, regions in dice.items()}
    found = {
        f"{n} scan{'s' * (n > 1)}": [v for s, v in mean.items() if s.count("+") == n - 1]
        for n in (1, 2, 3, 4)
    }
    found |= {region: [regions[region] for regions in dice.values()] for region in REGIONS}
    found["ET without T1ce"] = [
        regions["ET"] for subset, regions in dice.items() if "t1ce" not in subset.split("+")
    ]
    found["mean of 15"] = list(mean.values())
    return {name: 100 * statistics.mean(values) for name, values in found.items()}


def table(root: Path) -> str:
    """Mean ± SD over the seeds, and per seed the difference of the mean to ``none`` and to T* alone."""
    results = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((root / "results").glob("*.json"))
    ]
    own = {(r["arm"], r["seed"]): r for r in results}
    arms = [arm for arm in ARMS if any(arm == a for a, _ in own)]
    seeds = sorted({seed for _, seed in own if all((arm, seed) in own for arm in arms)})
    heads = list(columns(results[0]))
    lines = [f"| arm | {' | '.join(heads)} | against none, per seed | against T*, per seed |"]
    lines.append("|---|" + "--:|" * (len(heads) + 2))
    value = {key: columns(r) for key, r in own.items()}
    for arm in arms:
        cells = [_mean_sd([value[arm, s][head] for s in seeds]) for head in heads]
        for other in ("none", "T*"):
            cells.append(
                ", ".join(
                    f"{value[arm, s]['mean of 15'] - value[other, s]['mean of 15']:+.1f}"
                    for s in seeds
                )
            )
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += [
        "",
        "| arm | centroid distance | MMD² | told apart | paired distance | weights, last epoch | CPU s |",
    ]
    lines.append("|---|--:|--:|--:|--:|---|--:|")
    for arm in arms:
        chosen = [own[arm, s] for s in seeds]
        cells = [_mean_sd([r["gap"][name] for r in chosen], 3) for name in GAPS]
        last = [r["weights"][-1] for r in chosen if r["weights"]]
        means = {name: statistics.mean(w[name] for w in last) for name in (last[0] if last else {})}
        cells.append(", ".join(f"{name[2:]} {value:.2f}" for name, value in means.items()) or "–")
        cells.append(f"{statistics.mean(r['cpu_seconds'] for r in chosen):.0f}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"Seeds {', '.join(map(str, seeds))}; {TRAINED} training and {TESTED} test patients.",
        ]
    )


def _mean_sd(values: list[float], digits: int = 1) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arms", nargs="+", default=list(ARMS)[:5], choices=ARMS)
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
        for arm in options.arms:
            path = options.folder / "results" / f"{place_of(options.folder, arm, seed).name}.json"
            if path.exists():
                continue
            if time.monotonic() - began > 60 * options.minutes:
                print("time is up; call again to go on")
                return
            result = run(options.folder, arm, seed)
            path.write_text(json.dumps(result), encoding="utf-8")
            figures = {k: round(v, 1) for k, v in columns(result).items()}
            print(
                arm,
                seed,
                figures,
                {k: round(v, 3) for k, v in result["gap"].items()},
                round(result["cpu_seconds"]),
            )


if __name__ == "__main__":
    main()
