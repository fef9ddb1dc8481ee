"""Does alignment help dedicated methods? ProtoKD and ACN on synthetic patients, with T*, with T* and P_*, without.

    python MedMAPTraining/experiments/dedicated_alignment.py FOLDER [--seeds 0 1 2] [--minutes 6]
    python MedMAPTraining/experiments/dedicated_alignment.py FOLDER --table
    python MedMAPTraining/experiments/dedicated_alignment.py FOLDER --least

ProtoKD: a teacher of all scans, aligned or not, then a student a set of scans; ``alone`` has the same loss without what
the teacher says. ACN: the full path aligned or not, trained with the student. Equal budget: all arms of a method have
the same cases, steps, patches and student. A seed sets weights and patches; the patients are the same for all seeds.
Whole heads are scored in windows as large as the patches; Dice is the mean of WT, TC and ET. ``gap``: P_*'s distance
with equal weights between the normalized latents of the test cases (0 alike, 0.75 unrelated). ``--least``: what is left
of it when T* is trained for alignment alone, on the test cases. Finished runs are kept, so call it again to go on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad

from medmap.commands.dedicated import load_teacher
from medmap.commands.phantoms import write_phantoms
from medmap.io.cohorts import find_cases
from medmap.metrics import dice
from medmap.networks import Backbone, build_network
from medmap.networks.stem import InputMap
from medmap.preprocess import PreprocessSpec
from medmap.sliding_window import gaussian_weight, window_boxes
from medmap.task import BRATS
from medmap.training.alignment import MixtureAnchor
from medmap.training.cache import cache_case
from medmap.training.checkpoint import load_checkpoint
from medmap.training.dataset import Augmentation, PatchSampler
from medmap.training.loop import train
from medmap.training.missingness import full
from medmap.training.recipe import Recipe
from medmap.training.setup import make_objective

SPACING, TRAINED, TESTED = 4.0, 24, 14
LEAST = 0.008
"""Patients whose tumor fills less of the head's box are left out: a few voxels at this spacing."""
PATCH = (20, 20, 20)
STEM = {"at": "input", "channels": 4}
MIXED = {**STEM, "mixture": {"initial": {"t1ce": 2.0}}}
P_STAR = {"anchor": "mixture", "tap": "stem"}
VNET = {"widths": (8, 16, 32), "depths": (1, 1, 1), "norm": "instance"}
COMMON = Recipe(
    missingness="full",
    patch=PATCH,
    large_share=0.0,
    optimizer="adam",
    learning_rate=1.5e-2,
    weight_decay=1e-5,
    schedule="poly",
    augmentation=Augmentation(foreground=0.9),
    preprocess=PreprocessSpec(spacing=SPACING),
)
TEACHER = replace(
    COMMON, network="VNet", steps=300, network_options={**VNET, "inputs": (0, 1, 2, 3)}
)
STUDENT = replace(COMMON, network="VNet", steps=150, network_options=VNET)
TEACHERS = {
    "none": TEACHER,
    "T*": replace(TEACHER, network_options={**TEACHER.network_options, "stem": STEM}),
    "T* + P_*": replace(
        TEACHER, network_options={**TEACHER.network_options, "stem": MIXED}, alignment=P_STAR
    ),
}
CO_TRAINED = replace(
    COMMON,
    network="VNet",
    steps=100,
    network_options=VNET,
    objective="acn",
    objective_options={"discriminator_width": 8, "ramp_epochs": 1.0},
)
FULL = {
    "none": {},
    "T*": {"full": {"stem": STEM}},
    "T* + P_*": {"full": {"stem": MIXED}},
}
ALL_SETS = tuple("+".join(subset) for subset in BRATS.table_order())
METHODS = {
    "protokd": (("none", "T* + P_*"), ALL_SETS),
    "acn": (("none", "T* + P_*"), ALL_SETS),
    "protokd-arms": (("alone", "none", "T*", "T* + P_*"), ("flair", "t1ce")),
}
"""By name: the arms and the sets of scans. The last one shares its runs with the first."""


class Cohort:
    """The synthetic patients, made and prepared once."""

    def __init__(self, root: Path):
        self.folders = {}
        for part, number, seed in (("train", TRAINED, 7000), ("test", TESTED, 9000)):
            if not (root / part).is_dir():
                write_phantoms(
                    root / part,
                    number,
                    seed,
                    SPACING,
                    False,
                    "cpu",
                    False,
                    lambda fraction, text: None,
                )
            cache = root / f"cache-{part}"
            cache.mkdir(exist_ok=True)
            cases = find_cases(root / part, BRATS)
            folders = [cache_case(case, BRATS, COMMON.preprocess, cache) for case in cases]
            self.folders[part] = [
                f for f in folders if (np.load(f / "label.npy") > 0).mean() >= LEAST
            ]

    def sampler(self, seed: int) -> PatchSampler:
        return PatchSampler(self.folders["train"], full(BRATS), seed, COMMON.augmentation)

    def heads(self, stride: int):
        """Image [1, 4, D, H, W], label [D, H, W] and brain [1, D, H, W] of each test case, padded to the stride."""
        for folder in self.folders["test"]:
            image = np.stack([np.load(folder / f"{name}.npy") for name in BRATS.modality_names])
            arrays = [
                torch.from_numpy(a)
                for a in (image, np.load(folder / "label.npy"), np.load(folder / "brain.npy"))
            ]
            missing = [-n % stride for n in arrays[1].shape]
            image, label, brain = (
                pad(a, [0, missing[2], 0, missing[1], 0, missing[0]]) for a in arrays
            )
            yield image.float()[None], label.numpy(), brain.bool()[None]


