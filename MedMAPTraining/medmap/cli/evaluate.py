"""``medmap evaluate`` and ``medmap compare``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from medmap.bundle.card import NOT_STATED
from medmap.cli.base import (
    Affine,
    AssumeOrientation,
    BundleOption,
    Device,
    Overwrite,
    app,
    err,
    interrupts,
    out,
    showing_progress,
)
from medmap.cli.tables import print_table
from medmap.errors import UsageError

if TYPE_CHECKING:
    from medmap.commands.calibration import RegionCalibration
    from medmap.evaluation import PairedTest, Summary
    from medmap.evaluation.scoring import FurtherScores
    from medmap.evaluation.tables import Statistics
    from medmap.task import Task


Labels = Annotated[
    str,
    typer.Option(
        help="With --predictions: the reference labels, in a folder of label maps or in a cohort "
        "as --data takes it. Else the convention of the label files, as --label-convention."
    ),
]
Convention = Annotated[
    str,
    typer.Option(
        "--label-convention",
        help="brats2012, brats2017, brats2023, brats2024, brats-ped, msd, or task (the task's own "
        "values) [default: recognized by the names of the cases].",
    ),
]
Lesions = Annotated[
    str,
    typer.Option(
        metavar="CHALLENGE",
        help="Lesion-wise Dice and HD95 by the rule of BraTS-GLI, -SSA, -PED, -MEN or -MET, and "
        "the normalized surface distance. Label maps: BraTS-GLI unless given.",
    ),
]
Split = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help='Split file: {"train": [...], "val": [...], "test": [...]}, '
        "CSV (case, part), or val.txt; or the name of a published split (brats2018_protokd)."
    ),
]
Part = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Part of the split: choose models on val, score test once [default: val]."),
]
Predictions = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="Score the label maps of this folder, made by any program, instead of a bundle."
    ),
]


@app.command()
def evaluate(
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of cases in the layout of the bundle's task, with labels."),
    ] = None,
    bundle: BundleOption = None,
    predictions: Predictions = None,
    labels: Labels = "",
    convention: Convention = "",
    task: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Task of the label maps: a name of medmap task list or a file; "
            "with --predictions.",
        ),
    ] = "BraTS",
    subset: Annotated[
        str,
        typer.Option(
            help="Modalities that the label maps were made from, such as t1ce+flair; with "
            "--predictions [default: all]."
        ),
    ] = "",
    lesions: Lesions = "",
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Tolerance of the normalized surface distance, in mm.")
    ] = 1.0,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--output",
            "-o",
            help="Folder for scores, tables and pictures; a stopped evaluation resumes there.",
        ),
    ] = None,
    split: Split = None,
    part: Part = None,
    feed: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="MODALITY=OTHER: give the bundle OTHER's image in the place of MODALITY, such as "
            "t1=t2; repeatable."
        ),
    ] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="Fold of a split with folds.")] = None,
    cross_validate: Annotated[
        bool,
        typer.Option(
            "--cross-validate",
            help="Score the validation part of every fold with the ensemble's member that was not "
            "trained on it; needs --split with folds.",
        ),
    ] = False,
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
    ] = NOT_STATED,
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
    affine: Affine = None,
    assume_orientation: AssumeOrientation = False,
) -> None:
    """Score every modality subset on a cohort: Dice, HD95 and volumes, in tables as in papers.

    With --predictions and --labels, the label maps of any program are scored instead.
    """
    from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle
    from medmap.commands.exchanged_images import parse_feed
    from medmap.training.published import find_split

    if predictions is not None:
        _refuse_options_of_bundles(
            {
                "data": data,
                "bundle": bundle,
                "split": split,
                "part": part,
                "feed": feed,
                "fold": fold,
                "cross-validate": cross_validate or None,
                "against": against,
                "update-card": update_card or None,
                "limits": limits or None,
                "affine": affine,
                "assume-orientation": assume_orientation or None,
            }
        )
        _evaluate_maps(
            _MapArguments(
                predictions=predictions,
                labels=labels,
                convention=convention,
                task=task,
                subset=subset,
                lesions=lesions or "BraTS-GLI",
                tolerance=tolerance,
                output=output,
                table=table,
                data_statement=data_statement,
                overwrite=overwrite,
            )
        )
        return
    if data is None:
        raise UsageError(
            "Neither cases nor label maps were given.",
            "Give --data FOLDER, or --predictions FOLDER --labels FOLDER.",
        )
    if subset:
        raise UsageError(
            "--subset is of no use without --predictions.",
            "Leave it out: every modality subset of a bundle is scored.",
        )
    options = EvaluateOptions(
        output=output,
        table=table,
        split=find_split(split) if split else None,
        part=part,
        feed=parse_feed(feed or []),
        fold=fold,
        cross_validate=cross_validate,
        against=against,
        data_statement=data_statement,
        update_card=update_card,
        limits=limits,
        pictures=pictures,
        overwrite=overwrite,
        device=device,
        further=_further(lesions, tolerance),
        labels=convention or labels,
        affine=affine,
        assume_orientation=assume_orientation,
    )
    with showing_progress() as report, interrupts() as cancel:
        result = evaluate_bundle(data, bundle, options, report, cancel)
    if result.scoring:
        err.print(result.scoring, soft_wrap=True, markup=False)
    if result.labels:
        err.print(f"labels: {result.labels}", soft_wrap=True, markup=False)
    for warning in result.warnings:
        err.print(f"warning: {warning}", soft_wrap=True, markup=False)
    _print_summary(result.task, result.summary)
    if result.tests:
        _print_tests(result.tests, ("this bundle", str(against)))


@dataclass(frozen=True)
class _MapArguments:
    """Options of ``medmap evaluate`` that label maps have."""

    predictions: Path
    labels: str
    convention: str
    task: str
    subset: str
    lesions: str
    tolerance: float
    output: Path | None
    table: Path | None
    data_statement: str
    overwrite: bool


def _refuse_options_of_bundles(options: Mapping[str, object]) -> None:
    """Refuse options that label maps do not have.

    They would be ignored. ``options`` by name, None where an option is not given.
    """
    for name, value in options.items():
        if value is not None:
            raise UsageError(
                f"--{name} is of no use with --predictions.",
                "Leave it out; a bundle is scored in a command of its own.",
            )


def _further(lesions: str, tolerance: float) -> FurtherScores:
    from medmap.evaluation.lesions import find_lesion_rule
    from medmap.evaluation.scoring import FurtherScores

    if not lesions:
        return FurtherScores()
    return FurtherScores(find_lesion_rule(lesions), tolerance)


def _evaluate_maps(arguments: _MapArguments) -> None:
    """Score the label maps of a folder and print the tables."""
    from medmap.commands.label_maps import MapOptions, score_maps
    from medmap.task import find_task

    if not arguments.labels:
        raise UsageError("No reference labels were given.", "Give their folder with --labels.")
    task = find_task(arguments.task)
    names: tuple[str, ...] = ()
    if arguments.subset:
        names = tuple(task.find(word) for word in arguments.subset.split("+"))
    options = MapOptions(
        output=arguments.output,
        table=arguments.table,
        subset=names,
        further=_further(arguments.lesions, arguments.tolerance),
        data_statement=arguments.data_statement,
        overwrite=arguments.overwrite,
        convention=arguments.convention,
    )
    with showing_progress() as report, interrupts() as cancel:
        result = score_maps(
            arguments.predictions, Path(arguments.labels), task, options, report, cancel
        )
    for warning in result.warnings:
        err.print(f"warning: {warning}", soft_wrap=True, markup=False)
    err.print(f"labels: {result.labels}", soft_wrap=True, markup=False)
    _print_summary(task, result.summary)
    _print_calibration(result.calibration)
    out.print(
        f"Lesion-wise scores by the rule of {arguments.lesions}; NSD at "
        f"{arguments.tolerance:g} mm.",
        soft_wrap=True,
    )


def _print_calibration(calibration: Mapping[str, RegionCalibration]) -> None:
    """Calibration and QU-BraTS scores, where there are probabilities."""
    if not calibration:
        return
    rows = []
    for region, result in calibration.items():
        scores = result.uncertainty
        values = (
            result.expected_calibration_error,
            scores.dice_auc,
            scores.ftp_auc,
            scores.ftn_auc,
            scores.score,
        )
        rows.append([region, str(result.cases), *(f"{value:.3f}" for value in values)])
    headings = ["region", "cases", "ECE", "Dice AUC", "FTP AUC", "FTN AUC", "QU-BraTS"]
    print_table("Calibration of the probabilities, and their uncertainty", headings, rows)


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
            help="dice or hd95_mm; dice_rule, hd95_rule_mm: after the minimum-volume rule; "
            "lesion_dice, lesion_hd95_mm, nsd where both evaluations have them."
        ),
    ] = "dice",
) -> None:
    """Compare two evaluations of the same cases: paired tests with effect sizes, and a verdict.

    p-values are corrected for the number of tests; differences have confidence
    intervals. The CSV file of --output has further columns: uncorrected and
    Benjamini-Hochberg p, cases better and worse.
    """
    from medmap.commands.comparison import compare_evaluations
    from medmap.evaluation.significance import METRICS

    if metric not in METRICS:
        raise UsageError(
            f"'{metric}' is not a score to compare.", f"Use one of {', '.join(METRICS)}."
        )
    tests, _ = compare_evaluations(ours, theirs, output, metric)
    _print_tests(tests, (str(ours), str(theirs)), metric)


def _print_summary(task: Task, summary: Summary) -> None:
    cohort = _cases_text(summary.cases)
    if summary.part:
        cohort += f", part {summary.part}"
    if summary.data != NOT_STATED:
        cohort += f": {summary.data}"
    for score, title in SCORE_TITLES.items():
        if score in summary.tables:
            _print_score(task, summary, score, f"{title}, mean ± SD over {cohort}")
    if summary.borrowed:
        out.print(summary.borrowed_note, soft_wrap=True)
    for region, counts in summary.empty.items():
        if counts.any:
            out.print(f"{region}: {counts.sentence}", soft_wrap=True)
    out.print(summary.rules, soft_wrap=True)


def _print_score(task: Task, summary: Summary, score: str, title: str) -> None:
    """The table of one score, with the scores after the minimum-volume rule beside it."""
    columns = [(score, region.name, region.name) for region in task.regions]
    if f"{score}_rule" in summary.tables:
        for region in task.regions:
            if region.name in summary.least_mm3:
                columns.append((f"{score}_rule", region.name, f"{region.name}, rule"))
    table = summary.tables[score]
    rows: list[list[str] | None] = []
    for subset in table.subsets:
        name = _short(task.subset_title(subset)) + summary.mark(subset)
        rows.append([name, *_cells(summary, columns, "subsets", subset)])
    rows.append(None)
    for average, scores in table.averages.items():
        subsets = scores[task.regions[0].name].subsets
        name = f"{average} ({subsets})"
        rows.append([name, *_cells(summary, columns, "averages", average)])
    print_table(title, ["modalities", *(heading for _, _, heading in columns)], rows)


def _short(title: str) -> str:
    """A subset without blanks, which saves the columns of a terminal."""
    return title.replace(" + ", "+")


def _cells(
    summary: Summary, columns: Sequence[tuple[str, str, str]], kind: str, row: str
) -> list[str]:
    cells = []
    for score, region, _ in columns:
        rows = getattr(summary.tables[score], kind)
        digits = 3
        if score.endswith(("hd95", "_mm", "_ml", "hd95_rule")):
            digits = 1
        cells.append(_mean_and_sd(rows[row][region], digits))
    return cells


def _mean_and_sd(score: Statistics, digits: int) -> str:
    """Mean and standard deviation; the latter is not defined for a single case."""
    if score.mean is None:
        return "–"
    mean = f"{score.mean:.{digits}f}"
    if score.sd is None or score.n < 2:
        return mean
    return f"{mean} ± {score.sd:.{digits}f}"


SCORE_TITLES = {
    "dice": "Dice",
    "hd95": "HD95 in mm",
    "lesion_dice": "Lesion-wise Dice",
    "lesion_hd95_mm": "Lesion-wise HD95 in mm",
    "nsd": "Normalized surface distance",
    "volume_error_ml": "Volume error in ml (prediction minus reference)",
}
"""Title of each score's table; scores after the minimum-volume rule stand in the same table."""

