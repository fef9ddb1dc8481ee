"""A peer's code beside ours: any callable, from a module or a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from medmap.errors import UsageError


def load_peer(target: str) -> Callable:
    """``module:callable``, looked for in the current folder, too, or ``path/to/file.py:callable``.

    Without a name the callable is ``segment``. A file's own folder is where it imports its neighbors from.

    Raises:
        UsageError: it is not there, does not load, or cannot be called.
    """
    place, _, name = target.partition(":") if ".py:" not in target else target.rpartition(":")
    try:
        found = getattr(
            _from_file(Path(place)) if place.endswith(".py") else _module(place), name or "segment"
        )
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise UsageError(
            f"{target} cannot be loaded ({error}).",
            "Write module:callable or file.py:callable, as in peer.py:segment.",
        ) from error
    if not callable(found):
        raise UsageError(
            f"{target} cannot be called.", "Name a function, such as labels = f(scans, affine)."
        )
    return found


def _module(name: str):
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _from_file(path: Path):
    path = path.resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # as an import does: dataclasses and pickles look there
    spec.loader.exec_module(module)
    return module
