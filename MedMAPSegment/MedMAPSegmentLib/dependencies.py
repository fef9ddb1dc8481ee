"""What the computation needs beyond Slicer (PyTorch, safetensors): looked for always, installed only when asked.

Nothing here runs at import or when the panel opens. ``ensure`` is called by Apply, on the main thread; it installs
nothing before the user agreed, and nothing at all while Slicer runs its tests.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import medmap
from medmap.errors import BundleError, UnavailableError

REQUESTER = "MedMAP"
REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"


@dataclass(frozen=True)
class Requirement:
    """One line of ``requirements.txt``: a name and, maybe, the lowest version that will do."""

    name: str
    minimum: str = ""

    def __str__(self) -> str:
        return f"{self.name}>={self.minimum}" if self.minimum else self.name

    def isMet(self) -> bool:
        """True when the package is installed in a sufficient version. Imports nothing.

        A half-installed package (files without metadata, or the other way round) counts as missing.
        """
        try:
            spec = importlib.util.find_spec(self.name)
            version = importlib.metadata.version(self.name)
        except (ImportError, ValueError, AttributeError, importlib.metadata.PackageNotFoundError):
            return False
        return spec is not None and spec.origin is not None and _atLeast(version, self.minimum)

    def isLoadedTooOld(self) -> bool:
        """True when this Python session has already imported a version that will not do."""
        version = getattr(sys.modules.get(self.name), "__version__", None)
        return version is not None and not _atLeast(str(version), self.minimum)


class Installer(Protocol):
    """What installing needs from the application."""

    def isTesting(self) -> bool:
        """True while the application runs its tests, when nothing may be installed."""

    def confirm(self, text: str) -> bool:
        """Ask the user."""

    def installTorch(self, requirement: Requirement) -> bool:
        """Install PyTorch with the PyTorch extension. False when that extension is not there."""

    def install(self, requirements: Iterable[Requirement]) -> None:
        """Install packages from PyPI."""


def load(path: str | Path) -> list[Requirement]:
    """Requirements of a file: one ``name`` or ``name>=version`` a line; ``#`` starts a comment."""
    lines = (
        line.partition("#")[0].strip()
        for line in Path(path).read_text(encoding="utf-8").splitlines()
    )
    return [Requirement(*(part.strip() for part in line.split(">="))) for line in lines if line]


def missing(path: str | Path = REQUIREMENTS) -> list[Requirement]:
    """Requirements of the file that are not met."""
    return [requirement for requirement in load(path) if not requirement.isMet()]


def checkPackage(loaded: str | Path, module: str | Path = __file__) -> None:
    """Refuse a ``medmap`` from somewhere else than this module's own: results would come from unknown code.

    Args:
        loaded: file of the imported package, ``medmap.__file__``.
        module: a file of this module; the package lies beside it in an extension, in ``MedMAPTraining`` in a checkout.

    Raises:
        BundleError: it is another one; both places are named.
    """
    above = Path(module).resolve().parents
    places = [
        place
        for place in (above[1] / "medmap", above[2] / "MedMAPTraining/medmap")
        if place.is_dir()
    ]
    found = Path(loaded).resolve().parent
    if places and found != places[0]:
        raise BundleError(
            f"The Python package medmap was loaded from {found}, but this module's own lies in {places[0]}.",
            "Uninstall the other one from Slicer's Python, then restart Slicer.",
        )


def ensure(installer: Installer, path: str | Path = REQUIREMENTS) -> bool:
    """Make sure that every requirement of the file is met, and that ``medmap`` is this module's own.

    Returns:
        True when they are, False when the user would not have them installed.

    Raises:
        UnavailableError: something is missing and cannot be installed, or Slicer must be restarted first.
        BundleError: another ``medmap`` was loaded (``checkPackage``).
    """
    checkPackage(medmap.__file__)
    lacking = missing(path)
    if lacking:
        names = ", ".join(map(str, lacking))
        if installer.isTesting():
            raise UnavailableError(
                f"Not installed: {names}.",
                "Nothing is installed while Slicer tests itself; install the packages first.",
            )
        if not installer.confirm(_question(names)):
            return False
        _install(lacking, installer)
    if any(requirement.isLoadedTooOld() for requirement in load(path)):
        raise UnavailableError(
            "An older PyTorch is still loaded.", "Restart Slicer, then press Apply again."
        )
    return True


