"""Every network and objective learns to a Dice: phantoms with one budget, then patients.

    python MedMAPTraining/experiments/learning.py FOLDER --cost
    python MedMAPTraining/experiments/learning.py FOLDER [--seeds 0 1] [--minutes 60]
    python MedMAPTraining/experiments/learning.py FOLDER --table
    python MedMAPTraining/experiments/learning.py FOLDER --methods UHVED --steps 1600
    python MedMAPTraining/experiments/learning.py FOLDER --cases CASES [--split SPLIT.json]

``--cost`` lists what all of it takes, from a few steps of every training and the scoring of a case;
nothing is kept. Look at it first. ``--methods`` chooses some; ``--steps`` tells whether one that
stays below the floor needs more of them, beside the results with the budget of all.
Networks have their full contract at reduced width; cases, steps and patches are the same for all.
Trainings are in bf16 on CPUs that compute it, which takes a quarter to half of the time of fp32.
With ``--cases``, trainings begin with the weights that the phantoms gave, on the part ``train`` of
the split, and are scored on ``test``. Methods with a network for each subset start anew, since
their bundles cannot be begun with. ``medmap compare`` tests two of the evaluations.
Finished runs are kept: run the same command again to resume.
The floor is a Dice of .60 of WT from four modalities; the table marks what stays below.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from shared import (
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

from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle
from medmap.commands.training import train_bundle
from medmap.commands.training_options import BundleOptions, TrainOptions
from medmap.evaluation import read_rows
from medmap.io.atomic import atomic_folder
from medmap.io.cohorts import find_cases
from medmap.io.labels import read_case_labels
from medmap.io.nifti import write_volume
from medmap.preprocess import PreprocessSpec
from medmap.resampling import resample_nearest, to_grid
from medmap.tables.settings import SMALL_NETWORKS
from medmap.task import BRATS
from medmap.training.options import RuntimeOptions
from medmap.training.recipe import Recipe, WindowedInference
from medmap.volume import Grid

COHORT_SPACING = 3.0
"""Voxels of the phantoms, in mm."""
SPACING = 4.0
"""Voxels that networks see, in mm. Scores are taken on the phantoms' own grid."""
TRAINING_PATIENTS = 24
TEST_PATIENTS = 8
TIMING_PATIENTS = 2
SHORT_STEPS = 2
LONG_STEPS = 12
STEPS = 800
FINE_TUNING_STEPS = 400
PATCH = (32, 32, 32)
"""12.8 cm, most of a brain: 13 networks take an hour of one core. Instance normalization takes its
statistics over the patch, so that a network is scored in windows of its patch."""
SPLIT = Path(__file__).resolve().parents[1] / "recipes/splits/learning.json"
FLOOR = 0.60
ALL = "t1+t1ce+t2+flair"
SUBSETS = ("t1ce", ALL)
"""Of dedicated methods, which train a network for each."""

BASE = Recipe(
    objective="sls",
    missingness="random-subset",
    steps=STEPS,
    patch=PATCH,
    large_share=0.0,
    learning_rate=5e-3,
    preprocess=PreprocessSpec(spacing=SPACING),
    objective_options={"class_weighted": False},
    # As the compared papers do it: windows as large as the patch that the network learned from.
    inference=WindowedInference(),
)
RUNTIME = RuntimeOptions(device="cpu", precision="auto")
BY_COST = (
    "SubsetUNet",
    "VNet",
    "MCKD",
    "UNet",
    "SegResNet",
    "UHeMIS",
    "ShaSpec",
    "GatedUNet",
    "UHVED",
    "mmFormer",
    "RFNet",
    "M2FTrans",
    "RobustMSeg",
)
"""Networks, the cheapest first."""
ATTENTION = {"mlp_width": 64, "window": PATCH[0]}
SIZES: dict[str, dict] = {
    # With a level less, attention has eight times the tokens and takes most of a step.
    "M2FTrans": {"widths": [8, 16, 16, 16], **ATTENTION},
    "mmFormer": {"widths": [8, 16, 32, 32], "token_width": 32, **ATTENTION},
    # An eighth, twice the rehearsal's, stayed at a WT of .36: too few channels at half resolution.
    "MCKD": {"width": 0.25},
    "ShaSpec": {"width": 0.25},
}
"""Options of networks for which twice the width of a rehearsal is not the right size."""
PASSION = {"variant": "released", "class_weighted": False}
FIXED = {"rates": {"t1": 0.2, "t1ce": 0.4, "flair": 0.6, "t2": 0.8}, "seed": 0}


