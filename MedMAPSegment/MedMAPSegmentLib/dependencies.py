"""What the computation needs beyond Slicer (PyTorch, safetensors): installed only when asked.

Nothing here runs at import or when the panel opens. ``ensure`` is called on the main thread by
Apply, by Load sample patient and by a comparison; it installs nothing before the user agreed, and
nothing at all while Slicer runs its tests.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from packaging.requirements import Requirement as ParsedRequirement
from packaging.specifiers import SpecifierSet

import medmap
from medmap.errors import BundleError, UnavailableError

from .i18n import translator
from .i18n.sentences import sentence

_ = translator(__file__)

REQUESTER = "MedMAP"
REQUIREMENTS = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"


@dataclass(frozen=True)
class Requirement:
    """One line of ``requirements.txt``: a name and, maybe, the versions that will do."""

    name: str
    versions: str = ""

    def __str__(self) -> str:
        return f"{self.name}{self.versions}"

    def accepts(self, version: str) -> bool:
        """Whether a version will do, such as ``2.10.0+cu126``."""
        return SpecifierSet(self.versions).contains(version, prereleases=True)

    def isMet(self) -> bool:
        """True when the package is installed in a sufficient version. Imports nothing.

        A half-installed package (files without metadata, or the other way round) counts as missing.
        """
        try:
            spec = importlib.util.find_spec(self.name)
            version = importlib.metadata.version(self.name)
        except (ImportError, ValueError, AttributeError, importlib.metadata.PackageNotFoundError):
            return False
        return spec is not None and spec.origin is not None and self.accepts(version)

    def isLoadedTooOld(self) -> bool:
        """True when this Python session has already imported a version that will not do."""
        version = getattr(sys.modules.get(self.name), "__version__", None)
        return version is not None and not self.accepts(str(version))


@dataclass(frozen=True)
class TorchBuild:
    """One of the builds of PyTorch.

    Attributes:
        title: for the question to the user.
        size: of the download and on disk, in words.
        index: index of packages that has it; empty for PyPI.
    """

    title: str
    size: str
    index: str = ""


CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GRAPHICS_CARD = TorchBuild(
    "for NVIDIA graphics cards", "The download is 2 to 3 GB and takes up to 6 GB on disk."
)
PROCESSOR = TorchBuild(
    "for the processor", "The download is about 0.2 GB and takes about 1 GB on disk.", CPU_INDEX
)
MAC = TorchBuild("for macOS", "The download is about 0.1 GB and takes about 0.5 GB on disk.")
INTEL_MAC = TorchBuild(
    "2.2, the last one for this Slicer on Macs",
    "The download is about 0.2 GB and takes about 0.6 GB on disk.",
)
LAST_PYTHON_OF_INTEL_MACS = (3, 12)
"""Highest Python that PyTorch 2.2 was built for."""


def torchBuild(
    system: str | None = None,
    machine: str | None = None,
    hasCard: bool | None = None,
    python: tuple[int, int] | None = None,
) -> TorchBuild:
    """The build of PyTorch that fits a computer.

    Args:
        system: as ``platform.system`` gives it; None for this computer.
        machine: architecture of Slicer's Python as ``platform.machine`` gives it; None for this
            one's. Slicer for Intel processors runs on Macs with Apple processors, too.
        hasCard: whether there is an NVIDIA graphics card; None looks for its driver.
        python: version of Slicer's Python; None for this one's.

    Raises:
        UnavailableError: no build exists: a Python for Intel Macs that is newer than their last
            PyTorch.
    """
    system = system or platform.system()
    machine = machine or platform.machine()
    python = python or (sys.version_info.major, sys.version_info.minor)
    if hasCard is None:
        hasCard = hasNvidiaDriver()
    if system == "Darwin":
        return _macBuild(machine, python)
    # PyPI has the build for graphics cards for Linux only.
    if system == "Linux" and hasCard:
        return GRAPHICS_CARD
    return PROCESSOR


def _macBuild(machine: str, python: tuple[int, int]) -> TorchBuild:
    if machine == "arm64":
        return MAC
    if python > LAST_PYTHON_OF_INTEL_MACS:
        version = ".".join(map(str, python))
        raise UnavailableError(
            f"There is no PyTorch for this Slicer: its Python {version} is for Intel processors.",
            "Use Slicer 5.10, or a Slicer for Apple processors where there is one.",
        )
    return INTEL_MAC


def hasNvidiaDriver() -> bool:
    """Whether the driver of an NVIDIA graphics card is installed."""
    return shutil.which("nvidia-smi") is not None or os.path.exists("/proc/driver/nvidia/version")


class Installer(Protocol):
    """What installing needs from the application."""

    def isTesting(self) -> bool:
        """True while the application runs its tests, when nothing may be installed."""

    def confirm(self, text: str) -> bool:
        """Ask the user."""

    def installTorch(self, requirement: Requirement) -> bool:
        """Install PyTorch with the PyTorch extension. False when that extension is not there."""

    def hasPyTorchExtension(self) -> bool:
        """Whether the PyTorch extension, which chooses a build by itself, is there."""

    def install(self, requirements: Iterable[Requirement], index: str = "") -> None:
        """Install packages from an index; from PyPI without one."""

    def remove(self, names: Iterable[str]) -> None:
        """Remove packages again."""


def load(
    path: str | Path = REQUIREMENTS, environment: Mapping[str, str] | None = None
) -> list[Requirement]:
    """Requirements of a file that hold for a computer.

    Args:
        path: file with one requirement per line (PEP 508); ``#`` starts a comment.
        environment: values of markers such as ``sys_platform``; those that are missing, and None,
            are this computer's.
    """
    requirements = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if not text:
            continue
        parsed = ParsedRequirement(text)
        if parsed.marker is None or parsed.marker.evaluate(dict(environment or {})):
            requirements.append(Requirement(parsed.name, str(parsed.specifier)))
    return requirements


def missing(path: str | Path = REQUIREMENTS) -> list[Requirement]:
    """Requirements of the file that are not met."""
    return [requirement for requirement in load(path) if not requirement.isMet()]


def checkPackage(loaded: str | Path, module: str | Path = __file__) -> None:
    """Refuse a ``medmap`` from somewhere else than this module's own: results would come from
    unknown code.

    Args:
        loaded: file of the imported package, ``medmap.__file__``.
        module: a file of this module; the package lies beside it in an extension, in
            ``MedMAPTraining`` in a checkout.

    Raises:
        BundleError: it is another one; both places are named.
    """
    above = Path(module).resolve().parents
    ownFolders = [
        folder
        for folder in (above[1] / "medmap", above[2] / "MedMAPTraining/medmap")
        if folder.is_dir()
    ]
    loadedFolder = Path(loaded).resolve().parent
    if ownFolders and loadedFolder != ownFolders[0]:
        raise BundleError(
            f"The Python package medmap was loaded from {loadedFolder}, but this module's own lies "
            f"in {ownFolders[0]}.",
            "Uninstall the other one from Slicer's Python, then restart Slicer.",
        )


def ensure(installer: Installer, path: str | Path = REQUIREMENTS) -> bool:
    """Make sure that every requirement of the file is met, and that ``medmap`` is this module's
    own.

    Returns:
        True when they are, False when the user would not have them installed.

    Raises:
        UnavailableError: something is missing and cannot be installed, or Slicer must be restarted
            first.
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
        build = _buildOf(lacking, installer)
        if not installer.confirm(_question(names, build)):
            return False
        _install(lacking, installer, build)
    if any(requirement.isLoadedTooOld() for requirement in load(path)):
        raise UnavailableError(
            "An older PyTorch is still loaded.", "Restart Slicer, then press Apply again."
        )
    return True


