"""MedMAP: brain-tumor segmentation from whatever MRI a patient has. Research use only.

    import medmap

    result = medmap.segment({"t1ce": "T1CE.nii.gz", "flair": "FLAIR.nii.gz"})
    result.volumes_ml                      # {'WT': ..., 'TC': ..., 'ET': ...}

Importing the package imports nothing heavy: not torch, not MONAI, not nibabel. The names below are
imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medmap.api import compare_subsets, load_bundle, read_nifti, segment, write_labels
    from medmap.bundle.loading import Bundle
    from medmap.inference import Segmentation
    from medmap.volume import Grid, Volume

__version__ = "0.1.0"

NOTICE = (
    "MedMAP is research software. It is not a medical device and is not approved for clinical use."
)

_HOMES = {
    "Bundle": "medmap.bundle.loading",
    "Grid": "medmap.volume",
    "Segmentation": "medmap.inference",
    "Volume": "medmap.volume",
    "compare_subsets": "medmap.api",
    "load_bundle": "medmap.api",
    "read_nifti": "medmap.api",
    "segment": "medmap.api",
    "write_labels": "medmap.api",
}

__all__ = [
    "NOTICE",
    "Bundle",
    "Grid",
    "Segmentation",
    "Volume",
    "__version__",
    "compare_subsets",
    "load_bundle",
    "read_nifti",
    "segment",
    "write_labels",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'medmap' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
