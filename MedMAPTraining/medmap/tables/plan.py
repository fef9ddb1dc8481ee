"""What a table needs: trainings in the order of their teachers, evaluations, and what is there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path

from medmap.commands.dedicated import expand_subsets
from medmap.errors import (
    InputDataError,
    MedMAPError,
    OutputError,
    UsageError,
)
from medmap.io.atomic import make_folder, write_json
from medmap.io.cohorts import find_cases
from medmap.tables.jobs import Job, feed_of, fold_folder, fold_text
from medmap.tables.options import TableOptions
from medmap.tables.settings import REHEARSAL_STEPS, rehearsed, with_settings
from medmap.task import find_task
from medmap.training.checkpoint import load_checkpoint
from medmap.training.printed import PrintedTable, run_of
from medmap.training.published import PublishedRow, find_split, published_rows
from medmap.training.recipe import Recipe
from medmap.training.splits import Split, part_of, read_folds, read_split

PETAFLOP_PER_HOUR = 72.0
"""At a sustained 20 TFLOP/s."""


@dataclass(frozen=True)
class Plan:
    """Jobs in an order in which they can be done, and runs that cannot be made.

    Attributes:
        jobs: trainings and evaluations.
        without_data: runs whose data set is not given, by data set.
        hours_without_data: estimate for their trainings.
        folds: number of folds of every run of the table that has any.
    """

    jobs: tuple[Job, ...]
    without_data: Mapping[str, tuple[str, ...]]
    hours_without_data: float = 0.0
    folds: Mapping[str, int] = field(default_factory=dict)

    @property
    def hours(self) -> float:
        """Estimate for what remains."""
        return sum(job.hours for job in self.jobs if job.state != "done")


def make_plan(table: PrintedTable, options: TableOptions) -> Plan:
    """What a table needs.

    Raises:
        UsageError: ``only`` names nothing of the table, or a setting is unknown.
        OutputError: the folder holds a run of one of the names with other settings.
        MissingInputError, InputDataError: a split or the data cannot be read.
    """
    rows = published_rows()
    chosen = _chosen_runs(table, options.only)
    jobs: dict[str, Job] = {}
    without_data: dict[str, list[str]] = {}
    hours_without_data = 0.0
    folders = _Folders(table, options)
    for run in chosen:
        for name in _with_teachers(run, rows):
            row = rows[name]
            data = folders.data_of(row.recipe)
            if data is None:
                data_set = folders.data_set(row.recipe)
                missing = without_data.setdefault(data_set, [])
                if name not in missing:
                    missing.append(name)
                    hours_without_data += folders.hours(row)
                continue
            for fold in folders.folds_of(row.recipe):
                job = folders.training(row, data, fold)
                jobs.setdefault(job.name, job)
    for job in _evaluations(table, set(chosen), jobs):
        jobs.setdefault(job.name, job)
    named = {data_set: tuple(names) for data_set, names in without_data.items()}
    folds = {run: folders.folds_of(rows[run].recipe) for run in table.runs}
    counts = {run: len(numbers) for run, numbers in folds.items() if numbers != (None,)}
    return Plan(tuple(jobs.values()), named, hours_without_data, counts)


def write_recipes(plan: Plan, table: PrintedTable, options: TableOptions) -> None:
    """Write every row's recipe, with its changes, and the splits into the table's folder.

    Splits are copied there, so that scorings of their test parts are recorded there.
    """
    rows = published_rows()
    folders = _Folders(table, options)
    make_folder(options.output)
    for output in dict.fromkeys(job.output for job in plan.jobs):
        make_folder(output)
        for name in ("recipes", "splits", "runs", "bundles", "evaluations"):
            make_folder(output / name)
    for job in plan.jobs:
        if job.kind != "train":
            continue
        recipe, split = folders.recipe_and_split(rows[job.run], job.data, job.fold)
        write_json(job.recipe_file, asdict(recipe))
        if split is None or split.path.exists():
            continue
        parts = {part: list(names) for part, names in split.parts.items()}
        write_json(split.path, parts)


@dataclass(frozen=True)
class _SplitFile:
    """A split, and where it lies or will lie in the table's folder."""

    path: Path
    parts: Split


