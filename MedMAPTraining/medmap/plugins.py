"""Plug-ins: a user's own networks, objectives, missingness protocols, tasks and layouts.

A plug-in is a Python file, or a module that an installed package names as an entry point of the
group ``medmap.plugins``. Either has a function ``register``, which is called once::

    def register(plugin):
        plugin.network("TinyUNet", TinyUNet)
        plugin.objective("focal", Focal)

A plug-in is code and runs with the rights of the user: load only what you trust. Bundles contain no
code; they name the plug-in that they need.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from medmap.errors import MissingInputError, UsageError

GROUP = "medmap.plugins"
"""Group of the entry points of installed plug-ins."""

Tables = Mapping[str, MutableMapping[str, Any]]
"""What each kind of part is registered in, by kind."""


@dataclass(frozen=True)
class Provider:
    """The plug-in that a part comes from.

    Attributes:
        name: the file's name without ending, or the entry point's.
        version: of the package; empty for a file.
        sha256: of the file; empty for a package.
    """

    name: str
    version: str = ""
    sha256: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain JSON-ready form."""
        return asdict(self)


_providers: dict[tuple[str, str], Provider] = {}


def provider_of(kind: str, name: str) -> Provider | None:
    """The plug-in that a network, objective, protocol, task or layout comes from, if any."""
    return _providers.get((kind, name))


def provided_names(kind: str) -> list[str]:
    """Names of all parts of a kind that come from plug-ins."""
    names = []
    for part_kind, name in _providers:
        if part_kind == kind:
            names.append(name)
    return names


class Plugin:
    """What ``register`` of a plug-in receives.

    Args:
        provider: the plug-in.
        tables: of MedMAP's own parts, to which those of the plug-in are added.
    """

    def __init__(self, provider: Provider, tables: Tables):
        self.provider = provider
        self._tables = tables

    def network(self, name: str, network: type) -> None:
        """Add a backbone, a subclass of ``medmap.networks.Backbone``."""
        self._add("network", name, network)

    def objective(self, name: str, objective: type) -> None:
        """Add an objective, a subclass of ``medmap.training.objectives.Objective``."""
        self._add("objective", name, objective)

    def missingness(self, name: str, protocol: Callable) -> None:
        """Add a protocol: ``protocol(task, cases, **options) -> Missingness``."""
        self._add("missingness", name, protocol)

    def task(self, task: Any) -> None:
        """Add a ``medmap.task.Task``."""
        self._add("task", task.name, task)

    def layout(self, name: str, layout: Callable) -> None:
        """Add a layout of cohorts: ``layout(folder, task) -> Cohort``, or None where it does not
        fit.

        It is tried before MedMAP's own layouts, for every task.
        """
        self._add("layout", name, layout)

    def _add(self, kind: str, name: str, part: Any) -> None:
        if name in self._tables[kind]:
            owner = provider_of(kind, name)
            owner_text = "MedMAP"
            if owner is not None:
                owner_text = f"the plug-in {owner.name}"
            raise UsageError(
                f"The plug-in {self.provider.name} adds the {kind} {name}, which {owner_text} has "
                "already.",
                "Rename it in the plug-in.",
            )
        self._tables[kind][name] = part
        _providers[kind, name] = self.provider


def load_file(path: Path, tables: Tables) -> Provider:
    """Load a plug-in from a Python file; its folder is where its own imports are looked for last.

    Raises:
        MissingInputError: there is no such file.
        UsageError: it fails, has no ``register``, or adds what exists.
    """
    if not path.is_file():
        raise MissingInputError(f"There is no plug-in {path}.", "Check its path.", option="plugin")
    digest = hashlib.sha256(path.read_bytes())
    provider = Provider(path.stem, sha256=digest.hexdigest())
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    name = f"medmap_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path.name} is no Python file.", "Name a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    # Under this name its classes are found again when they are unpickled.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failure(provider, error) from error
    _register(module, provider, tables)
    return provider


def installed_plugins() -> list[EntryPoint]:
    """Entry points of installed plug-ins, by name."""
    entries = entry_points(group=GROUP)
    return sorted(entries, key=lambda entry: entry.name)


def load_installed(entry: EntryPoint, tables: Tables) -> Provider:
    """Load an installed plug-in. Raises UsageError as ``load_file``."""
    version = ""
    if entry.dist is not None:
        version = entry.dist.version
    provider = Provider(entry.name, version=version)
    try:
        module = entry.load()
    except Exception as error:
        raise _failure(provider, error) from error
    _register(module, provider, tables)
    return provider


def _register(module: ModuleType, provider: Provider, tables: Tables) -> None:
    register = getattr(module, "register", None)
    if not callable(register):
        raise UsageError(
            f"The plug-in {provider.name} has no function register.",
            "Write def register(plugin), which adds its parts.",
        )
    try:
        register(Plugin(provider, tables))
    except UsageError:
        raise
    except Exception as error:
        raise _failure(provider, error) from error


def _failure(provider: Provider, error: Exception) -> UsageError:
    kind = type(error).__name__
    return UsageError(
        f"The plug-in {provider.name} fails: {kind}: {error}.",
        "Correct it; the full traceback shows the line.",
        option="debug",
    )
