"""``medmap table``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from medmap.cli.base import app, err, out, showing_progress

if TYPE_CHECKING:
    from medmap.tables.jobs import Job
    from medmap.tables.options import TableOptions
    from medmap.tables.plan import Plan
    from medmap.training.printed import PrintedTable

Name = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(help="Table, such as journal-1 or passion-3 [default: list them]."),
]
Data = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="Folder of cases, or SET=FOLDER (brats2018, brats2020, myops2020) for tables of "
        "several data sets; repeatable. If a plain folder has a subfolder SET, that is used."
    ),
]
Out = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--out", "-o", help="Folder of runs, bundles, evaluations and the table; resumes there."
    ),
]
Only = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="Only this run, or only the rows with this title; repeatable."),
]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        help="NAME=VALUE in every recipe, such as seed=1, preprocess.scaling=minmax or "
        "split=FILE; repeatable.",
    ),
]
Folds = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        help="FILE or SET=FILE of medmap split: every run is trained and scored for each fold, and "
        "figures are means over folds; repeatable."
    ),
]
Devices = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--device", help="cpu, cuda:0 ... or auto; repeat it for one job on each."),
]


@app.command()
def table(
    name: Name = None,
    *,
    data: Data = None,
    output: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, how long, and what is there.")
    ] = False,
    only: Only = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of every training [default: the recipes'].")
    ] = None,
    settings: Settings = None,
    folds: Folds = None,
    rehearsal: Annotated[
        bool,
        typer.Option(
            "--rehearsal",
            help="Small networks and patches, two steps, any three cases: shows that all of it "
            "runs; figures mean nothing.",
        ),
    ] = False,
    device: Devices = None,
    ray: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster (auto: the one at hand).")
    ] = None,
    precision: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that prepare batches, for each job.")
    ] = None,
) -> None:
    """Train, evaluate and print a paper's table, with its own figures beside ours.

    Without --data the paper's figures are printed, or with --dry-run what would be trained. Rerun
    the same command to resume.
    """
    from medmap.errors import UsageError
    from medmap.tables.build import printed_text
    from medmap.tables.options import TableOptions, parse_data, parse_folds
    from medmap.tables.settings import parse_settings
    from medmap.training.loader import default_workers
    from medmap.training.printed import find_table, printed_tables

    if name is None:
        for entry in printed_tables().values():
            out.print(f"{entry.name:20} {entry.title} ({entry.source})", soft_wrap=True)
        return
    chosen = find_table(name)
    if not data and output is None and not dry_run:
        if not (only or steps or settings or folds or rehearsal):
            out.print(printed_text(chosen), soft_wrap=True, markup=False)
            return
        # A rehearsal of the classification example draws glyphs and tones.
        if not (rehearsal and chosen.kind == "audiovision"):
            raise UsageError(
                f"Nothing of {name} can be trained without data.",
                "Give a folder of cases.",
                option="data",
            )
    devices = tuple(device or ["auto"])
    options = TableOptions(
        data=parse_data(data or []),
        output=output or Path(name),
        only=tuple(only or ()),
        steps=steps,
        settings=parse_settings(settings or []),
        folds=parse_folds(folds or []),
        rehearsal=rehearsal,
        devices=devices,
        ray=ray,
        precision=precision,
        workers=default_workers(devices[0], len(devices)) if workers is None else workers,
    )
    _make(name, options, dry_run)


def _make(name: str, options: TableOptions, dry_run: bool) -> None:
    from medmap.tables.build import build_table
    from medmap.tables.plan import make_plan
    from medmap.training.printed import find_table

    chosen = find_table(name)
    if dry_run and chosen.kind == "audiovision":
        _print_classifiers(chosen, options)
        return
    plan = make_plan(chosen, options)
    if dry_run:
        _print_plan(plan)
        return
    for data_set, runs in plan.without_data.items():
        err.print(f"warning: no folder of {data_set}: {', '.join(runs)}", soft_wrap=True)
    with showing_progress() as report:
        built = build_table(chosen, plan, options, report)
    out.print(built.text, soft_wrap=True, markup=False)
    for path in built.files:
        err.print(f"written: {path}", soft_wrap=True)
    for job, reason in built.failures.items():
        err.print(f"failed: {job}: {reason}", soft_wrap=True, markup=False)
    if built.failures:
        raise typer.Exit(1)


def _print_classifiers(chosen: PrintedTable, options: TableOptions) -> None:
    from medmap.tables.audiovision import MINUTES_PER_TRAINING, states

    by_training = states(chosen, options)
    for training, state in by_training.items():
        out.print(f"{state:20} train {training}", soft_wrap=True, markup=False)
    unfinished = [state for state in by_training.values() if state != "done"]
    minutes = MINUTES_PER_TRAINING * len(unfinished)
    out.print(
        f"{len(unfinished)} of {len(by_training)} trainings to do, about {minutes:.0f} minutes in "
        "all on a core of a server, with MNIST and the recordings (--data mnist=FOLDER "
        "--data sounds=FOLDER).",
        soft_wrap=True,
        markup=False,
    )


def _print_job(job: Job) -> None:
    time = ""
    if job.hours:
        time = f"about {job.hours:.1f} h"
    line = f"{job.state:20} {job.name:60} {time}"
    out.print(line.rstrip(), soft_wrap=True, markup=False)


def _print_plan(plan: Plan) -> None:
    for job in plan.jobs:
        _print_job(job)
    for data_set, runs in plan.without_data.items():
        out.print(f"no folder of {data_set}: {', '.join(runs)}", soft_wrap=True, markup=False)
    trainings = [job for job in plan.jobs if job.kind == "train"]
    unfinished = [job for job in trainings if job.state != "done"]
    count_without_data = sum(len(runs) for runs in plan.without_data.values())
    to_do = len(unfinished) + count_without_data
    hours = plan.hours + plan.hours_without_data
    out.print(
        f"{to_do} of {len(trainings) + count_without_data} trainings to do, about {hours:.0f} h in "
        "all at a sustained 20 TFLOP/s (not measured on a GPU), and their evaluations.",
        soft_wrap=True,
    )
