"""Where the slices of a stack lie: their order, their affine, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medmap.dicom.headers import Slice

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_DIRECTION = 0.01
"""Largest difference of direction cosines within one stack; about half a degree."""
UNIT_TOLERANCE = 0.02
"""Direction cosines that are rounded to two decimals are this far from unit vectors."""
SAME_POSITION_MM = 0.01
UNEVEN = 0.1
"""Largest deviation of a distance between slices, as a fraction of the usual distance."""
MISSING = 1.5
"""A distance of this many usual ones means that a slice is missing."""
MAX_DRIFT_MM = 0.5
"""Slices may move along themselves by this much over the whole stack: rounding, no tilt."""
MAX_TILT_DEGREES = 45.0
"""A gantry tilts by up to 30 degrees; more is no tilt but wrong positions."""


@dataclass(frozen=True)
class Stack:
    """Parallel slices, ordered along their normal.

    Attributes:
        slices: at least one; from the first along the normal (row x column) to the last.
        affine: [4, 4] float64, index (column, row, slice, 1) -> world RAS in mm; the identity where
            ``problem`` says that there is none.
        problem: why the slices make no volume; empty if they do.
        shear: columns and rows by which each slice lies further along itself than the one before,
            as a tilted gantry displaces them; 0 in most stacks.
    """

    slices: tuple[Slice, ...]
    affine: np.ndarray
    problem: str = ""
    shear: tuple[float, float] = (0.0, 0.0)

    @property
    def is_tilted(self) -> bool:
        """Whether the slices have to be moved along themselves to make a volume."""
        return self.shear != (0.0, 0.0)

    @property
    def shifts(self) -> np.ndarray:
        """[slices, 2] columns and rows from the first pixel of the volume to that of a slice."""
        steps = np.arange(len(self.slices))[:, None] * np.array(self.shear)
        return steps - _first_pixel(len(self.slices), self.shear)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, and slices of the volume, which holds every slice where it belongs."""
        first = self.slices[0]
        added = np.ceil(self.shifts.max(axis=0)).astype(int)
        return first.columns + int(added[0]), first.rows + int(added[1]), len(self.slices)


def is_placed(item: Slice) -> bool:
    """Whether a slice says where it lies, and can lie there."""
    if len(item.position) != 3 or len(item.orientation) != 6 or len(item.spacing) != 2:
        return False
    if not np.isfinite([*item.position, *item.orientation, *item.spacing]).all():
        return False
    if min(item.spacing) <= 0:
        return False
    directions = np.array(item.orientation).reshape(2, 3)
    # Of unit vectors at right angles, this is the identity.
    return bool(np.abs(directions @ directions.T - np.eye(2)).max() < UNIT_TOLERANCE)


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
    shear = (0.0, 0.0)
    if len(ordered) > 1:
        problem = _uneven(np.diff(distances)) or _scattered(ordered)
        shear = _shear(ordered)
    if problem:
        return Stack(ordered, np.eye(4), problem)
    return Stack(ordered, _affine(ordered, shear), shear=shear)


def _normal(item: Slice) -> np.ndarray:
    return _unit(np.cross(item.orientation[:3], item.orientation[3:]))


def _unit(vector: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.asarray(vector, float) / np.linalg.norm(vector)


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


def _scattered(slices: Sequence[Slice]) -> str:
    """Slices that are displaced along themselves, other than evenly."""
    drifts = _drifts(slices)
    order = np.linspace(0.0, 1.0, len(slices))[:, None]
    uneven_mm = float(np.linalg.norm(drifts - order * drifts[-1], axis=1).max())
    if uneven_mm > MAX_DRIFT_MM:
        return f"its slices are displaced along themselves, by up to {uneven_mm:.1f} mm"
    if tilt_degrees(slices) > MAX_TILT_DEGREES:
        return f"its slices are displaced along themselves (by {tilt_degrees(slices):.0f}°)"
    return ""


def tilt_degrees(slices: Sequence[Slice]) -> float:
    """Angle between the normal of ordered slices and the line through their first pixels."""
    along = float(along_normal(slices[-1:])[0] - along_normal(slices[:1])[0])
    return float(np.degrees(np.arctan2(np.linalg.norm(_drifts(slices)[-1]), along)))


def _drifts(slices: Sequence[Slice]) -> np.ndarray:
    """[n, 3] mm by which each slice lies along itself from the first one."""
    normal = _normal(slices[0])
    paths = np.array([item.position for item in slices]) - slices[0].position
    return paths - np.outer(paths @ normal, normal)


def _shear(slices: Sequence[Slice]) -> tuple[float, float]:
    """Columns and rows from slice to slice of a tilted stack; 0 where they are but rounding."""
    drift = _drifts(slices)[-1]
    if np.linalg.norm(drift) <= MAX_DRIFT_MM:
        return 0.0, 0.0
    first = slices[0]
    row_spacing, column_spacing = first.spacing
    step = drift / (len(slices) - 1)
    columns = float(step @ _unit(first.orientation[:3])) / column_spacing
    rows = float(step @ _unit(first.orientation[3:])) / row_spacing
    return columns, rows


def _first_pixel(count: int, shear: tuple[float, float]) -> np.ndarray:
    """[2] column and row, counted from the first slice, at which a tilted volume begins."""
    return np.floor(np.minimum(0.0, (count - 1) * np.array(shear)))


def _affine(slices: Sequence[Slice], shear: tuple[float, float]) -> np.ndarray:
    first = slices[0]
    row_spacing, column_spacing = first.spacing
    column_step = _unit(first.orientation[:3]) * column_spacing
    row_step = _unit(first.orientation[3:]) * row_spacing
    step = _normal(first)
    if len(slices) > 1:
        path = np.subtract(slices[-1].position, first.position)
        step = path / (len(slices) - 1) - shear[0] * column_step - shear[1] * row_step
    column, row = _first_pixel(len(slices), shear)
    affine = np.eye(4)
    affine[:3, 0] = column_step
    affine[:3, 1] = row_step
    affine[:3, 2] = step
    affine[:3, 3] = first.position + column * column_step + row * row_step
    return LPS_TO_RAS @ affine