class _Folders:
    """Recipes with their changes, and where their data and splits lie."""

    def __init__(self, table: PrintedTable, options: TableOptions):
        self.table = table
        self.options = options
        self._cases: dict[tuple[Path, str], tuple[str, ...]] = {}

    def data_set(self, recipe: Recipe) -> str:
        """``brats2018`` and so on: of the published split, or of the task."""
        split = recipe.split or self.table.split
        if split:
            data_set, _, _ = split.partition("_")
            return data_set
        if recipe.task == "MyoPS-anatomy":
            return "myops2020"
        return "brats2018"

    def data_of(self, recipe: Recipe) -> Path | None:
        """Folder of the cases, or None where none is given."""
        data_set = self.data_set(recipe)
        folder = self.options.data.get(data_set)
        if folder is not None:
            return folder
        common = self.options.data.get("")
        if common is not None and (common / data_set).is_dir():
            return common / data_set
        return common

    def folds_of(self, recipe: Recipe) -> tuple[int | None, ...]:
        """Numbers of the folds of a recipe's data set; (None,) without folds."""
        path = self._fold_file(recipe)
        folds = None
        if path is not None:
            folds = read_folds(path)
        if folds is None:
            return (None,)
        return tuple(range(len(folds)))

    def _fold_file(self, recipe: Recipe) -> Path | None:
        common = self.options.folds.get("")
        return self.options.folds.get(self.data_set(recipe), common)

    def recipe_and_split(
        self, row: PublishedRow, data: Path, fold: int | None
    ) -> tuple[Recipe, _SplitFile | None]:
        """The row's recipe with every change, and its split, None for all cases."""
        recipe = self._changed(row)
        if fold is None:
            split = self._split(recipe, data, self.data_set(row.recipe))
        else:
            split = self._split_of_fold(row.recipe, fold)
        if split is None:
            return replace(recipe, split=""), None
        recipe = replace(recipe, split=str(split.path))
        return _holding_out(recipe, split.parts["train"]), split

    def _changed(self, row: PublishedRow) -> Recipe:
        """The row's recipe with every change, but for its split."""
        options = self.options
        split = row.recipe.split or self.table.split
        recipe = replace(row.recipe, split=split)
        if options.rehearsal:
            steps = options.steps or REHEARSAL_STEPS
            recipe = rehearsed(recipe, steps)
        if options.steps is not None:
            recipe = replace(recipe, steps=options.steps)
        return with_settings(recipe, options.settings)

    def hours(self, row: PublishedRow) -> float:
        """Estimate for the training of a row from the start; a rehearsal takes seconds."""
        if self.options.rehearsal:
            return 0.0
        recipe = self._changed(row)
        parts = expand_subsets(recipe, find_task(recipe.task))
        share = recipe.steps / row.recipe.steps
        petaflop = row.petaflop * len(parts) * share
        return petaflop / PETAFLOP_PER_HOUR

    def training(self, row: PublishedRow, data: Path, fold: int | None) -> Job:
        """The training of a row, and how far it is."""
        recipe, split = self.recipe_and_split(row, data, fold)
        job = Job(
            run=row.name,
            kind="train",
            data=data.absolute(),
            output=fold_folder(self.options.output.absolute(), fold),
            fold=fold,
            teacher=row.teacher,
            split=split.path if split else None,
            needs=(f"train {row.teacher}{fold_text(fold)}",) if row.teacher else (),
            precision=self.options.precision,
            workers=self.options.workers,
        )
        parts = expand_subsets(recipe, find_task(recipe.task))
        state, remaining = _state(job, recipe, parts)
        return replace(job, state=state, hours=self.hours(row) * remaining)

    def _split_of_fold(self, recipe: Recipe, fold: int) -> _SplitFile | None:
        """A fold as a split whose part ``test`` is what the fold does not train on."""
        source = self._fold_file(recipe)
        if source is None:
            return None
        folds = read_folds(source)
        if folds is None:
            return None
        chosen = folds[fold]
        parts = {"train": chosen["train"], "test": chosen["val"]}
        output = fold_folder(self.options.output.absolute(), fold)
        path = output / "splits" / f"{source.stem}-{fold}.json"
        return _SplitFile(path, parts)

    def _split(self, recipe: Recipe, data: Path, data_set: str) -> _SplitFile | None:
        if not recipe.split or recipe.split == "none":
            return None
        source = find_split(recipe.split)
        parts = read_split(source)
        folder = self.options.output.absolute() / "splits"
        cases = self._case_names(data, recipe.task)
        is_complete = all(set(cases).issuperset(names) for names in parts.values())
        if is_complete or not self.options.rehearsal:
            part_of(parts, "test")
            return _SplitFile(folder / source.name, parts)
        if len(cases) < 3:
            raise InputDataError(
                f"{data.name} has {len(cases)} cases.",
                "A rehearsal needs three: two to train on, one to score.",
            )
        return _SplitFile(
            folder / f"rehearsal-{data_set}.json", {"train": cases[:2], "test": cases[2:3]}
        )

    def _case_names(self, data: Path, task: str) -> tuple[str, ...]:
        """Names of the cases of a folder, which is searched once."""
        key = (data, task)
        if key not in self._cases:
            cases = find_cases(data, find_task(task))
            self._cases[key] = tuple(case.case_id for case in cases)
        return self._cases[key]


