"""Where the slices of a stack lie: their order, their affine, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medmap.dicom.headers import Slice

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_DIRECTION = 0.01
"""Largest difference of direction cosines within one stack; about half a degree."""
SAME_POSITION_MM = 0.01
UNEVEN = 0.1
"""Largest deviation of a distance between slices, as a fraction of the usual distance."""
MISSING = 1.5
"""A distance of this many usual ones means that a slice is missing."""
MAX_DRIFT_MM = 0.5
"""Slices may move along themselves by this much over the whole stack: rounding, no tilt."""


@dataclass(frozen=True)
class Stack:
    """Parallel slices, ordered along their normal.

    Attributes:
        slices: at least one; from the first along the normal (row x column) to the last.
        affine: [4, 4] float64, index (column, row, slice, 1) -> world RAS in mm; the identity where
            ``problem`` says that there is none.
        problem: why the slices make no volume; empty if they do.
    """

    slices: tuple[Slice, ...]
    affine: np.ndarray
    problem: str = ""


def is_placed(item: Slice) -> bool:
    """Whether a slice says where it lies."""
    return len(item.position) == 3 and len(item.orientation) == 6 and len(item.spacing) == 2


def same_orientation(one: Slice, other: Slice) -> bool:
    """Whether two slices are parallel and turned alike."""
    difference = np.subtract(one.orientation, other.orientation)
    return bool(np.abs(difference).max() < SAME_DIRECTION)


def along_normal(slices: Sequence[Slice]) -> np.ndarray:
    """[n] positions in mm of parallel slices along the first one's normal."""
    positions = np.array([item.position for item in slices])
    return positions @ _normal(slices[0])


def stack(slices: Sequence[Slice]) -> Stack:
    """Order parallel slices of one size and find their affine.

    Args:
        slices: at least one; no two at one position.
    """
    distances = along_normal(slices)
    order = np.argsort(distances, kind="stable")
    ordered = tuple(slices[n] for n in order)
    distances = distances[order]
    problem = ""
    if len(ordered) > 1:
        problem = _uneven(np.diff(distances)) or _tilted(ordered)
    affine = np.eye(4)
    if not problem:
        affine = _affine(ordered)
    return Stack(ordered, affine, problem)


def _normal(item: Slice) -> np.ndarray:
    row, column = np.array(item.orientation[:3]), np.array(item.orientation[3:])
    normal = np.cross(row, column)
    return normal / np.linalg.norm(normal)


def _uneven(gaps: np.ndarray) -> str:
    usual = float(np.median(gaps))
    missing = int(np.sum(np.rint(gaps[gaps > MISSING * usual] / usual) - 1))
    if missing == 1:
        return "a slice is missing"
    if missing > 1:
        return f"{missing} slices are missing"
    if np.abs(gaps - usual).max() > UNEVEN * usual + SAME_POSITION_MM:
        return f"its slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart"
    return ""


def _tilted(slices: Sequence[Slice]) -> str:
    """A stack whose slices are displaced along themselves, as a tilted gantry does."""
    normal = _normal(slices[0])
    path = np.subtract(slices[-1].position, slices[0].position)
    along = float(path @ normal)
    drift = float(np.linalg.norm(path - along * normal))
    if drift <= MAX_DRIFT_MM:
        return ""
    angle = np.degrees(np.arctan2(drift, along))
    return f"its slices are displaced along themselves (a gantry tilt of {angle:.0f}°)"


def _affine(slices: Sequence[Slice]) -> np.ndarray:
    first = slices[0]
    row_spacing, column_spacing = first.spacing
    step = _normal(first)
    if len(slices) > 1:
        path = np.subtract(slices[-1].position, first.position)
        step = path / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * column_spacing
    affine[:3, 1] = np.array(first.orientation[3:]) * row_spacing
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine
