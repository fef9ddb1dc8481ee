"""Training objectives by name. A new paradigm is a file here and a line in ``OBJECTIVES``."""

from __future__ import annotations

from medmap.objectives.base import Objective
from medmap.objectives.plain import Plain

OBJECTIVES: dict[str, type[Objective]] = {
    "plain": Plain,
}

__all__ = ["OBJECTIVES", "Objective"]