def _holding_out(recipe: Recipe, cases: Sequence[str]) -> Recipe:
    """Held-out cases by number where those that the recipe names are not trained on."""
    named = recipe.held_out_cases
    if isinstance(named, int) or set(named) <= set(cases):
        return recipe
    # At least one case must be trained on.
    number = min(len(named), len(cases) - 1)
    return replace(recipe, held_out_cases=number)


def _chosen_runs(table: PrintedTable, only: Sequence[str]) -> tuple[str, ...]:
    """Runs of the table, or those that are named, or that stand in rows that are named."""
    if not only:
        return table.runs
    chosen: dict[str, None] = {}
    for name in only:
        matches = [run for run in table.runs if run == name]
        for row in table.rows:
            if name.lower() in (title.lower() for title in row.titles):
                for cell in row.cells:
                    if cell.is_shown:
                        matches += [run_of(keys) for keys in cell.operands]
        if not matches:
            raise UsageError(
                f"{table.name} has no row {name}.",
                f"Name a title of its rows, or one of {', '.join(table.runs)}.",
            )
        chosen |= dict.fromkeys(matches)
    return tuple(run for run in table.runs if run in chosen)


def _with_teachers(run: str, rows: Mapping[str, PublishedRow]) -> tuple[str, ...]:
    """The rows that have to be trained for a run, teachers first."""
    teacher = rows[run].teacher
    if not teacher:
        return (run,)
    # A teacher may have a teacher of its own.
    teachers = _with_teachers(teacher, rows)
    return (*teachers, run)


def _evaluations(
    table: PrintedTable, chosen: set[str], trainings: Mapping[str, Job]
) -> Iterable[Job]:
    """One evaluation of every chosen run, and one for each modality that is given in a place."""
    by_run: dict[str, list[Job]] = {}
    for training in trainings.values():
        by_run.setdefault(training.run, []).append(training)
    for cell in table.cells:
        for keys in cell.operands:
            run = run_of(keys)
            if run not in chosen:
                continue
            feed_setting = keys.get("feed", ())
            feeds = [feed_setting] if isinstance(feed_setting, str) else list(feed_setting)
            fed = [feed_of(keys["subset"], other) for other in feeds] or [{}]
            for training, feed in product(by_run.get(run, ()), fed):
                job = replace(
                    training,
                    kind="evaluate",
                    feed=tuple(feed.items()),
                    needs=(training.name,),
                    state="to do",
                    hours=0.0,
                )
                is_done = (job.evaluation / "evaluation.json").is_file()
                yield replace(job, state="done" if is_done else "to do")


def _state(job: Job, recipe: Recipe, parts: Sequence[tuple[str, Recipe]]) -> tuple[str, float]:
    """How far a training is, and the share of it that remains.

    Raises:
        OutputError: what lies there was begun with other settings.
    """
    if job.recipe_file.is_file():
        earlier = Recipe.read(job.recipe_file)
        if earlier.digest() != recipe.digest():
            raise OutputError(
                f"{job.output.name} holds {job.run} with other settings"
                f"{_difference(earlier, recipe)}.",
                "Use the same settings, or another folder.",
                option="out",
            )
    if job.bundle.is_dir():
        return "done", 0.0
    steps = 0
    for subset, _ in parts:
        folder = job.run_folder / subset if subset else job.run_folder
        state = _checkpoint(folder)
        steps += state["step"] if state else 0
    total = recipe.steps * len(parts)
    if steps:
        return f"step {steps} of {total}", 1 - steps / total
    return "to do", 1.0


def _checkpoint(folder: Path) -> Mapping | None:
    try:
        return load_checkpoint(folder) if folder.is_dir() else None
    except MedMAPError:
        # A damaged checkpoint is the training's to report.
        return None


def _difference(earlier: Recipe, recipe: Recipe) -> str:
    """The first field that differs, for a message."""
    # As JSON, which has no tuples: the earlier recipe was read from a file.
    before = json.loads(json.dumps(asdict(earlier)))
    after = json.loads(json.dumps(asdict(recipe)))
    for name, value in after.items():
        if name != "about" and before[name] != value:
            return f" ({name} was {before[name]!r}, is {value!r})"
    return ""
