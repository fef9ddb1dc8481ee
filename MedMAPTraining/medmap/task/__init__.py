"""Tasks: what is segmented on which modalities, and how label files write it."""

from medmap.task.builtin import BRATS, MYOPS, MYOPS_ANATOMY, TASKS
from medmap.task.definition import Code, Label, Modality, Region, Task
from medmap.task.files import find_task, read_task

__all__ = [
    "BRATS",
    "MYOPS",
    "MYOPS_ANATOMY",
    "TASKS",
    "Code",
    "Label",
    "Modality",
    "Region",
    "Task",
    "find_task",
    "read_task",
]
