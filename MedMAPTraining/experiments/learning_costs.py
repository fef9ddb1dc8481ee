"""What the trainings of ``learning.py`` cost, from a few steps of each."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from learning_methods import COHORT_SPACING, RUNTIME, STEPS, TEST_PATIENTS, methods
from shared import quiet, synthetic_cohort, table_head, table_row

from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle
from medmap.commands.training import train_bundle
from medmap.commands.training_options import TrainOptions

TIMING_PATIENTS = 2
SHORT_STEPS = 2
LONG_STEPS = 12


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