def _install(lacking: list[Requirement], installer: Installer) -> None:
    try:
        rest = [r for r in lacking if not (r.name == "torch" and installer.installTorch(r))]
        if rest:
            installer.install(rest)
    except Exception as error:
        raise UnavailableError(
            f"Installing {', '.join(map(str, lacking))} failed: {_reason(error)}.",
            "Check the internet connection, or install PyTorch with the PyTorch extension and try again.",
        ) from error
    importlib.invalidate_caches()
    still = ", ".join(str(requirement) for requirement in lacking if not requirement.isMet())
    if still:
        raise UnavailableError(
            f"Not usable after installation: {still}.", "Restart Slicer, then press Apply again."
        )


def _reason(error: Exception) -> str:
    """What went wrong, without the command line that failed: pip's own words stand in the console."""
    if isinstance(error, subprocess.CalledProcessError):
        return (
            f"pip ended with status {error.returncode}; see Slicer's Python console for the reason"
        )
    return str(error).strip().rstrip(".") or type(error).__name__


def _question(names: str) -> str:
    return (
        f"MedMAP Segment needs Python packages that are not installed yet: {names}.\n\n"
        "PyTorch is downloaded from the internet into Slicer's own Python. The download is 0.2 to 3 GB and takes up "
        "to 6 GB on disk: most on Linux, where the version for graphics cards is installed. The PyTorch "
        "extension chooses a smaller version for a computer without a graphics card; install it first if you have "
        "none. Your images are not sent anywhere.\n\nInstall now?"
    )


def _atLeast(version: str, minimum: str) -> bool:
    return _numbers(version) >= _numbers(minimum)


def _numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: (2, 10, 0) for ``2.10.0+cu126``; empty for an empty text."""
    return tuple(int(n) for n in re.findall(r"\d+", re.match(r"[\d.]*", version)[0]))


class SlicerInstaller:
    """Installs into Slicer's own Python. Everything must be called on the main thread."""

    def isTesting(self) -> bool:
        """True under ``--testing``."""
        import slicer

        return bool(slicer.app.testingEnabled())

    def confirm(self, text: str) -> bool:
        """OK/Cancel dialog."""
        import slicer.util

        return slicer.util.confirmOkCancelDisplay(text, windowTitle="MedMAP Segment")

    def installTorch(self, requirement: Requirement) -> bool:
        """Let the PyTorch extension choose the build that fits the graphics driver; False without the extension."""
        try:
            from PyTorchUtils import PyTorchUtilsLogic
        except ImportError:
            return False
        install = PyTorchUtilsLogic().installTorch
        wanted = {
            "askConfirmation": False,
            "torchVersionRequirement": str(requirement).removeprefix(requirement.name),
        }
        accepted = inspect.signature(install).parameters  # its keywords have changed before
        install(**{name: value for name, value in wanted.items() if name in accepted})
        return True

    def install(self, requirements: Iterable[Requirement]) -> None:
        """``slicer.packaging.pip_ensure`` where Slicer has it (5.12), ``slicer.util.pip_install`` before."""
        import slicer.util

        names = [str(requirement) for requirement in requirements]
        try:
            from packaging.requirements import Requirement as Parsed
            from slicer.packaging import pip_ensure
        except ImportError:
            slicer.util.pip_install(names)
        else:
            # Parsed, because the first Slicer that has it takes no texts.
            pip_ensure([Parsed(name) for name in names], prompt_install=False, requester=REQUESTER)
