"""Tasks by name."""

from __future__ import annotations

from medmap.errors import UsageError
from medmap.task.builtin import TASKS
from medmap.task.definition import Task


def find_task(name: str) -> Task:
    """The task of that name, in any case of letters. Raises UsageError."""
    for task in TASKS.values():
        if task.name.lower() == name.lower():
            return task
    raise UsageError(f"There is no task '{name}'.", f"Use one of {', '.join(TASKS)}.")
