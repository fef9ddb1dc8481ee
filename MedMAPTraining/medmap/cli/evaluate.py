"""``medmap evaluate`` and ``medmap compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table

from medmap.cli.base import (
    BundleOption,
    Device,
    Overwrite,
    app,
    err,
    interrupts,
    out,
    showing_progress,
)


@app.command()
def evaluate(
    data: Annotated[
        Path, typer.Option(help="Folder of cases in the layout of the bundle's task, with labels.")
    ],
    bundle: BundleOption = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--output",
            "-o",
            help="Folder for scores, tables and pictures; a stopped evaluation goes on there.",
        ),
    ] = None,
    split: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help='Split file: {"train": [...], "val": [...], "test": [...]}, CSV (case, part), or val.txt.'
        ),
    ] = None,
    part: Annotated[
        str, typer.Option(help="Which part of the split: choose models on val, score test once.")
    ] = "val",
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Another bundle's evaluation of the same cases (its folder): adds paired tests."
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write every score as CSV to this file.")
    ] = None,
    data_statement: Annotated[
        str, typer.Option(help="What the data are, for the table.")
    ] = "not stated",
    update_card: Annotated[
        bool, typer.Option(help="Write the tables into the bundle's card.")
    ] = False,
    limits: Annotated[
        str, typer.Option(help="Known limits, for the card; with --update-card.")
    ] = "",
    pictures: Annotated[
        bool, typer.Option(help="Keep one slice of every case for the report.")
    ] = True,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Score every subset of scans on a cohort: Dice, HD95 and volumes, in tables as papers print them."""
    from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle

    options = EvaluateOptions(
        output,
        table,
        split,
        part,
        against,
        data_statement,
        update_card,
        limits,
        pictures,
        overwrite,
        device,
    )
    with showing_progress() as report, interrupts() as cancel:
        found = evaluate_bundle(data, bundle, options, report, cancel)
    if found.scoring:
        err.print(found.scoring, soft_wrap=True, markup=False)
    for warning in found.warnings:
        err.print(f"warning: {warning}", soft_wrap=True, markup=False)
    _print_summary(found.task, found.summary)
    if found.tests:
        _print_tests(found.tests, "this bundle", "the other")


@app.command()
def compare(
    ours: Annotated[
        Path, typer.Argument(help="Evaluation of A: a folder of medmap evaluate --output.")
    ],
    theirs: Annotated[Path, typer.Argument(help="Evaluation of B on the same cases.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the tests as CSV.")
    ] = None,
    metric: Annotated[
        str,
        typer.Option(help="dice or hd95_mm; dice_rule, hd95_rule_mm: after the small-region rule."),
    ] = "dice",
) -> None:
    """Is A better than B on the same cases? Paired tests, corrected, with effect sizes and confidence intervals."""
    from medmap.commands.evaluation import compare_evaluations
    from medmap.errors import UsageError
    from medmap.evaluation.significance import METRICS

    if metric not in METRICS:
        raise UsageError(
            f"'{metric}' is not a score to compare.", f"Use one of {', '.join(METRICS)}."
        )
    tests, _ = compare_evaluations(ours, theirs, output, metric)
    _print_tests(tests, "A", "B", metric)


def _print_summary(task, summary: dict) -> None:
    regions = [region.name for region in task.regions]
    ruled = [region for region in regions if region in summary["least_mm3"]]
    part = f", part {summary['part']}" if summary["part"] else ""
    grid = Table(title=f"Mean ± SD over {summary['cases']} cases{part}: {summary['data']}")
    grid.add_column("scans")
    for score in ("Dice", "HD95 mm"):
        for name in (*(f"{score} {r}" for r in regions), *(f"{score} {r}, rule" for r in ruled)):
            grid.add_column(name, justify="right")
    for kind in ("subsets", "averages"):
        for name, scores in summary[kind].items():
            words = (
                task.subset_title(name)
                if kind == "subsets"
                else f"mean, {name} ({scores[regions[0]]['subsets']})"
            )
            grid.add_row(
                words,
                *(_mean_sd(scores[r]) for r in regions),
                *(_mean_sd(summary["dice_rule"][kind][name][r]) for r in ruled),
                *(_distance(summary["hd95"][kind][name][r]) for r in regions),
                *(_distance(summary["hd95_rule"][kind][name][r]) for r in ruled),
            )
        grid.add_section()
    out.print(grid)
    for region, counts in summary["empty"].items():
        if any(counts[key] for key in ("reference", "prediction", "emptied_by_rule")):
            out.print(
                f"{region}: absent in the reference of {counts['reference']} cases; {counts['prediction']} of "
                f"{counts['predictions']} predictions found none ({counts['both']} rightly); the rule empties "
                f"{counts['emptied_by_rule']}.",
                soft_wrap=True,
            )
    out.print(summary["rules"], soft_wrap=True)


def _mean_sd(score: dict) -> str:
    return f"{score['mean']:.3f} ± {score['sd']:.3f}"


def _distance(score: dict) -> str:
    if score["mean"] is None:
        return "–"
    spread = "" if score["sd"] is None or score["n"] < 2 else f" ± {score['sd']:.1f}"
    return f"{score['mean']:.1f}{spread}"


def _print_tests(tests, ours: str, theirs: str, metric: str = "dice") -> None:
    from medmap.evaluation.significance import METHOD

    words = {
        "dice": "Dice",
        "dice_rule": "Dice, rule",
        "hd95_mm": "HD95 in mm",
        "hd95_rule_mm": "HD95 in mm, rule",
    }
    grid = Table(title=f"Paired tests of {words[metric]}: {ours} against {theirs}")
    grid.add_column("scans")
    for name in (
        "region",
        "cases",
        ours,
        theirs,
        "difference (95 % CI)",
        "effect",
        "p",
        "Holm",
        "BH",
        "better/worse",
    ):
        grid.add_column(name, justify="right")
    for n, test in enumerate(tests):
        if n and test.kind != tests[n - 1].kind:
            grid.add_section()
        interval = f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f})"
        numbers = (f"{test.mean_a:.3f}", f"{test.mean_b:.3f}", interval, f"{test.effect:+.2f}")
        chances = (_chance(p) for p in (test.p, test.p_holm, test.p_bh))
        verdict = f"{test.better}/{test.worse}"
        grid.add_row(test.unit, test.region, str(test.cases), *numbers, *chances, verdict)
    out.print(grid)
    out.print(METHOD, soft_wrap=True)


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
