"""How a long computation reports its progress and is cancelled. Standard library only."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Called with the completed fraction, 0 to 1, and a text for the user."""

Cancel = Callable[[], bool]
"""Asked before every step of a computation; True stops it."""


def ignore_progress(fraction: float, text: str) -> None:
    """Do nothing: the ``Progress`` of a caller who wants no reports."""


def never_cancel() -> bool:
    """Return False: the ``Cancel`` of a caller who never stops a computation."""
    return False
