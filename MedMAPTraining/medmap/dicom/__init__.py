"""DICOM: studies in; segmentation objects and structured reports out.

Import the modules of this package on first use and after ``check_libraries``: they need the extra
``medmap[clinic]``.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medmap.errors import UnavailableError

LIBRARIES = ("pydicom", "highdicom")
NO_HIGHDICOM = (3, 14)
"""First Python for which a library of highdicom (pyjpegls) has no wheel."""

_PREAMBLE = 128
GROUP_8 = (b"\x08\x00", b"\x00\x08")
"""Files without a preamble begin with an element of group 0008, little or big endian."""


def check_libraries() -> None:
    """Raises UnavailableError when a library that DICOM needs is not installed."""
    for library in LIBRARIES:
        if importlib.util.find_spec(library) is None:
            if library == "highdicom" and sys.version_info >= NO_HIGHDICOM:
                raise UnavailableError(
                    "DICOM needs highdicom, which cannot be installed on this version of Python.",
                    "Use Python 3.11 to 3.13, or convert the study to NIfTI.",
                )
            raise UnavailableError(
                f"Reading DICOM needs {library}, which is not installed.",
                "Install the extra with it: pip install medmap[clinic].",
            )


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence pydicom and highdicom: their warnings quote values, and values may be names."""
    loggers = [logging.getLogger(library) for library in LIBRARIES]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def holds_dicom(folder: Path) -> bool:
    """Whether a DICOM file lies in or below a folder; needs no library and stops at the first.

    Files without a preamble are recognized by their first bytes alone, which others may have, too.
    """
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory, name)
            try:
                with path.open("rb") as stream:
                    start = stream.read(_PREAMBLE + 4)
            except OSError:
                continue
            has_preamble = start[_PREAMBLE:] == b"DICM"
            if has_preamble or (start[:2] in GROUP_8 and len(start) > _PREAMBLE):
                return True
    return False