@dataclass(frozen=True)
class Method:
    """A training: its recipe, and the method whose bundle is its teacher."""

    recipe: Recipe
    teacher: str = ""


def methods() -> dict[str, Method]:
    """Every network with its own losses, then objectives on the networks that they are for.

    The cheapest networks come first.
    """
    methods_by_name: dict[str, Method] = {}
    for network in BY_COST:
        options = wider(SMALL_NETWORKS.get(network, {"widths": [8, 16, 24]}))
        options |= SIZES.get(network, {})
        recipe = replace(BASE, network=network, network_options=options)
        if network in ("UNet", "VNet", "SegResNet"):
            recipe = replace(
                recipe,
                objective="plain",
                objective_options={},
                missingness="full",
                subsets=(ALL,),
            )
        methods_by_name[network] = Method(recipe)
    for network in ("SubsetUNet", "RFNet", "mmFormer", "M2FTrans"):
        idt = replace(
            methods_by_name[network].recipe, missingness="fixed", missingness_options=FIXED
        )
        methods_by_name[f"{network}-imbalanced"] = Method(idt)
        passion = replace(idt, objective="passion", objective_options=PASSION)
        methods_by_name[f"{network}-passion"] = Method(passion)
    for network in ("SubsetUNet", "mmFormer"):
        recipe = methods_by_name[network].recipe
        aligned = replace(
            recipe,
            network_options={**recipe.network_options, "stem": {"at": "mod_bottleneck"}},
            alignment={"anchor": "mixture", "tap": "mod_bottleneck"},
        )
        methods_by_name[f"{network}-aligned"] = Method(aligned)
    distilled = replace(
        methods_by_name["MCKD"].recipe,
        objective="mckd",
        missingness_options={"by": "cardinality"},
        held_out_cases=3,
    )
    methods_by_name["MCKD-distilled"] = Method(distilled)
    # The same cases and subsets, so that the distillation is all that differs.
    undistilled = replace(
        distilled, objective_options={**distilled.objective_options, "alpha": 0.0}
    )
    methods_by_name["MCKD-undistilled"] = Method(undistilled)
    student = replace(BASE, objective_options={}, missingness="full", subsets=SUBSETS)
    for name, objective, network in (
        ("kd-net", "kd-net", "UNet"),
        ("pmkl", "pmkl", "UNet"),
        ("protokd", "protokd", "VNet"),
    ):
        recipe = replace(
            student,
            objective=objective,
            network=network,
            network_options=methods_by_name[network].recipe.network_options,
        )
        methods_by_name[name] = Method(recipe, teacher=network)
    for objective in ("acn", "smu-net"):
        recipe = replace(
            student,
            objective=objective,
            objective_options={"discriminator_width": 8},
            network="SegResNet",
            network_options={
                **methods_by_name["SegResNet"].recipe.network_options,
                "style": objective == "smu-net",
            },
        )
        methods_by_name[objective] = Method(recipe)
    return methods_by_name


def wider(options: dict) -> dict:
    """Small options at twice the width, where networks have ``widths`` or ``width``."""
    doubled = dict(options)
    for name in ("widths", "width"):
        value = doubled.get(name)
        if isinstance(value, list):
            doubled[name] = [2 * width for width in value]
        elif value is not None:
            doubled[name] = 2 * value
    return doubled


