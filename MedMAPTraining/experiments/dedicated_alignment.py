"""Does alignment help dedicated methods? ProtoKD and ACN on synthetic patients.

    python MedMAPTraining/experiments/dedicated_alignment.py FOLDER [--seeds 0 1 2] [--minutes 6]
    python MedMAPTraining/experiments/dedicated_alignment.py FOLDER --table
    python MedMAPTraining/experiments/dedicated_alignment.py FOLDER --least

Each without alignment, with T*, and with T* and P_*. ProtoKD: a teacher of all modalities, aligned
or not, then a student for each subset; ``alone`` is the student with the same loss but without
distillation. ACN: the full path aligned or not, trained with the student. Equal budget: all
variants of a method have the same cases, steps, patches and student. A seed sets weights and
patches; the patients are the same for all seeds. Complete volumes are scored in windows as large as
the patches; Dice is the mean of WT, TC and ET.

``gap``: P_*'s distance with equal weights between the normalized latents of the test cases (0 for
equal, 0.75 for unrelated ones). ``--least``: what remains of it when T* is trained for alignment
only, on the test cases. Finished runs are kept: run the same command again to resume.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shared import (
    Job,
    in_percent,
    mean_sd,
    read_results,
    resumable_parser,
    run_missing,
    synthetic_cohort,
    table_head,
    table_row,
)
from torch.nn.functional import pad

from medmap.commands.dedicated import load_teacher
from medmap.io.cohorts import find_cases
from medmap.metrics import dice
from medmap.networks import Backbone, build_network
from medmap.networks.stem import InputMap
from medmap.preprocess import PreprocessSpec
from medmap.sliding_window import gaussian_weight, window_boxes
from medmap.task import BRATS
from medmap.training.alignment import MixtureAnchor
from medmap.training.cache import cache_case
from medmap.training.checkpoint import require_checkpoint
from medmap.training.dataset import Augmentation, PatchSampler
from medmap.training.loop import train
from medmap.training.missingness import full
from medmap.training.recipe import Recipe
from medmap.training.setup import make_objective

SPACING = 4.0
COHORTS = {"train": (24, 7000), "test": (14, 9000)}
"""Number of patients and first seed."""
MIN_TUMOR_FRACTION = 0.008
"""Patients whose tumor fills less of the head's box are left out: a few voxels at this spacing."""
PATCH = (20, 20, 20)
CHANNELS = 4
STEM = {"at": "input", "channels": CHANNELS}
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
ALL_SUBSETS = tuple("+".join(subset) for subset in BRATS.table_order())
METHODS = {
    "protokd": (("none", "T* + P_*"), ALL_SUBSETS),
    "acn": (("none", "T* + P_*"), ALL_SUBSETS),
    "protokd-arms": (("alone", "none", "T*", "T* + P_*"), ("flair", "t1ce")),
}
"""By name: the variants and the subsets. The last one shares its runs with the first."""


class Cohort:
    """The synthetic patients, generated and prepared once."""

    def __init__(self, root: Path):
        self.folders: dict[str, list[Path]] = {}
        for part, (number, seed) in COHORTS.items():
            folder = synthetic_cohort(root / part, number, seed, SPACING)
            cache_folder = root / f"cache-{part}"
            cache_folder.mkdir(exist_ok=True)
            self.folders[part] = []
            for case in find_cases(folder, BRATS):
                cached = cache_case(case, BRATS, COMMON.preprocess, cache_folder)
                label = np.load(cached / "label.npy")
                tumor_fraction = (label > 0).mean()
                if tumor_fraction >= MIN_TUMOR_FRACTION:
                    self.folders[part].append(cached)

    def sampler(self, seed: int) -> PatchSampler:
        """Patches of the training cases."""
        return PatchSampler(self.folders["train"], full(BRATS), seed, COMMON.augmentation)

    def test_cases(self, stride: int) -> Iterator[tuple[torch.Tensor, np.ndarray, torch.Tensor]]:
        """Each test case, padded to a multiple of the stride.

        Yields:
            Image [1, 4, D, H, W], class indices [D, H, W] and brain mask [1, D, H, W].
        """
        for folder in self.folders["test"]:
            scans = [np.load(folder / f"{name}.npy") for name in BRATS.modality_names]
            image = np.stack(scans)
            label = np.load(folder / "label.npy")
            brain = np.load(folder / "brain.npy")
            depth, height, width = (-size % stride for size in label.shape)
            # Pairs of front and back from the last axis to the first, as torch wants them.
            padding = [0, width, 0, height, 0, depth]
            padded_image = pad(torch.from_numpy(image), padding)
            padded_label = pad(torch.from_numpy(label), padding)
            padded_brain = pad(torch.from_numpy(brain), padding)
            yield padded_image.float()[None], padded_label.numpy(), padded_brain.bool()[None]