@torch.inference_mode()
def scores(network: Backbone, cohort: Cohort) -> dict[str, float]:
    """Mean Dice of each region over the test cases."""
    found: dict[str, list[float]] = {region.name: [] for region in BRATS.regions}
    network.eval()
    for image, label, _ in cohort.heads(network.stride):
        guess = segmented(network, image[0])
        for name, values in found.items():
            classes = BRATS.region_classes(name)
            values.append(dice(np.isin(guess, classes), np.isin(label, classes)))
    return {name: statistics.mean(values) for name, values in found.items()}


def segmented(network: Backbone, image: torch.Tensor) -> np.ndarray:
    """[4, D, H, W] -> [D, H, W] class indices, by overlapping windows in one batch."""
    boxes = window_boxes(image.shape[1:], PATCH, 0.25, network.stride)
    windows = torch.stack([image[(slice(None), *box)] for box in boxes])
    logits = network(windows, torch.ones(len(boxes), 4, dtype=torch.bool)).logits
    total, weight = torch.zeros(BRATS.num_classes, *image.shape[1:]), gaussian_weight(PATCH)
    for box, window in zip(boxes, logits, strict=True):
        total[(slice(None), *box)] += weight * window
    return total.argmax(0).numpy()


@torch.inference_mode()
def gap(network: Backbone, cohort: Cohort) -> float:
    """Distance between the normalized stem latents of the four scans; of the scans themselves without a stem."""
    anchor, names = MixtureAnchor(BRATS.modality_names, initial={}), BRATS.modality_names
    present, values = {name: torch.ones(1, dtype=torch.bool) for name in names}, []
    for image, _, brain in cohort.heads(network.stride):
        channels = {name: image[:, m : m + 1] for m, name in enumerate(names)}
        stemmed = "stem" in network.provides
        latents = {
            n: network.encode(c, m)[0] if stemmed else c
            for m, (n, c) in enumerate(channels.items())
        }
        values.append(float(anchor(latents, present, brain)))
    return statistics.mean(values)


def least_gap(cohort: Cohort, channels: int, steps: int = 150) -> tuple[float, float]:
    """The gap before and after T* is trained for P_* alone, on the test cases."""
    torch.manual_seed(0)
    stem, names = InputMap(3, channels), BRATS.modality_names
    anchor, present = (
        MixtureAnchor(names, initial={}),
        {name: torch.ones(1, dtype=torch.bool) for name in names},
    )
    optimizer, heads, found = torch.optim.Adam(stem.parameters(), 1e-2), list(cohort.heads(1)), []
    for step in range(steps):
        image, _, brain = heads[step % len(heads)]
        latents = stem(image[0][:, None]).split(1)
        loss = anchor(dict(zip(names, latents, strict=True)), present, brain)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return statistics.mean(found[: len(heads)]), statistics.mean(found[-len(heads) :])


def averaged(run: Path) -> Backbone:
    """The network that a run deploys."""
    state = load_checkpoint(run)
    network = build_network(*state["network"])
    network.load_state_dict(state["average"])
    return network.eval()


def trained(recipe: Recipe, run: Path, cohort: Cohort, **options) -> tuple[Backbone, float]:
    """Train unless it is done; returns the network and the CPU seconds that it took now."""
    run.parent.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    train(
        recipe, BRATS, cohort.sampler(recipe.seed), run, device="cpu", precision="fp32", **options
    )
    return averaged(run), time.process_time() - began


@cache
def teacher_of(arm: str, seed: int, root: Path, cohort: Cohort) -> tuple[Path, dict]:
    """A teacher's run, and its Dice from all scans and gap."""
    run = root / "runs" / f"teacher-{arm.replace('*', 's').replace(' ', '')}-{seed}"
    network, spent = trained(replace(TEACHERS[arm], seed=seed), run, cohort)
    return run, {"dice": scores(network, cohort), "gap": gap(network, cohort), "cpu": spent}


def protokd(arm: str, subset: str, seed: int, root: Path, cohort: Cohort) -> dict:
    """Train (a teacher and) a student of one set of scans, and score it."""
    options = {**VNET, "inputs": [BRATS.index(name) for name in subset.split("+")]}
    recipe = replace(STUDENT, seed=seed, network_options=options)
    run = root / "runs" / f"protokd-{arm.replace('*', 's').replace(' ', '')}-{subset}-{seed}"
    source, taught = teacher_of("none" if arm == "alone" else arm, seed, root, cohort)
    weights = {"output": 0.0, "prototype": 0.0} if arm == "alone" else {}
    recipe = replace(recipe, objective="protokd", objective_options=weights)
    network, spent = trained(recipe, run, cohort, teacher=load_teacher(source, recipe, BRATS))
    shown = {} if arm == "alone" else {"teacher": taught["dice"], "gap": taught["gap"]}
    return {"dice": scores(network, cohort), **shown, "cpu": spent}