@dataclass(frozen=True)
class Study:
    """What the trainings have in common.

    Attributes:
        folder: of all results.
        cases: folder of patients, whose networks begin with those of the phantoms; None: phantoms.
        split: of the patients.
        steps: of a training.
    """

    folder: Path
    cases: Path | None = None
    split: Path | None = None
    steps: int = STEPS

    @property
    def results(self) -> Path:
        """Folder of the results, for ``run_missing``."""
        if self.cases:
            return self.folder / "patient-results"
        return self.folder / f"phantom-results{self._suffix}"

    @property
    def runs(self) -> Path:
        """Folder of runs, bundles and evaluations."""
        if self.cases:
            return self.folder / "patients"
        return self.folder / f"phantoms{self._suffix}"

    @property
    def _suffix(self) -> str:
        if self.steps == STEPS:
            return ""
        return f"-{self.steps}"

    def pretrained(self, name: str, seed: int) -> Path:
        """The phantoms' bundle of a method."""
        return self.folder / "phantoms" / f"{name}-{seed}" / "bundle"

    def cohorts(self) -> tuple[Path, Path]:
        """Cases to train and to test on; of patients, the split says which are which."""
        if self.cases:
            coarse = coarse_cohort(self.cases, self.folder / "coarse")
            return coarse, coarse
        training = synthetic_cohort(self.folder / "train", TRAINING_PATIENTS, 7000, COHORT_SPACING)
        test = synthetic_cohort(self.folder / "test", TEST_PATIENTS, 9000, COHORT_SPACING)
        return training, test


def coarse_cohort(cases: Path, folder: Path) -> Path:
    """The labeled cases with every modality, on the phantoms' voxels: averaged, labels nearest.

    Scoring 15 subsets at 1 mm would take longer than the trainings. Written once.
    """
    if folder.is_dir():
        return folder
    with atomic_folder(folder) as staging:
        for case in find_cases(cases, BRATS):
            if not case.label or set(case.scans) != set(BRATS.modality_names):
                continue
            destination = staging / case.case_id
            destination.mkdir()
            labels = read_case_labels(case, BRATS)
            target = coarser(labels.grid)
            path = destination / f"{case.case_id}_seg.nii.gz"
            coarse_labels = resample_nearest(labels.array, labels.grid, target)
            write_volume(path, coarse_labels.astype("int16"), target.affine)
            for name, volume in case.read(BRATS.modality_names).items():
                array = to_grid(volume.array, volume.grid, target).numpy()
                path = destination / f"{case.case_id}_{name}.nii.gz"
                write_volume(path, array, target.affine)
    return folder


def coarser(grid: Grid) -> Grid:
    """The grid's box with the phantoms' voxels."""
    factor = COHORT_SPACING / grid.spacing
    affine = grid.affine.copy()
    affine[:3, :3] *= factor
    # Centers of the first voxels: the box begins half a voxel before them.
    affine[:3, 3] = grid.world(((factor - 1) / 2)[None])[0]
    shape = [int(size) for size in np.ceil(np.array(grid.shape) / factor)]
    return Grid((shape[0], shape[1], shape[2]), affine)


def train_and_score(study: Study, name: str, seed: int) -> dict:
    """One result: CPU seconds and mean Dice by subset and region."""
    method = methods()[name]
    folder = study.runs / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = replace(method.recipe, seed=seed, steps=study.steps)
    begins = None
    if study.cases:
        recipe = replace(
            recipe, steps=FINE_TUNING_STEPS, learning_rate=1e-3, split=str(study.split)
        )
        # A bundle of several networks cannot be begun with: dedicated methods start anew.
        if len(recipe.subsets) < 2:
            begins = study.pretrained(name, seed)
    training, test = study.cohorts()
    path = folder / "recipe.json"
    path.write_text(json.dumps(asdict(recipe)), encoding="utf-8")
    teacher = None
    if method.teacher:
        teacher = study.runs / f"{method.teacher}-{seed}" / "bundle"
    options = TrainOptions(
        recipe=path,
        teacher=teacher,
        start=begins,
        runtime=RUNTIME,
        bundle=BundleOptions(name=name),
    )
    started = time.process_time()
    train_bundle(folder / "run", training, folder / "bundle", options, quiet)
    seconds = time.process_time() - started
    part = "test" if study.cases else None
    scoring = EvaluateOptions(
        output=folder / "evaluation",
        split=study.split,
        part=part,
        pictures=False,
        device="cpu",
    )
    evaluate_bundle(test, folder / "bundle", scoring, quiet)
    rows = read_rows(folder / "evaluation" / "scores.csv")
    return {"method": name, "seed": seed, "cpu_seconds": seconds, "dice": mean_dice(rows)}


