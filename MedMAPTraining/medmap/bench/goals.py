"""The goals for speed, each measured as one ratio from one run (``medmap bench goals``).

Every figure compares two measurements of the same minutes on the same machine, so that a loaded or
a slow machine changes both of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from medmap.bench.inference import bench_infer, bench_subsets, write_patient
from medmap.bench.measure import Cost, isolated, timed
from medmap.bench.training import TrainingRow, bench_training
from medmap.bundle.loading import load_bundle
from medmap.devices import computes_bf16
from medmap.errors import MedMAPError, UsageError
from medmap.inference import segment
from medmap.io.nifti import read_scans, write_labels
from medmap.preprocess import prepare

Progress = Callable[[str], None]

CASES_PER_CORE = 6
"""Cases of the cohort that scaling is measured with. A worker's start costs about one case: with
few of them its start is measured, not the cohort."""


@dataclass(frozen=True)
class Goal:
    """One figure and what it should be.

    Attributes:
        title: what was measured.
        figure: as text, with its unit.
        target: as text.
        is_met: whether the figure reaches the target; None where it could not be measured.
        note: the measurements that the figure comes from.
    """

    title: str
    figure: str
    target: str
    is_met: bool | None
    note: str = ""


@dataclass(frozen=True)
class GoalSetup:
    """What the goals are measured with.

    Attributes:
        files: scans of one patient by modality.
        bundle: folder of the bundle.
        repeats: timed runs of each measurement of inference.
        steps: timed steps of each way of training.
        patch: side of the training patches, in voxels.
        network: backbone of the training steps, with its options.
    """

    files: Mapping[str, Path]
    bundle: Path
    repeats: int = 3
    steps: int = 5
    patch: int = 80
    network: tuple[str, dict] = ("mmFormer", {})


def measure_goals(
    scans: Mapping[str, Path] | None,
    bundle: Path,
    *,
    names: Sequence[str] = (),
    repeats: int = 3,
    steps: int = 5,
    progress: Progress = lambda text: None,
) -> list[Goal]:
    """Measure some goals, or all of them.

    Args:
        scans: files of one patient by modality; None makes a synthetic patient.
        bundle: folder of the bundle.
        names: some of ``GOALS``; none means all.
        repeats, steps: see ``GoalSetup``.
        progress: called with a line before each measurement.

    Raises:
        UsageError: a goal is unknown.
    """
    unknown = [name for name in names if name not in GOALS]
    if unknown:
        raise UsageError(f"The goal '{unknown[0]}' is unknown.", f"Use some of {', '.join(GOALS)}.")
    goals = []
    with tempfile.TemporaryDirectory() as folder:
        files = scans or write_patient(Path(folder))
        setup = GoalSetup(files, bundle, repeats, steps)
        for name in names or GOALS:
            progress(name)
            goals += GOALS[name](setup)
    return goals


def goals_table(goals: Sequence[Goal]) -> Table:
    """The goals as a table for a terminal."""
    threads = torch.get_num_threads()
    table = Table(
        title="Goals for speed", caption=f"CPU, {threads} thread(s). Ratios come from one run each."
    )
    for column in ("goal", "figure", "target", "", "measured"):
        table.add_column(column)
    marks = {True: "met", False: "not met", None: "–"}
    for goal in goals:
        table.add_row(goal.title, goal.figure, goal.target, marks[goal.is_met], goal.note)
    return table


def _goal(
    title: str, value: float | None, target: float, unit: str, note: str, *, at_most: bool = False
) -> Goal:
    sign = "≤" if at_most else "≥"
    target_text = f"{sign} {target:g}{unit}"
    if value is None:
        return Goal(title, "–", target_text, None, note)
    is_met = value <= target if at_most else value >= target
    return Goal(title, f"{value:.3g}{unit}", target_text, is_met, note)


def _wall_note(cost: Cost) -> str:
    """Seconds on the wall, or why there are none."""
    return cost.failure or f"{cost.seconds:.2f} s"


def _cpu_note(costs: Sequence[Cost]) -> str:
    """The measurements behind a ratio, or why there are none."""
    texts = []
    for cost in costs:
        texts.append(cost.failure or f"{cost.cpu_seconds:.2f} CPU-s")
    return ", ".join(texts)


def _speed(setup: GoalSetup) -> list[Goal]:
    """One scan and all scans against the published way; memory of the latter."""
    count = len(setup.files)
    one, several, published = bench_infer(
        setup.files,
        setup.bundle,
        present=(1, count),
        schemes=("ours", "published"),
        repeats=setup.repeats,
    )
    return [
        _goal(
            "one scan against the published way",
            published.ratio(one),
            100,
            "×",
            _cpu_note([one, published]),
        ),
        _goal(
            f"{count} scans against the published way",
            published.ratio(several),
            40,
            "×",
            _cpu_note([several, published]),
        ),
        _goal(
            f"peak memory, {count} scans",
            several.peak_mib,
            500,
            " MiB",
            "libraries included",
            at_most=True,
        ),
    ]


def _subsets(setup: GoalSetup) -> list[Goal]:
    one, every = bench_subsets(setup.files, setup.bundle, repeats=setup.repeats)
    note = f"{_cpu_note([every, one])}; {every.note}"
    title = "all subsets against one segmentation of all scans"
    return [_goal(title, every.ratio(one), 2.0, "×", note, at_most=True)]


def _preparing(setup: GoalSetup) -> list[Goal]:
    cost = isolated("preparing", _prepare, dict(setup.files), setup.bundle, setup.repeats)
    note = cost.failure or f"reading, cropping, normalizing, resampling {len(setup.files)} files"
    return [_goal("preparing a case", cost.cpu_seconds, 0.5, " CPU-s", note, at_most=True)]


def _prepare(files: Mapping[str, Path], bundle: Path, repeats: int) -> Cost:
    loaded = load_bundle(bundle)

    def work() -> None:
        volumes = read_scans(files)
        prepare(volumes, loaded.task, loaded.preprocess, multiple=loaded.stride)

    return timed("preparing", work, "cpu", repeats)


def _cold(setup: GoalSetup) -> list[Goal]:
    """A command that starts cold, without what importing PyTorch and computing take in it."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["segment", "--prepare", "never", "--bundle", str(setup.bundle)]
        for name, path in setup.files.items():
            command += [f"--{name}", str(path)]
        seconds = []
        imports = []
        computing = []
        for number in range(setup.repeats):
            output = ["--output", str(Path(folder) / f"cold-{number}")]
            seconds.append(_process_seconds(["-m", "medmap", *command, *output]))
            imports.append(_process_seconds(["-c", "import torch"]))
            cost = isolated("computing", _first_run, dict(setup.files), setup.bundle)
            computing.append(cost.cpu_seconds or 0.0)
    import_seconds = min(imports)
    overhead = min(seconds) - import_seconds - min(computing)
    note = (
        f"{min(seconds):.2f} s in all, import torch {import_seconds:.2f} s, "
        f"computing {min(computing):.2f} s"
    )
    title = "cold medmap segment, without import torch and computing"
    return [_goal(title, overhead, 0.7, " s", note, at_most=True)]


