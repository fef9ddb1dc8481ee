"""DICOM: studies in; segmentation objects and structured reports out.

Import the modules of this package on first use and after ``check_libraries``: they need the extra
``medmap[clinic]``.
"""

from __future__ import annotations

import importlib.util

from medmap.errors import UnavailableError

LIBRARIES = ("pydicom", "highdicom")


def check_libraries() -> None:
    """Raises UnavailableError when a library that DICOM needs is not installed."""
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise UnavailableError(
                f"Reading DICOM needs {library}, which is not installed.",
                "Install the extra with it: pip install medmap[clinic].",
            )
