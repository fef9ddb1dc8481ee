"""``medmap prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from medmap.cli.base import (
    Affine,
    AssumeOrientation,
    Labels,
    TaskOption,
    app,
    out,
    showing_progress,
)
from medmap.cli.train import CacheFolderOption, CacheSize, PrepareWorkers, RecipeArgument, Split

if TYPE_CHECKING:
    from medmap.commands.preparation import Estimate
    from medmap.training.cache_folder import CacheFolder

PROCESS_COUNTS = (1, 2, 4, 8, 16)


@app.command()
def prepare(
    recipe: RecipeArgument = None,
    *,
    data: Annotated[Path, typer.Option(help="Cases with labels, as for medmap train.")],
    split: Split = None,
    cache: CacheFolderOption = None,
    cache_gb: CacheSize = None,
    prepare_workers: PrepareWorkers = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Measure one case and estimate time and disk; write nothing."
        ),
    ] = False,
    labels: Labels = "",
    task: TaskOption = None,
    affine: Affine = None,
    assume_orientation: AssumeOrientation = False,
) -> None:
    """Prepare the cases of a recipe ahead of training, into the cache that all runs share."""
    from medmap.commands.prepare import estimate_cohort, plan_cohort, prepare_cohort
    from medmap.commands.training_options import CacheOptions, TrainOptions

    options = TrainOptions(
        recipe=recipe,
        split=split,
        cache=CacheOptions(cache, cache_gb, prepare_workers),
        labels=labels,
        task=task,
        affine=affine,
        assume_orientation=assume_orientation,
    )
    plan = plan_cohort(data, options)
    if dry_run:
        with showing_progress() as report:
            estimate = estimate_cohort(plan, prepare_workers, report)
        _print_estimate(estimate, plan.cache)
        return
    with showing_progress() as report:
        count = prepare_cohort(plan, prepare_workers, report)
    out.print(f"{count} cases are prepared in {plan.cache.path}", soft_wrap=True, markup=False)


def _print_estimate(estimate: Estimate, cache: CacheFolder) -> None:
    from medmap.training.log import duration

    used_gb = 0.0
    if cache.path.is_dir():
        used_gb = cache.used_bytes() / 1e9
    out.print(
        f"Cache: {cache.path}, {used_gb:.2f} of {cache.budget_gb:g} GB used",
        soft_wrap=True,
        markup=False,
    )
    if not estimate.cases:
        out.print("All cases are prepared already.")
        return
    out.print(
        f"{estimate.cases} cases to prepare, {estimate.case_bytes / 1e6:.1f} MB and "
        f"{estimate.seconds:.1f} s each: {estimate.total_bytes / 1e9:.2f} GB"
    )
    table = Table("processes", "time")
    for count in PROCESS_COUNTS:
        table.add_row(str(count), duration(estimate.total_seconds(count)))
    out.print(table)
    if used_gb + estimate.total_bytes / 1e9 > cache.budget_gb:
        out.print("This exceeds the budget of the cache; cases unused for two weeks are removed.")