def acn(arm: str, subset: str, seed: int, root: Path, cohort: Cohort) -> dict:
    """Train both paths for one set of scans, and score the student and the full path."""
    recipe = replace(
        CO_TRAINED,
        seed=seed,
        network_options={**VNET, "inputs": [BRATS.index(name) for name in subset.split("+")]},
        objective_options={**CO_TRAINED.objective_options, **FULL[arm]},
        alignment=P_STAR if "P" in arm else {},
    )
    run = root / "runs" / f"acn-{arm.replace('*', 's').replace(' ', '')}-{subset}-{seed}"
    network, spent = trained(recipe, run, cohort)
    objective = make_objective(recipe, BRATS)
    objective.load_state_dict(load_checkpoint(run)["objective"])
    path = objective.aligned().eval()
    return {
        "dice": scores(network, cohort),
        "teacher": scores(path, cohort),
        "gap": gap(path, cohort),
        "cpu": spent,
    }


def table(root: Path) -> str:
    """Mean ± SD over seeds in percent, the paired difference to the method without T*, and the gaps."""
    results = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((root / "results").glob("*.json"))
    ]
    lines = []
    for name, (arms, subsets) in METHODS.items():
        own = {
            (r["arm"], r["subset"], r["seed"]): r
            for r in results
            if r["method"] == name.split("-")[0]
        }
        own = {key: r for key, r in own.items() if key[0] in arms and key[1] in subsets}
        seeds = sorted({seed for _, _, seed in own})
        seeds = [
            s for s in seeds if all((arm, subset, s) in own for arm in arms for subset in subsets)
        ]
        lines += [
            "",
            f"**{name}**",
            "",
            "| scans | " + " | ".join(arms) + " |",
            "|---|" + "--:|" * len(arms),
        ]
        value = {key: 100 * statistics.mean(r["dice"].values()) for key, r in own.items()}
        for subset in subsets:
            cells = [_mean_sd([value[arm, subset, s] for s in seeds]) for arm in arms]
            lines.append(f"| {subset} | " + " | ".join(cells) + " |")
        mean = {
            (a, s): statistics.mean(value[a, subset, s] for subset in subsets)
            for a in arms
            for s in seeds
        }
        rows = {
            "mean": [_mean_sd([mean[arm, s] for s in seeds]) for arm in arms],
            "against none, per seed": [
                ", ".join(f"{mean[a, s] - mean['none', s]:+.1f}" for s in seeds) for a in arms
            ],
        }
        shown = {
            a: [own[a, t, s] for t in subsets for s in seeds if "teacher" in own[a, t, s]]
            for a in arms
        }
        taught = {a: [100 * statistics.mean(r["teacher"].values()) for r in shown[a]] for a in arms}
        rows["teacher or full path, all scans"] = [_mean_sd(taught[arm]) for arm in arms]
        rows["gap"] = [_mean_sd([r["gap"] for r in shown[arm]], 2) for arm in arms]
        lines += [f"| {head} | " + " | ".join(cells) + " |" for head, cells in rows.items()]
        lines += [
            "",
            f"{len(seeds)} seeds; {sum(r['cpu'] for r in own.values()):.0f} s of CPU for the students.",
        ]
    return "\n".join(lines)


def _mean_sd(values: list[float], digits: int = 1) -> str:
    if not values:
        return "–"
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}"


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
    parser.add_argument(
        "--least", action="store_true", help="what alignment alone can do to the gap"
    )
    options = parser.parse_args()
    if options.table:
        print(table(options.folder))
        return
    torch.set_num_threads(1)
    began = time.monotonic()
    (options.folder / "results").mkdir(parents=True, exist_ok=True)
    cohort = Cohort(options.folder)
    if options.least:
        before, after = least_gap(cohort, STEM["channels"])
        print(f"T* trained for alignment alone: gap {before:.2f} -> {after:.2f}")
        return
    jobs = [
        (method, arm, subset, seed)
        for method in options.methods
        for seed in options.seeds
        for subset in METHODS[method][1]
        for arm in METHODS[method][0]
    ]
    for name, arm, subset, seed in jobs:
        method = name.split("-")[0]
        path = (
            options.folder
            / "results"
            / f"{method}-{arm.replace('*', 's').replace(' ', '')}-{subset}-{seed}.json"
        )
        if path.exists():
            continue
        if time.monotonic() - began > 60 * options.minutes:
            print("time is up; call again to go on")
            return
        run = {"protokd": protokd, "acn": acn}[method]
        result = run(arm, subset, seed, options.folder, cohort)
        path.write_text(
            json.dumps({"method": method, "arm": arm, "subset": subset, "seed": seed, **result})
        )
        print(
            path.stem,
            {k: round(100 * v, 1) for k, v in result["dice"].items()},
            round(result["cpu"], 1),
            flush=True,
        )


if __name__ == "__main__":
    main()
