"""How the tests of hearts prepare them: slices of 4 mm, and the modalities by name."""

from __future__ import annotations

from medmap.preprocess import PreprocessSpec
from medmap.task import MYOPS

SPEC = PreprocessSpec(spacing=4.0, slices=True, field=256.0)
NAMES = MYOPS.modality_names


def quiet(fraction: float, text: str) -> None:
    """Progress that nobody reads."""
