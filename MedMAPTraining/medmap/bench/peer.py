"""A peer's code beside ours: any callable, from a module or a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from medmap.errors import UsageError


def load_peer(target: str) -> Callable:
    """Load a callable by ``module:callable`` or ``path/to/file.py:callable``.

    Modules are looked for in the current folder, too; a file may import its neighbors. Without a
    name the callable is ``segment``.

    Raises:
        UsageError: it does not exist, does not load, or cannot be called.
    """
    source, name = _split(target)
    try:
        load = _from_file if source.endswith(".py") else _module
        peer = getattr(load(source), name)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise UsageError(
            f"{target} cannot be loaded ({error}).",
            "Write module:callable or file.py:callable, as in peer.py:segment.",
        ) from error
    if not callable(peer):
        raise UsageError(
            f"{target} cannot be called.", "Name a function, such as labels = f(scans, affine)."
        )
    return peer


def _split(target: str) -> tuple[str, str]:
    """Module or file, and the callable's name."""
    if ".py:" in target:
        # From the right: a path may hold a colon of its own, as those of Windows do.
        source, _, name = target.rpartition(":")
    else:
        source, _, name = target.partition(":")
    return source, name or "segment"


def _module(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _from_file(name: str) -> ModuleType:
    path = Path(name).resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path.name} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # As an import does: dataclasses and pickles look their module up.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