def _buildOf(lacking: list[Requirement], installer: Installer) -> TorchBuild | None:
    """The build of PyTorch to install; None if it is there, or if the extension will choose."""
    if "torch" not in [requirement.name for requirement in lacking]:
        return None
    if installer.hasPyTorchExtension():
        return None
    return torchBuild()


def _install(lacking: list[Requirement], installer: Installer, build: TorchBuild | None) -> None:
    present = _present(lacking)
    try:
        otherRequirements = []
        for requirement in lacking:
            if requirement.name != "torch":
                otherRequirements.append(requirement)
            elif not installer.installTorch(requirement):
                installer.install([requirement], build.index if build is not None else "")
        if otherRequirements:
            installer.install(otherRequirements)
    except Exception as error:
        _takeBack(lacking, present, installer)
        raise UnavailableError(
            f"Installing {', '.join(map(str, lacking))} failed: {_reason(error)}.",
            "What was installed has been removed again. Check the internet connection and the "
            "free disk space, or install PyTorch with the PyTorch extension; then try again.",
        ) from error
    importlib.invalidate_caches()
    still = ", ".join(str(requirement) for requirement in lacking if not requirement.isMet())
    if still:
        raise UnavailableError(
            f"Not usable after installation: {still}.", "Restart Slicer, then press Apply again."
        )


