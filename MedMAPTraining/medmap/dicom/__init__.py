"""DICOM: studies in; segmentation objects and structured reports out.

Import the modules of this package on first use and after ``check_libraries``: they need the extra
``medmap[clinic]``.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from medmap.errors import UnavailableError

LIBRARIES = ("pydicom", "highdicom")
_PREAMBLE = 128


def check_libraries() -> None:
    """Raises UnavailableError when a library that DICOM needs is not installed."""
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise UnavailableError(
                f"Reading DICOM needs {library}, which is not installed.",
                "Install the extra with it: pip install medmap[clinic].",
            )


def holds_dicom(folder: Path) -> bool:
    """Whether a DICOM file lies in or below a folder; needs no library and stops at the first."""
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory, name)
            try:
                with path.open("rb") as stream:
                    stream.seek(_PREAMBLE)
                    marker = stream.read(4)
            except OSError:
                continue
            if marker == b"DICM":
                return True
    return False
