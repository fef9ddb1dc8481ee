"""``medmap evaluate`` and ``medmap compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

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

if TYPE_CHECKING:
    from medmap.evaluation import PairedTest, Summary
    from medmap.evaluation.tables import Statistics
    from medmap.task import Task


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
            help="Folder for scores, tables and pictures; a stopped evaluation resumes there.",
        ),
    ] = None,
    split: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help='Split file: {"train": [...], "val": [...], "test": [...]}, '
            "CSV (case, part), or val.txt."
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
        str, typer.Option(help="Description of the data, for the table.")
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
    """Score every modality subset on a cohort: Dice, HD95 and volumes, in tables as in papers."""
    from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle

    options = EvaluateOptions(
        output=output,
        table=table,
        split=split,
        part=part,
        against=against,
        data_statement=data_statement,
        update_card=update_card,
        limits=limits,
        pictures=pictures,
        overwrite=overwrite,
        device=device,
    )
    with showing_progress() as report, interrupts() as cancel:
        result = evaluate_bundle(data, bundle, options, report, cancel)
    if result.scoring:
        err.print(result.scoring, soft_wrap=True, markup=False)
    for warning in result.warnings:
        err.print(f"warning: {warning}", soft_wrap=True, markup=False)
    _print_summary(result.task, result.summary)
    if result.tests:
        _print_tests(result.tests, "this bundle", "the other")


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
        typer.Option(
            help="dice or hd95_mm; dice_rule, hd95_rule_mm: after the minimum-volume rule."
        ),
    ] = "dice",
) -> None:
    """Compare two evaluations of the same cases: paired tests with effect sizes.

    p-values are corrected for the number of tests; differences have confidence intervals.
    """
    from medmap.commands.evaluation import compare_evaluations
    from medmap.errors import UsageError
    from medmap.evaluation.significance import METRICS

    if metric not in METRICS:
        raise UsageError(
            f"'{metric}' is not a score to compare.", f"Use one of {', '.join(METRICS)}."
        )
    tests, _ = compare_evaluations(ours, theirs, output, metric)
    _print_tests(tests, "A", "B", metric)


def _print_summary(task: Task, summary: Summary) -> None:
    columns = _columns(task, summary)
    cohort = f"{summary.cases} cases"
    if summary.part:
        cohort += f", part {summary.part}"
    grid = Table(title=f"Mean ± SD over {cohort}: {summary.data}")
    grid.add_column("modalities")
    for _, _, heading in columns:
        grid.add_column(heading, justify="right")
    for subset in summary.dice.subsets:
        cells = _cells(summary, columns, "subsets", subset)
        grid.add_row(task.subset_title(subset), *cells)
    grid.add_section()
    for name, scores in summary.dice.averages.items():
        subsets = scores[task.regions[0].name].subsets
        cells = _cells(summary, columns, "averages", name)
        grid.add_row(f"mean, {name} ({subsets})", *cells)
    grid.add_section()
    out.print(grid)
    for region, counts in summary.empty.items():
        if counts.any:
            out.print(f"{region}: {counts.sentence}", soft_wrap=True)
    out.print(summary.rules, soft_wrap=True)


def _columns(task: Task, summary: Summary) -> list[tuple[str, str, str]]:
    """Score, region and heading of every column."""
    columns = []
    for score, title in (("dice", "Dice"), ("hd95", "HD95 mm")):
        for region in task.regions:
            columns.append((score, region.name, f"{title} {region.name}"))
        for region in task.regions:
            if region.name in summary.least_mm3:
                columns.append((f"{score}_rule", region.name, f"{title} {region.name}, rule"))
    return columns


def _cells(
    summary: Summary, columns: Sequence[tuple[str, str, str]], kind: str, row: str
) -> list[str]:
    cells = []
    for score, region, _ in columns:
        statistics = getattr(summary.tables[score], kind)[row][region]
        if score.startswith("hd95"):
            cells.append(_distance(statistics))
        else:
            cells.append(f"{statistics.mean:.3f} ± {statistics.sd:.3f}")
    return cells


def _distance(score: Statistics) -> str:
    if score.mean is None:
        return "–"
    if score.sd is None or score.n < 2:
        return f"{score.mean:.1f}"
    return f"{score.mean:.1f} ± {score.sd:.1f}"


SCORE_TITLES = {
    "dice": "Dice",
    "dice_rule": "Dice, rule",
    "hd95_mm": "HD95 in mm",
    "hd95_rule_mm": "HD95 in mm, rule",
}


def _print_tests(tests: Sequence[PairedTest], ours: str, theirs: str, metric: str = "dice") -> None:
    from medmap.evaluation.significance import METHOD

    grid = Table(title=f"Paired tests of {SCORE_TITLES[metric]}: {ours} against {theirs}")
    grid.add_column("modalities")
    for heading in (
        "region",
        "cases",
        f"mean {ours}",
        f"mean {theirs}",
        "difference (95 % CI)",
        "effect size",
        "p",
        "p (Holm)",
        "p (BH)",
        "cases better/worse",
    ):
        grid.add_column(heading, justify="right")
    for number, test in enumerate(tests):
        if number and test.kind != tests[number - 1].kind:
            grid.add_section()
        grid.add_row(
            test.unit,
            test.region,
            str(test.cases),
            f"{test.mean_a:.3f}",
            f"{test.mean_b:.3f}",
            f"{test.difference:+.3f} ({test.low:+.3f} to {test.high:+.3f})",
            f"{test.effect:+.2f}",
            _p_text(test.p),
            _p_text(test.p_holm),
            _p_text(test.p_bh),
            f"{test.better}/{test.worse}",
        )
    out.print(grid)
    out.print(METHOD, soft_wrap=True)


def _p_text(p: float) -> str:
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}"
