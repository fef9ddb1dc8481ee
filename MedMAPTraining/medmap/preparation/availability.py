"""Which methods of preparation are installed. Nothing heavy is imported to find out.

The panel asks before PyTorch is loaded, so that it can say what is missing before anything is
computed.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from medmap.bundle.format import METADATA

BRAIN_BUNDLE = "MEDMAP_BRAIN_BUNDLE"
"""Environment variable that names the brain extraction model to use instead of the shipped one."""


def deepbet_is_installed() -> bool:
    """Whether deepbet can be imported."""
    return _is_installed("deepbet")


def simple_itk_is_installed() -> bool:
    """Whether SimpleITK can be imported."""
    return _is_installed("SimpleITK")


def brain_bundle_is_installed() -> bool:
    """Whether there is a brain extraction model."""
    return brain_bundle_path() is not None


def can_extract_brains() -> bool:
    """Whether any method of brain extraction is installed."""
    return deepbet_is_installed() or brain_bundle_is_installed()


def brain_bundle_path() -> Path | None:
    """Folder of the brain extraction model; None if there is none.

    It lies beside the default model and ships with it, but is no choice of a user.
    """
    for candidate in _candidates():
        if (candidate / METADATA).is_file():
            return candidate
    return None


def _candidates() -> list[Path]:
    environment = os.environ.get(BRAIN_BUNDLE)
    if environment:
        return [Path(environment)]
    package = Path(__file__).resolve().parents[1]
    return [
        package.parents[1] / "Resources/bundles/brain",
        package / "bundles/brain",
        package.parent / "Resources/MedMAPBundles/brain",
    ]


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:
        # A module that was blocked on purpose (sys.modules[...] = None) has no specification.
        return False
