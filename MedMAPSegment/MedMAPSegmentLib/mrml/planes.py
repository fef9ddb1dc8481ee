"""Names of the anatomical planes, for people."""

from __future__ import annotations

from ..i18n import translator

_ = translator(__file__)


def planeTitle(plane: str) -> str:
    """A plane in the user's language.

    Args:
        plane: ``axial``, ``coronal`` or ``sagittal``.
    """
    titles = {"axial": _("axial"), "coronal": _("coronal"), "sagittal": _("sagittal")}
    return titles[plane]