@torch.inference_mode()
def scores(network: Backbone, cohort: Cohort) -> dict[str, float]:
    """Mean Dice of each region over the test cases."""
    values: dict[str, list[float]] = {region.name: [] for region in BRATS.regions}
    network.eval()
    for image, label, _ in cohort.test_cases(network.stride):
        predicted = segmented(network, image[0])
        for region, dice_values in values.items():
            classes = BRATS.region_classes(region)
            mask = np.isin(predicted, classes)
            reference = np.isin(label, classes)
            dice_values.append(dice(mask, reference))
    return {region: statistics.mean(dice_values) for region, dice_values in values.items()}


def segmented(network: Backbone, image: torch.Tensor) -> np.ndarray:
    """[4, D, H, W] -> [D, H, W] class indices, by overlapping windows in one batch."""
    boxes = window_boxes(image.shape[1:], PATCH, 0.25, network.stride)
    windows = torch.stack([image[(slice(None), *box)] for box in boxes])
    present = torch.ones(len(boxes), 4, dtype=torch.bool)
    logits = network(windows, present).logits
    total = torch.zeros(BRATS.num_classes, *image.shape[1:])
    weight = gaussian_weight(PATCH)
    for box, window in zip(boxes, logits, strict=True):
        total[(slice(None), *box)] += weight * window
    return total.argmax(0).numpy()


def _all_available() -> dict[str, torch.Tensor]:
    """Every modality of a batch of one."""
    return {name: torch.ones(1, dtype=torch.bool) for name in BRATS.modality_names}


@torch.inference_mode()
def gap(network: Backbone, cohort: Cohort) -> float:
    """Distance between the normalized stem latents of the four modalities.

    Without a stem it is that of the modalities themselves.
    """
    anchor = MixtureAnchor(BRATS.modality_names, initial={})
    distances = []
    for image, _, brain in cohort.test_cases(network.stride):
        latents = {}
        for m, name in enumerate(BRATS.modality_names):
            channel = image[:, m : m + 1]
            if "stem" in network.provides:
                latents[name] = network.encode(channel, m)[0]
            else:
                latents[name] = channel
        distance = anchor(latents, _all_available(), brain)
        distances.append(float(distance))
    return statistics.mean(distances)


def least_gap(cohort: Cohort, channels: int, steps: int = 150) -> tuple[float, float]:
    """The gap before and after T* is trained for P_* only, on the test cases."""
    torch.manual_seed(0)
    names = BRATS.modality_names
    stem = InputMap(3, channels)
    anchor = MixtureAnchor(names, initial={})
    optimizer = torch.optim.Adam(stem.parameters(), 1e-2)
    cases = list(cohort.test_cases(1))
    losses = []
    for step in range(steps):
        image, _, brain = cases[step % len(cases)]
        # One modality is one sample of the stem, which all of them share.
        latents = stem(image[0][:, None]).split(1)
        by_name = dict(zip(names, latents, strict=True))
        loss = anchor(by_name, _all_available(), brain)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    count = len(cases)
    before = statistics.mean(losses[:count])
    after = statistics.mean(losses[-count:])
    return before, after


def averaged(run: Path) -> Backbone:
    """The network that a run deploys."""
    state = require_checkpoint(run)
    network = build_network(*state["network"])
    network.load_state_dict(state["average"])
    return network.eval()


