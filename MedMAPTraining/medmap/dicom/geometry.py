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
        # A tilted stack needs room for the slices that are displaced the most.
        farthest_column, farthest_row = np.ceil(self.shifts.max(axis=0)).astype(int)
        columns = first.columns + int(farthest_column)
        rows = first.rows + int(farthest_row)
        return columns, rows, len(self.slices)


def is_placed(item: Slice) -> bool:
    """Whether a slice says where it lies, and can lie there."""
    if len(item.position) != 3 or len(item.orientation) != 6 or len(item.spacing) != 2:
        return False
    numbers = [*item.position, *item.orientation, *item.spacing]
    if not np.isfinite(numbers).all():
        return False
    if min(item.spacing) <= 0:
        return False
    directions = np.array(item.orientation).reshape(2, 3)
    # Of unit vectors at right angles, the products are the identity.
    products = directions @ directions.T
    deviations = np.abs(products - np.eye(2))
    return bool(deviations.max() < UNIT_TOLERANCE)


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
    """What is wrong with the distances between slices; empty if nothing is."""
    usual = float(np.median(gaps))
    # A gap of twice the usual lacks one slice, one of three times lacks two.
    wide_gaps = gaps[gaps > MISSING * usual]
    missing = int(np.sum(np.rint(wide_gaps / usual) - 1))
    if missing == 1:
        return "a slice is missing"
    if missing > 1:
        return f"{missing} slices are missing"
    largest_deviation = np.abs(gaps - usual).max()
    if largest_deviation > UNEVEN * usual + SAME_POSITION_MM:
        return f"its slices lie {gaps.min():.2f} to {gaps.max():.2f} mm apart"
    return ""


def _scattered(slices: Sequence[Slice]) -> str:
    """Slices that are displaced along themselves, other than evenly."""
    drifts = _drifts(slices)
    # A tilt displaces every slice by the same step; what deviates from that is no tilt.
    order = np.linspace(0.0, 1.0, len(slices))[:, None]
    even_drifts = order * drifts[-1]
    uneven_mm = float(np.linalg.norm(drifts - even_drifts, axis=1).max())
    if uneven_mm > MAX_DRIFT_MM:
        return f"its slices are displaced along themselves, by up to {uneven_mm:.1f} mm"
    tilt = tilt_degrees(slices)
    if tilt > MAX_TILT_DEGREES:
        return f"its slices are displaced along themselves (by {tilt:.0f}°)"
    return ""


def tilt_degrees(slices: Sequence[Slice]) -> float:
    """Angle between the normal of ordered slices and the line through their first pixels."""
    along = float(along_normal(slices[-1:])[0] - along_normal(slices[:1])[0])
    return float(np.degrees(np.arctan2(np.linalg.norm(_drifts(slices)[-1]), along)))


def _drifts(slices: Sequence[Slice]) -> np.ndarray:
    """[n, 3] mm by which each slice lies along itself from the first one."""
    normal = _normal(slices[0])
    positions = np.array([item.position for item in slices])
    paths = positions - slices[0].position
    # What remains without the part along the normal lies within the slice.
    heights = paths @ normal
    along = np.outer(heights, normal)
    return paths - along


def _shear(slices: Sequence[Slice]) -> tuple[float, float]:
    """Columns and rows from slice to slice of a tilted stack; 0 where they are but rounding."""
    drift = _drifts(slices)[-1]
    if np.linalg.norm(drift) <= MAX_DRIFT_MM:
        return 0.0, 0.0
    first = slices[0]
    row_spacing, column_spacing = first.spacing
    # Orientation holds the direction of a row (along which columns count), then that of a column.
    column_direction = _unit(first.orientation[:3])
    row_direction = _unit(first.orientation[3:])
    step = drift / (len(slices) - 1)
    # In pixels for each slice, along rows and along columns.
    columns_mm = float(step @ column_direction)
    rows_mm = float(step @ row_direction)
    return columns_mm / column_spacing, rows_mm / row_spacing


def _first_pixel(count: int, shear: tuple[float, float]) -> np.ndarray:
    """[2] column and row, counted from the first slice, at which a tilted volume begins."""
    return np.floor(np.minimum(0.0, (count - 1) * np.array(shear)))


def _affine(slices: Sequence[Slice], shear: tuple[float, float]) -> np.ndarray:
    """[4, 4] pixel -> world RAS, in mm, of a stack from which the tilt is taken."""
    first = slices[0]
    row_spacing, column_spacing = first.spacing
    column_step = _unit(first.orientation[:3]) * column_spacing
    row_step = _unit(first.orientation[3:]) * row_spacing
    step = _normal(first)
    if len(slices) > 1:
        column_shear, row_shear = shear
        path = np.subtract(slices[-1].position, first.position)
        tilted_step = path / (len(slices) - 1)
        # The tilt is taken out of the path, so that the third axis is the normal.
        step = tilted_step - column_shear * column_step - row_shear * row_step
    column, row = _first_pixel(len(slices), shear)
    affine = np.eye(4)
    affine[:3, 0] = column_step
    affine[:3, 1] = row_step
    affine[:3, 2] = step
    affine[:3, 3] = first.position + column * column_step + row * row_step
    return LPS_TO_RAS @ affine
