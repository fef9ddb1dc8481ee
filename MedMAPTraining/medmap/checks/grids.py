"""Checks of where images lie: grids, overlap, slices, and what the reference leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np

from medmap.checks.brain import brain_ml
from medmap.checks.finding import Finding, listed, sizes_text, times_text
from medmap.checks.values import SAMPLED_VOXELS
from medmap.errors import InputDataError
from medmap.task import Task
from medmap.volume import Grid, Volume, apply_affine

SAME_GRID_VOXELS = 0.1
"""Grids that agree this well at every corner count as one."""
MIN_OVERLAP = 0.10
"""Below this fraction brains do not overlap (refused)."""
GOOD_OVERLAP = 0.85
"""Below this fraction they overlap badly (warning)."""
THICK_SLICE_MM = 4.0
"""Slices thicker than this are mentioned."""
MIN_UNCOVERED = 0.02
MIN_UNCOVERED_ML = 5.0
"""Share and volume of a brain outside the reference image from which a warning is worth it."""


def check_slice_thickness(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Report thick slices, which blur small structures; in slice-wise tasks they are the rule."""
    if not task.skull_stripped:
        return
    for name, volume in volumes.items():
        spacing_mm = volume.grid.spacing.max()
        if spacing_mm > THICK_SLICE_MM:
            message = (
                f"{name} has slices {spacing_mm:.1f} mm apart: small parts and borders are less "
                "certain."
            )
            yield Finding("info", "thick-slices", message)


def check_grids(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when images lie on different grids: they will be resampled."""
    groups = _grid_groups(volumes)
    if len(groups) < 2:
        return
    listed_grids = "; ".join(f"{listed(names)} {describe_grid(grid)}" for grid, names in groups)
    distance = ""
    voxels_apart = _voxels_apart(groups[0][0], groups[1][0])
    if len(groups) == 2 and np.isfinite(voxels_apart):
        distance = f" (up to {voxels_apart:.1f} voxels apart)"
    message = (
        f"The images lie on different grids{distance}: {listed_grids}. They are resampled to the "
        "reference image."
    )
    yield Finding("warning", "grids", message, "Resample them yourself to control how it is done.")


def check_overlap(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Refuse images whose brains (or fields of view) lie apart; warn when they overlap badly."""
    structures = "brains" if task.skull_stripped else "fields of view"
    for (name, volume), (other_name, other) in combinations(volumes.items(), 2):
        fraction = brain_overlap(volume, other)
        if fraction < MIN_OVERLAP:
            raise InputDataError(
                f"{name} and {other_name} do not show the same place: their {structures} overlap "
                f"by {fraction:.0%}.",
                "Register the images to each other first, and check that they are of one patient.",
            )
        if fraction < GOOD_OVERLAP:
            message = f"The {structures} in {name} and {other_name} overlap by {fraction:.0%} only."
            remedy = "Register the images to each other first."
            yield Finding("warning", "overlap", message, remedy)


def check_coverage(volumes: Mapping[str, Volume], reference: str, task: Task) -> Iterator[Finding]:
    """Warn where the reference's field of view leaves out brain that another image shows.

    The label map ends where the reference does: what lies outside is
    neither segmented nor measured.

    Args:
        volumes: the images by modality name.
        reference: the modality whose grid carries the result.
        task: the modalities.
    """
    if not task.skull_stripped:
        return
    grid = volumes[reference].grid
    title = task.modality(reference).title
    for name, volume in volumes.items():
        fraction = _fraction_outside(volume, grid)
        volume_ml = fraction * brain_ml(volume)
        if fraction < MIN_UNCOVERED or volume_ml < MIN_UNCOVERED_ML:
            continue
        message = (
            f"{title} ends before the {task.organ} does: {volume_ml:.0f} ml ({fraction:.0%}) of "
            f"the {task.organ} that {task.modality(name).title} shows lie outside and "
            "were not segmented."
        )
        remedy = f"Choose {task.modality(name).title} as the reference to segment all of it."
        yield Finding("warning", "coverage", message, remedy, (reference, name))


def describe_grid(grid: Grid) -> str:
    """A grid in messages: ``240 x 240 x 155 at 1 x 1 x 1 mm``."""
    return f"{times_text(grid.shape)} at {sizes_text(grid.spacing)} mm"


def brain_overlap(volume: Volume, other: Volume) -> float:
    """Fraction of the smaller brain's voxels that lie inside the other brain, 0..1."""
    small, large = sorted((volume, other), key=brain_ml)
    positions = np.rint(_sampled_positions(small, large.affine)).astype(int)
    coordinate_within = (positions >= 0) & (positions < large.array.shape)
    within = coordinate_within.all(axis=1)
    index = tuple(positions[within].T)
    in_brain = large.foreground[index]
    return float(np.count_nonzero(in_brain)) / len(positions)


def _fraction_outside(volume: Volume, grid: Grid) -> float:
    """Fraction of a brain's voxels that lie outside of a grid, 0..1."""
    positions = _sampled_positions(volume, grid.affine)
    if not len(positions):
        return 0.0
    # The outermost voxels reach half a voxel beyond their centers.
    last = np.array(grid.shape) - 0.5
    coordinate_covered = (positions >= -0.5) & (positions <= last)
    is_covered = coordinate_covered.all(axis=1)
    return 1.0 - float(np.count_nonzero(is_covered)) / len(positions)


def _sampled_positions(volume: Volume, affine: np.ndarray) -> np.ndarray:
    """[N, 3] places of brain voxels on another grid, in its voxels.

    Some voxels are enough for a fraction, and a brain has millions.
    """
    inside = np.flatnonzero(volume.foreground)
    step = max(1, inside.size // SAMPLED_VOXELS)
    sampled = inside[::step]
    indices = np.unravel_index(sampled, volume.array.shape)
    voxels = np.stack(indices, axis=1)
    to_grid = np.linalg.inv(affine) @ volume.affine
    return apply_affine(to_grid, voxels)


def _grid_groups(volumes: dict[str, Volume]) -> list[tuple[Grid, list[str]]]:
    """Modalities that lie on one grid, with the grid of the first of them."""
    groups: list[tuple[Grid, list[str]]] = []
    for name, volume in volumes.items():
        for grid, names in groups:
            if _voxels_apart(grid, volume.grid) <= SAME_GRID_VOXELS:
                names.append(name)
                break
        else:
            groups.append((volume.grid, [name]))
    return groups


def _voxels_apart(grid: Grid, other: Grid) -> float:
    return grid.distance(other) / float(grid.spacing.min())