def trained(recipe: Recipe, run: Path, cohort: Cohort, **options) -> tuple[Backbone, float]:
    """Train unless it is done; returns the network and the CPU seconds that it took now."""
    run.parent.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    sampler = cohort.sampler(recipe.seed)
    train(recipe, BRATS, sampler, run, device="cpu", precision="fp32", **options)
    network = averaged(run)
    cpu_seconds = time.process_time() - started
    return network, cpu_seconds


def slug(arm: str) -> str:
    """A variant's name in names of files."""
    return arm.replace("*", "s").replace(" ", "")


@cache
def teacher_of(arm: str, seed: int, root: Path, cohort: Cohort) -> tuple[Path, dict]:
    """A teacher's run, and its Dice from all modalities and gap."""
    name = f"teacher-{slug(arm)}-{seed}"
    run = root / "runs" / name
    recipe = replace(TEACHERS[arm], seed=seed)
    network, cpu_seconds = trained(recipe, run, cohort)
    figures = {
        "dice": scores(network, cohort),
        "gap": gap(network, cohort),
        "cpu": cpu_seconds,
    }
    return run, figures


def _student_options(subset: str) -> dict:
    """Options of a network with the subset's modalities as its inputs."""
    return {**VNET, "inputs": [BRATS.index(name) for name in subset.split("+")]}


def protokd(arm: str, subset: str, seed: int, root: Path, cohort: Cohort) -> dict:
    """Train (a teacher and) a student of one modality subset, and score it."""
    without_teacher = arm == "alone"
    weights = {"output": 0.0, "prototype": 0.0} if without_teacher else {}
    recipe = replace(
        STUDENT,
        seed=seed,
        network_options=_student_options(subset),
        objective="protokd",
        objective_options=weights,
    )
    teacher_arm = "none" if without_teacher else arm
    teacher_run, teacher_figures = teacher_of(teacher_arm, seed, root, cohort)
    teacher = load_teacher(teacher_run, recipe, BRATS)
    run = root / "runs" / f"protokd-{slug(arm)}-{subset}-{seed}"
    network, cpu_seconds = trained(recipe, run, cohort, teacher=teacher)
    result: dict[str, Any] = {"dice": scores(network, cohort)}
    if not without_teacher:
        result["teacher"] = teacher_figures["dice"]
        result["gap"] = teacher_figures["gap"]
    result["cpu"] = cpu_seconds
    return result


def acn(arm: str, subset: str, seed: int, root: Path, cohort: Cohort) -> dict:
    """Train both paths for one modality subset, and score the student and the full path."""
    recipe = replace(
        CO_TRAINED,
        seed=seed,
        network_options=_student_options(subset),
        objective_options={**CO_TRAINED.objective_options, **FULL[arm]},
        alignment=P_STAR if "P" in arm else {},
    )
    run = root / "runs" / f"acn-{slug(arm)}-{subset}-{seed}"
    network, cpu_seconds = trained(recipe, run, cohort)
    objective = make_objective(recipe, BRATS)
    objective.load_state_dict(require_checkpoint(run)["objective"])
    full_path = objective.aligned().eval()
    return {
        "dice": scores(network, cohort),
        "teacher": scores(full_path, cohort),
        "gap": gap(full_path, cohort),
        "cpu": cpu_seconds,
    }


TRAINERS = {"protokd": protokd, "acn": acn}


def run_method(method: str, arm: str, subset: str, seed: int, root: Path, cohort: Cohort) -> dict:
    """One result, with what it is of."""
    result = TRAINERS[method](arm, subset, seed, root, cohort)
    return {"method": method, "arm": arm, "subset": subset, "seed": seed, **result}


def table(root: Path) -> str:
    """Mean ± SD over seeds in percent, paired differences to no alignment, and the gaps."""
    results = read_results(root)
    lines = []
    for name, (arms, subsets) in METHODS.items():
        method = name.split("-")[0]
        chosen = {}
        for result in results:
            in_table = result["arm"] in arms and result["subset"] in subsets
            if result["method"] == method and in_table:
                chosen[result["arm"], result["subset"], result["seed"]] = result
        lines += ["", f"**{name}**", "", *_method_table(arms, subsets, chosen)]
    return "\n".join(lines)