def quiet(fraction: float, text: str) -> None:
    """Progress that nobody reads."""


@dataclass(frozen=True)
class Cost:
    """What a method takes, in CPU seconds.

    Attributes:
        step: of a training step of one network.
        case: of scoring one case in every modality subset.
        networks: that the method trains.
    """

    step: float
    case: float
    networks: int

    def minutes(self, steps: int, cases: int, seeds: int) -> float:
        """CPU minutes of all trainings and their scoring."""
        training = self.step * steps * self.networks
        return seeds * (training + self.case * cases) / 60


def measured_cost(name: str, data: Path, folder: Path, teacher: Path | None) -> Cost:
    """Time ten steps of a training, and the scoring of one case.

    The difference of two trainings leaves out what does not grow with the steps: preparing cases
    and building the network. A first one, which also loads libraries, is not counted.
    """
    method = methods()[name]
    seconds = []
    for steps in (1, SHORT_STEPS, LONG_STEPS):
        run = folder / f"{name}-{steps}"
        started = time.process_time()
        train_bundle(
            run, data, folder / f"{name}-{steps}-bundle", timing(name, run, steps, teacher), quiet
        )
        seconds.append(time.process_time() - started)
    networks = max(1, len(method.recipe.subsets))
    step = max(0.0, seconds[2] - seconds[1]) / (LONG_STEPS - SHORT_STEPS) / networks
    started = time.process_time()
    scoring = EvaluateOptions(output=folder / f"{name}-scores", pictures=False, device="cpu")
    evaluate_bundle(data, folder / f"{name}-{LONG_STEPS}-bundle", scoring, quiet)
    case = (time.process_time() - started) / TIMING_PATIENTS
    return Cost(step, case, networks)


def timing(name: str, run: Path, steps: int, teacher: Path | None) -> TrainOptions:
    """Options of a training of so many steps of a method on the few cases of a timing."""
    recipe = replace(methods()[name].recipe, steps=steps)
    if recipe.missingness == "fixed":
        # Of a modality that most cases lack, none of the few would have it.
        recipe = replace(recipe, missingness="random-subset", missingness_options={})
    if recipe.held_out_cases:
        recipe = replace(recipe, held_out_cases=1)
    run.mkdir(parents=True)
    path = run.with_suffix(".json")
    path.write_text(json.dumps(asdict(recipe)), encoding="utf-8")
    return TrainOptions(recipe=path, teacher=teacher, runtime=RUNTIME)


def print_costs(root: Path, names: Sequence[str], seeds: int) -> None:
    """Measure and print what each training takes, and all of them together.

    Students are timed with their teachers, which are counted where they are among ``names``. MCKD's
    meta passes come every hundredth step, and are not in the few that are timed: twenty forward
    passes, about a tenth more.
    """
    torch.set_num_threads(1)
    data = synthetic_cohort(root / "timing", TIMING_PATIENTS, 5000, COHORT_SPACING)
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        for name in names:
            teacher = methods()[name].teacher
            if teacher and teacher not in costs:
                costs[teacher] = measured_cost(teacher, data, folder, None)
            if name not in costs:
                bundle = folder / f"{teacher}-{LONG_STEPS}-bundle" if teacher else None
                costs[name] = measured_cost(name, data, folder, bundle)
            print(f"{name}: {costs[name].step:.2f} s a step", file=sys.stderr, flush=True)
    lines = table_head(["method", "networks", "s a step", "s a case", "CPU min"])
    total = 0.0
    for name in names:
        cost = costs[name]
        minutes = cost.minutes(STEPS, TEST_PATIENTS, seeds)
        total += minutes
        cells = [cost.networks, f"{cost.step:.2f}", f"{cost.case:.1f}", f"{minutes:.0f}"]
        lines.append(table_row([name, *cells]))
    print("\n".join(lines))
    print(f"All, {STEPS} steps and {seeds} seeds: {total / 60:.1f} CPU hours.")


