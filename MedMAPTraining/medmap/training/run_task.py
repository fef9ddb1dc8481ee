"""The task of a run: kept in its folder, so that a run does not depend on a task file elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

from medmap.errors import BundleError
from medmap.io.atomic import write_json
from medmap.task import Task, find_task
from medmap.training.recipe import Recipe

TASK_FILE = "task.json"


def write_task(run: Path, task: Task) -> None:
    """Keep the task of a run."""
    write_json(run / TASK_FILE, task.to_dict())


def has_task(run: Path) -> bool:
    """Whether a run has kept its task; runs of before version 0.2 have not."""
    return (run / TASK_FILE).is_file()


def task_of_run(run: Path) -> Task:
    """The task that a run keeps, else the one that its recipe names.

    Raises:
        BundleError: the kept description is damaged.
        UsageError: the recipe names an unknown task.
    """
    if not has_task(run):
        return find_task(Recipe.read(run / "recipe.json").task)
    try:
        content = json.loads((run / TASK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{TASK_FILE} of the run {run.name} is damaged ({error}).",
            "Begin the run again in another folder.",
        ) from error
    return Task.from_dict(content)