def _first_run(files: Mapping[str, Path], bundle: Path) -> Cost:
    """From files to labels, the first time in a process."""
    loaded = load_bundle(bundle)

    def work() -> None:
        volumes = read_scans(files)
        result = segment(volumes, loaded)
        with tempfile.TemporaryDirectory() as folder:
            write_labels(Path(folder) / "labels.nii.gz", result.labels, result.grid)

    return timed("computing", work, "cpu", 1, warm_up=False)


def _process_seconds(arguments: Sequence[str]) -> float:
    """Seconds of a Python process; of the processor's time where the system says it of children."""
    command = [sys.executable, *arguments]
    if not hasattr(os, "wait4"):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - started
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime


def _training(setup: GoalSetup) -> list[Goal]:
    """Steps of our way with bf16 where the CPU computes it, against the published way in fp32."""
    precision = "fp32"
    if computes_bf16(torch.device("cpu")):
        precision = "bf16"
    network, options = setup.network
    rows = bench_training(
        ("plain", "PASSION"),
        network=network,
        network_options=options,
        patch=setup.patch,
        batch=1,
        precision=precision,
        workers=0,
        device="cpu",
        steps=setup.steps,
    )
    by_way: dict[tuple[str, str], TrainingRow] = {(row.method, row.way): row for row in rows}
    plain = by_way["plain", "ours"]
    published = by_way["plain", "published"]
    passion = by_way["PASSION", "ours"]
    note = f"{plain.seconds:.2f} s in {precision}, published {published.seconds:.2f} s"
    passion_note = f"{passion.seconds:.2f} s and {plain.seconds:.2f} s in {precision}"
    return [
        _goal(
            f"training step, {network} {setup.patch}³, against the published way",
            published.seconds / plain.seconds,
            4.0,
            "×",
            note,
        ),
        _goal(
            "PASSION step against plain",
            passion.seconds / plain.seconds,
            2.0,
            "×",
            passion_note,
            at_most=True,
        ),
    ]