def results_by_method(root: Path, names: Sequence[str]) -> dict[str, list[dict]]:
    """Finished runs of each of the methods, one a seed; methods without any are left out."""
    results = read_results(root)
    by_method = {}
    for name in names:
        of_method = [result for result in results if result["method"] == name]
        if of_method:
            by_method[name] = of_method
    return by_method


def table(root: Path, names: Sequence[str]) -> str:
    """Dice of WT, TC and ET from four modalities and over all subsets, mean ± SD over seeds."""
    headings = ["method", "WT", "TC", "ET", "mean of its subsets", "seeds", "CPU s", ""]
    lines = table_head(headings)
    for name, of_method in results_by_method(root, names).items():
        cells = [name]
        for region in ("WT", "TC", "ET"):
            cells.append(mean_sd([100 * result["dice"][ALL][region] for result in of_method]))
        means = []
        for result in of_method:
            values = [v for regions in result["dice"].values() for v in regions.values()]
            means.append(100 * sum(values) / len(values))
        cells.append(mean_sd(means))
        cells.append(str(len(of_method)))
        cells.append(f"{sum(result['cpu_seconds'] for result in of_method) / len(of_method):.0f}")
        lowest = min(result["dice"][ALL]["WT"] for result in of_method)
        cells.append("below the floor" if lowest < FLOOR else "")
        lines.append(table_row(cells))
    return "\n".join(lines)


def subset_table(root: Path, names: Sequence[str]) -> str:
    """Dice of WT, a row for each modality subset and a column for each method, mean over seeds.

    A dash where the method has no network for the subset.
    """
    by_method = results_by_method(root, names)
    lines = table_head(["modalities", *by_method])
    for subset in BRATS.table_order():
        key = BRATS.subset_key(subset)
        cells = [BRATS.subset_title(subset)]
        for of_method in by_method.values():
            dice = [
                100 * result["dice"][key]["WT"] for result in of_method if key in result["dice"]
            ]
            if dice:
                cells.append(f"{statistics.mean(dice):.0f}")
            else:
                cells.append("–")
        lines.append(table_row(cells))
    return "\n".join(lines)


def describe(result: dict) -> str:
    """A result in a line."""
    wt = result["dice"][ALL]["WT"]
    return f"WT from four modalities {wt:.2f}, {result['cpu_seconds']:.0f} CPU s"


def main() -> None:
    """The command line."""
    parser = resumable_parser(__doc__)
    parser.set_defaults(seeds=[0, 1])
    parser.add_argument("--cost", action="store_true", help="list what all of it takes")
    parser.add_argument("--methods", nargs="+", default=list(methods()), choices=methods())
    parser.add_argument("--cases", type=Path, help="folder of patients")
    parser.add_argument("--split", type=Path, default=SPLIT, help="split of the patients")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a training on phantoms")
    options = parser.parse_args()
    split = options.split if options.cases else None
    study = Study(options.folder, options.cases, split, options.steps)
    if options.cost:
        print_costs(options.folder, options.methods, len(options.seeds))
        return
    if options.table:
        print(table(study.results, options.methods))
        print()
        print(subset_table(study.results, options.methods))
        return
    jobs = []
    for seed in options.seeds:
        for name in options.methods:
            jobs.append(Job(f"{name}-{seed}", partial(train_and_score, study, name, seed)))
    run_missing(study.results, jobs, options.minutes, describe)


if __name__ == "__main__":
    main()
