"""What the experiments have in common: synthetic cohorts, runs that can be resumed, tables."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medmap.commands.phantoms import write_phantoms
from medmap.evaluation.scoring import ScoreRow

REGIONS = ("WT", "TC", "ET")

DiceBySubset = dict[str, dict[str, float]]
"""subset -> region -> Dice, 0..1."""


def script_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that prints a script's docstring as it stands."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def resumable_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of experiments that train many runs one after another."""
    parser = script_parser(doc)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--minutes", type=float, default=6, help="start no further run after this many minutes"
    )
    parser.add_argument("--table", action="store_true", help="print the table of finished runs")
    return parser


@dataclass(frozen=True)
class Job:
    """One run of an experiment: the name of its result, and what computes it."""

    name: str
    compute: Callable[[], dict]


def run_missing(
    folder: Path, jobs: Iterable[Job], minutes: float, describe: Callable[[dict], str]
) -> None:
    """Compute the jobs that have no result yet, each into ``results/<name>.json``.

    Args:
        folder: of the experiment.
        jobs: in order.
        minutes: start no further job after so long.
        describe: a result in a line, printed when it is there.
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    results = folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        path = results / f"{job.name}.json"
        if path.exists():
            continue
        if time.monotonic() - started > 60 * minutes:
            print("Time is up; run the same command again to resume.")
            return
        result = job.compute()
        path.write_text(json.dumps(result), encoding="utf-8")
        print(job.name, describe(result), flush=True)


def read_results(folder: Path) -> list[dict]:
    """All finished results, by name."""
    paths = sorted((folder / "results").glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def synthetic_cohort(folder: Path, number: int, seed: int, spacing: float) -> Path:
    """So many synthetic patients with voxels of ``spacing`` mm, generated once."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_phantoms(
            folder,
            number,
            seed,
            spacing,
            healthy=False,
            device="cpu",
            overwrite=False,
            report=lambda fraction, text: None,
        )
    return folder


def mean_dice(rows: Sequence[ScoreRow]) -> DiceBySubset:
    """Mean over cases of every region, by subset."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        regions = values.setdefault(row.subset, {})
        regions.setdefault(row.region, []).append(row.dice)
    means: DiceBySubset = {}
    for subset, regions in sorted(values.items()):
        subset_means = {}
        for region, dice in regions.items():
            subset_means[region] = statistics.mean(dice)
        means[subset] = subset_means
    return means


def mean_sd(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± SD (n - 1) as text; a single value alone, since it has no SD; a dash for no values."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def table_row(cells: Iterable[object]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def table_head(headings: Sequence[str], left: int = 1) -> list[str]:
    """Head of a Markdown table: the first ``left`` columns to the left, the others to the right."""
    alignment = "---|" * left + "--:|" * (len(headings) - left)
    return [table_row(headings), f"|{alignment}"]


def in_percent(dice: dict[str, float], digits: int = 1) -> dict[str, float]:
    """Values in percent, rounded."""
    return {name: round(100 * value, digits) for name, value in dice.items()}


def quiet(fraction: float, text: str) -> None:
    """Progress that nobody reads."""