METRIC_TITLES = {
    "dice": "Dice",
    "dice_rule": "Dice, rule",
    "hd95_mm": "HD95 in mm",
    "hd95_rule_mm": "HD95 in mm, rule",
    "lesion_dice": "lesion-wise Dice",
    "lesion_hd95_mm": "lesion-wise HD95 in mm",
    "nsd": "normalized surface distance",
}


def _print_tests(tests: Sequence[PairedTest], names: tuple[str, str], metric: str = "dice") -> None:
    """Averages and single subsets, and the verdict; every other figure is in the CSV file."""
    from medmap.evaluation.significance import METHOD, verdict

    digits = 1 if metric.endswith("_mm") else 3
    rows: list[list[str] | None] = []
    for number, test in enumerate(tests):
        if number and test.kind != tests[number - 1].kind:
            rows.append(None)
        rows.append(_test_row(test, digits))
    headings = ["modalities", "", "A", "B", "A - B (95 % CI)", "effect", "p Holm"]
    title = f"Paired tests of {METRIC_TITLES[metric]} on {_cases_text(tests[0].cases)}"
    print_table(title, headings, rows, keys=2)
    out.print(METHOD, soft_wrap=True)
    out.print(f"A: {names[0]}", soft_wrap=True, markup=False)
    out.print(f"B: {names[1]}", soft_wrap=True, markup=False)
    out.print(f"Verdict: {verdict(tests, metric)}", soft_wrap=True, markup=False)


def _test_row(test: PairedTest, digits: int) -> list[str]:
    difference = f"{test.difference:+.{digits}f}"
    if not math.isnan(test.low):
        difference += f" ({test.low:+.{digits}f}, {test.high:+.{digits}f})"
    return [
        _short(test.unit),
        test.region,
        f"{test.mean_a:.{digits}f}",
        f"{test.mean_b:.{digits}f}",
        difference,
        f"{test.effect:+.2f}",
        _p_text(test.p_holm),
    ]


def _cases_text(count: int) -> str:
    return "1 case" if count == 1 else f"{count} cases"


def _p_text(p: float) -> str:
    if p < 0.001:
        return "<0.001"
    return f"{p:.3f}"
