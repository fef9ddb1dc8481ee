"""The task of a run, kept in its folder, and the folders of its networks.

With its task, a run does not depend on a task file elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path

from medmap.errors import BundleError
from medmap.io.atomic import write_json
from medmap.task import Task, find_task
from medmap.training.log import LOG
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


def logged_networks(run: Path) -> dict[str, Path]:
    """Folders of the networks of a run that have logged a step.

    Args:
        run: folder of a run.

    Returns:
        Folders by their names in the run: ``""`` for the run itself, ``fold_0``,
        ``t1+flair`` or ``fold_0/t1+flair`` for those of folds and of modality subsets. None
        of a folder that is no run.
    """
    if (run / LOG).is_file():
        return {"": run}
    if not has_task(run):
        return {}
    paths = [*run.glob(f"*/{LOG}"), *run.glob(f"fold_*/*/{LOG}")]
    return {path.parent.relative_to(run).as_posix(): path.parent for path in sorted(paths)}
