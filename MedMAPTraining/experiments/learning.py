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
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from learning_costs import print_costs
from learning_methods import (
    ALL,
    COHORT_SPACING,
    RUNTIME,
    STEPS,
    TEST_PATIENTS,
    TRAINING_PATIENTS,
    methods,
)
from shared import (
    Job,
    mean_dice,
    mean_sd,
    quiet,
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
from medmap.resampling import resample_nearest, to_grid
from medmap.task import BRATS
from medmap.volume import Grid

FINE_TUNING_STEPS = 400
SPLIT = Path(__file__).resolve().parents[1] / "recipes/splits/learning.json"
FLOOR = 0.60


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