def _present(lacking: list[Requirement]) -> set[str]:
    """Names of packages that are installed, if only in an insufficient version."""
    names = set()
    for requirement in lacking:
        try:
            importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        names.add(requirement.name)
    return names


def _takeBack(lacking: list[Requirement], present: set[str], installer: Installer) -> None:
    """Remove what a failed installation left; a package that was there before stays."""
    importlib.invalidate_caches()
    added = sorted(_present(lacking) - present)
    if added:
        installer.remove(added)


def _reason(error: Exception) -> str:
    """What went wrong, without the command line that failed: pip says it in the console."""
    if isinstance(error, subprocess.CalledProcessError):
        return (
            f"pip ended with status {error.returncode}; see Slicer's Python console for the reason"
        )
    return str(error).strip().rstrip(".") or type(error).__name__


def _question(names: str, build: TorchBuild | None) -> str:
    paragraphs = [
        _("MedMAP needs Python packages that are not installed yet: {names}.").format(names=names),
        _(
            "Segmentations, comparisons of modalities, and the sample patient are computed with "
            "them. They are downloaded from the internet into Slicer's own Python. Your images "
            "are not sent anywhere."
        ),
    ]
    if build is not None:
        text = _("This installs PyTorch {build}. {size}")
        paragraphs.append(text.format(build=sentence(build.title), size=sentence(build.size)))
    paragraphs.append(_("Install now?"))
    return "\n\n".join(paragraphs)


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
        """Let the PyTorch extension choose the build that fits the graphics driver; False without
        the extension.
        """
        try:
            from PyTorchUtils import PyTorchUtilsLogic
        except ImportError:
            return False
        install = PyTorchUtilsLogic().installTorch
        keywords = {
            "askConfirmation": False,
            "torchVersionRequirement": requirement.versions,
        }
        accepted = inspect.signature(install).parameters  # its keywords have changed before
        install(**{name: value for name, value in keywords.items() if name in accepted})
        return True

    def hasPyTorchExtension(self) -> bool:
        """Whether its Python module can be found."""
        return importlib.util.find_spec("PyTorchUtils") is not None

    def install(self, requirements: Iterable[Requirement], index: str = "") -> None:
        """With Slicer's own progress dialog where Slicer has one (5.12), whatever the index."""
        import slicer.util

        arguments = [str(requirement) for requirement in requirements]
        if index:
            arguments += ["--index-url", index]
        install = slicer.util.pip_install
        kinds = [parameter.kind for parameter in inspect.signature(install).parameters.values()]
        keywords = {}
        # Before Slicer 5.12 it takes packages only, and there is no dialog to be titled.
        if inspect.Parameter.VAR_KEYWORD in kinds:
            keywords["requester"] = REQUESTER
        install(arguments, **keywords)

    def remove(self, names: Iterable[str]) -> None:
        """``slicer.util.pip_uninstall``; what cannot be removed stays."""
        import slicer.util

        try:
            slicer.util.pip_uninstall(list(names))
        except Exception:
            logging.exception("A failed installation could not be removed.")