def _scaling(setup: GoalSetup) -> list[Goal]:
    """Wall clock with one core and with all of them: of one case, and of a cohort."""
    cores = _usable_cores()
    targets = {"one case": 0.75 * cores, "cohort": 0.9 * cores}
    if cores < 2:
        note = "this process may use one core only"
        return [_goal(f"{name} on 2 cores", None, 1.5, "×", note) for name in targets]
    arguments = (dict(setup.files), setup.bundle, setup.repeats)
    single = isolated("one thread", _threads, 1, *arguments)
    several = isolated("all threads", _threads, cores, *arguments)
    cases = CASES_PER_CORE * cores
    cohort_single = _cohort_seconds(setup, 1, cases)
    cohort_several = _cohort_seconds(setup, cores, cases)
    case_speed = None
    if single.seconds and several.seconds:
        case_speed = single.seconds / several.seconds
    return [
        _goal(
            f"one case on {cores} cores against one",
            case_speed,
            targets["one case"],
            "×",
            f"{_wall_note(single)}, {_wall_note(several)}",
        ),
        _goal(
            f"cohort of {cases} on {cores} cores against one",
            cohort_single / cohort_several,
            targets["cohort"],
            "×",
            f"{cohort_single:.1f} s, {cohort_several:.1f} s",
        ),
    ]


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads(threads: int, files: Mapping[str, Path], bundle: Path, repeats: int) -> Cost:
    torch.set_num_threads(threads)
    loaded = load_bundle(bundle)

    def work() -> None:
        volumes = read_scans(files)
        segment(volumes, loaded)

    return timed(f"{threads} threads", work, "cpu", repeats)


def _cohort_seconds(setup: GoalSetup, workers: int, cases: int) -> float:
    """Seconds on the wall of ``medmap segment-cohort`` over copies of the patient."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "cohort.csv"
        rows = [",".join(["case", *setup.files])]
        for number in range(cases):
            paths = [str(path.resolve()) for path in setup.files.values()]
            rows.append(",".join([f"case-{number}", *paths]))
        table.write_text("\n".join(rows) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "medmap", "segment-cohort", str(table)]
        command += ["--output", str(Path(folder) / "results"), "--workers", str(workers)]
        command += ["--bundle", str(setup.bundle), "--device", "cpu"]
        # One thread a worker: what is compared are one core and several of them.
        environment = dict(os.environ, OMP_NUM_THREADS=str(workers))
        started = time.perf_counter()
        subprocess.run(
            command,
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - started


def _without_failure(measure: Callable[[GoalSetup], list[Goal]]) -> Callable:
    """A measurement that fails becomes a row: one of them must not end the table."""

    def safely(setup: GoalSetup) -> list[Goal]:
        try:
            return measure(setup)
        except (MedMAPError, subprocess.CalledProcessError, RuntimeError, MemoryError) as error:
            title = measure.__name__.strip("_")
            return [Goal(title, "–", "", None, str(error).splitlines()[0])]

    return safely


GOALS: dict[str, Callable[[GoalSetup], list[Goal]]] = {
    "speed": _without_failure(_speed),
    "subsets": _without_failure(_subsets),
    "preparing": _without_failure(_preparing),
    "cold": _without_failure(_cold),
    "training": _without_failure(_training),
    "scaling": _without_failure(_scaling),
}
"""Name on the command line -> measurement."""
