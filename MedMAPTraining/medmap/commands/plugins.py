"""Loading plug-ins into the tables of networks, objectives, protocols, tasks and layouts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from medmap.io.cohorts import LAYOUTS
from medmap.networks import NETWORKS
from medmap.plugins import Tables, installed_plugins, load_file, load_installed
from medmap.task import TASKS
from medmap.training.missingness import PROTOCOLS
from medmap.training.objectives import OBJECTIVES

TABLES: Tables = {
    "network": NETWORKS,
    "objective": OBJECTIVES,
    "missingness": PROTOCOLS,
    "task": TASKS,
    "layout": LAYOUTS,
}

_loaded: set[str] = set()


def load_plugins(files: Sequence[str | os.PathLike] = ()) -> tuple[str, ...]:
    """Load installed plug-ins and those of files, each once.

    Args:
        files: Python files.

    Returns:
        Absolute paths of all files that were loaded so far, for worker processes.

    Raises:
        MissingInputError, UsageError: a plug-in cannot be used.
    """
    for entry in installed_plugins():
        if entry.value not in _loaded:
            load_installed(entry, TABLES)
            _loaded.add(entry.value)
    for file in files:
        path = Path(file).resolve()
        if str(path) not in _loaded:
            load_file(path, TABLES)
            _loaded.add(str(path))
    return loaded_files()


def loaded_files() -> tuple[str, ...]:
    """Absolute paths of the plug-ins that were loaded from files."""
    return tuple(sorted(path for path in _loaded if os.path.isabs(path)))