Results = dict[tuple[str, str, int], dict]
"""(variant, subset, seed) -> result."""


def _complete_seeds(arms: Sequence[str], subsets: Sequence[str], results: Results) -> list[int]:
    """Seeds with a result of every variant and subset."""
    seeds = []
    for seed in sorted({seed for _, _, seed in results}):
        is_complete = True
        for arm, subset in product(arms, subsets):
            is_complete = is_complete and (arm, subset, seed) in results
        if is_complete:
            seeds.append(seed)
    return seeds


def _percent(dice_of_regions: dict[str, float]) -> float:
    return 100 * statistics.mean(dice_of_regions.values())


def _method_table(arms: Sequence[str], subsets: Sequence[str], results: Results) -> list[str]:
    seeds = _complete_seeds(arms, subsets, results)
    dice_percent = {key: _percent(result["dice"]) for key, result in results.items()}
    lines = table_head(["modalities", *arms])
    for subset in subsets:
        cells = [subset]
        for arm in arms:
            cells.append(mean_sd([dice_percent[arm, subset, seed] for seed in seeds]))
        lines.append(table_row(cells))
    lines += _summary_rows(arms, subsets, seeds, results)
    cpu_seconds = sum(result["cpu"] for result in results.values())
    return [*lines, "", f"{len(seeds)} seeds; {cpu_seconds:.0f} s of CPU for the students."]


def _summary_rows(
    arms: Sequence[str], subsets: Sequence[str], seeds: Sequence[int], results: Results
) -> list[str]:
    """Means over the subsets, differences to no alignment, teachers, and gaps."""
    means = {}
    for arm, seed in product(arms, seeds):
        percents = [_percent(results[arm, subset, seed]["dice"]) for subset in subsets]
        means[arm, seed] = statistics.mean(percents)
    mean_cells = ["mean"]
    difference_cells = ["against none, per seed"]
    teacher_cells = ["teacher or full path, all modalities"]
    gap_cells = ["distance between modalities (gap)"]
    for arm in arms:
        mean_cells.append(mean_sd([means[arm, seed] for seed in seeds]))
        # Seeds pair the trainings: their differences vary less than their scores.
        differences = [means[arm, seed] - means["none", seed] for seed in seeds]
        difference_cells.append(", ".join(f"{value:+.1f}" for value in differences))
        with_teacher = []
        for subset, seed in product(subsets, seeds):
            result = results[arm, subset, seed]
            if "teacher" in result:
                with_teacher.append(result)
        teacher_percent = [_percent(result["teacher"]) for result in with_teacher]
        teacher_cells.append(mean_sd(teacher_percent))
        gap_cells.append(mean_sd([result["gap"] for result in with_teacher], 2))
    all_cells = (mean_cells, difference_cells, teacher_cells, gap_cells)
    return [table_row(cells) for cells in all_cells]


def describe(result: dict) -> str:
    """A result in a line."""
    return f"{in_percent(result['dice'])} {result['cpu']:.1f} CPU s"


def main() -> None:
    """The command line."""
    parser = resumable_parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument(
        "--least", action="store_true", help="train T* for alignment only and print the gap"
    )
    options = parser.parse_args()
    if options.table:
        print(table(options.folder))
        return
    torch.set_num_threads(1)
    cohort = Cohort(options.folder)
    if options.least:
        before, after = least_gap(cohort, CHANNELS)
        print(f"T* trained for alignment only: gap {before:.2f} -> {after:.2f}")
        return
    jobs = _jobs(options.methods, options.seeds, options.folder, cohort)
    run_missing(options.folder, jobs, options.minutes, describe)


def _jobs(names: Sequence[str], seeds: Sequence[int], root: Path, cohort: Cohort) -> Iterator[Job]:
    for name in names:
        arms, subsets = METHODS[name]
        method = name.split("-")[0]
        # Seeds outermost: an interrupted experiment has complete seeds.
        for seed, subset, arm in product(seeds, subsets, arms):
            compute = partial(run_method, method, arm, subset, seed, root, cohort)
            yield Job(f"{method}-{slug(arm)}-{subset}-{seed}", compute)


if __name__ == "__main__":
    main()
