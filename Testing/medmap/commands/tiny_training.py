"""What tests of commands share: a recipe of seconds, and a cohort of small synthetic cases."""

from __future__ import annotations

import json
from pathlib import Path

from medmap.commands.phantoms import write_phantoms
from medmap.progress import ignore_progress

RECIPE = {
    "network_options": {"widths": [4, 6, 8, 8]},
    "steps": 1,
    "patch": [32, 32, 32],
    "large_share": 0.0,
    "preprocess": {"spacing": 4.0},
}

SMALLEST_RECIPE = {**RECIPE, "network_options": {"widths": [4, 6]}, "patch": [16, 16, 16]}
"""For tests in which a training has to run, not to learn."""


def write_recipe(folder: Path, **changes) -> Path:
    """Write the tiny recipe with these changes; returns its path."""
    path = folder / "recipe.json"
    path.write_text(json.dumps({**RECIPE, **changes}))
    return path


def write_cohort(folder: Path, count: int) -> Path:
    """Write so many cases of 4 mm voxels; returns the folder."""
    write_phantoms(folder, count, 11, 4.0, False, "cpu", False, ignore_progress)
    return folder
