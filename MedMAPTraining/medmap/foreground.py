"""Brain and background of a skull-stripped scan. numpy only, so that it also lives inside Slicer.

Tools leave more than zeros around a brain: ringing of spline interpolation, noise of a few
thousandths, another constant from padding, stray voxels, markers, burnt-in letters. None of it is
brain, and crop and statistics must not follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medmap.boxes import bounding_box
from medmap.mask_parts import cell_counts, filling_of_cells, largest_parts
from medmap.quantiles import order_statistics

TOLERANCE = 0.01
"""Share of a scan's range within which values next to the background's are background, too."""

NOISE_DEVIATIONS = 5.0
"""Standard deviations of the background's own noise that are background: of a million normal draws
none lies farther out."""

LEAST_CONSTANT_SHARE = 0.05
"""Share of the voxels on the faces of a volume from which one exact value is its background."""

LEAST_SHARE = 0.3
"""Of the voxels on the faces of a volume that a background has at least."""

LEAST_INNER_SHARE = 0.5
"""The same on the faces of what remains, for a second background from padding."""

FEW_FAINT = 0.02
"""Voxels, relative to the clear ones, that may lie faintly in the air around a constant background:
noise and ringing fill a multiple of the brain."""

FEW_BELOW = 0.25
"""Fewer voxels below the background than this share of those above are lobes of interpolation. A
cubic shift by a third of a voxel leaves up to 0.15; a z-scored brain has about as many below as
above."""

LEAST_LOBES = 0.005
"""More voxels below the background than this share of those above are no accident."""

FEW_VALUES = 100
"""Values of which the most frequent one is the first guess at a background."""


@dataclass(frozen=True)
class Foreground:
    """What is brain in a skull-stripped scan.

    Attributes:
        mask: [I, J, K] bool.
        background: value of the background; the outer one if there are two.
        apart: number of voxels that differ from the background but lie apart from the brain.
        is_constant: whether the background is one exact value.
    """

    mask: np.ndarray
    background: float
    apart: int
    is_constant: bool


@dataclass(frozen=True)
class _Part:
    """The part of a scan that can be brain. What surrounds it is one exact value.

    Two thirds of a skull-stripped volume are such air: every pass over the voxels that leaves it
    out takes a third of the time.

    Attributes:
        array: [I, J, K] intensities of whole cells of the scan.
        finite: [I, J, K] bool, where they are finite.
        exact: [I, J, K] bool, voxels that differ from a constant background.
        background: that constant.
        faces: [N] intensities on the six faces of the whole scan.
        surrounding: number of voxels around the part; all of them are background.
    """

    array: np.ndarray
    finite: np.ndarray
    exact: np.ndarray
    background: float
    faces: np.ndarray
    surrounding: int


@dataclass(frozen=True)
class _Level:
    """A background: its value, and how far from it values still are background."""

    value: float
    tolerance: float


def background_value(array: np.ndarray) -> float | None:
    """The constant around a skull-stripped brain: 0 mostly, something else after a z-score.

    It is the most frequent exact value on the six faces of the volume, if it makes up 5 % of them
    and is three times as frequent as any other value (else it may be quantized noise in air).

    Args:
        array: [I, J, K] intensities; NaN and Inf are left out.

    Returns:
        The value; None if there is none.
    """
    return _dominant(_faces(array), least=LEAST_CONSTANT_SHARE)


def exact_foreground(array: np.ndarray) -> tuple[np.ndarray, float]:
    """Voxels that differ from a constant background, wherever they lie.

    Without a constant background (``background_value`` is None) the smallest value takes its place,
    so that nearly everything is foreground. A second constant that covers most of the faces of what
    remains is background, too: scans that were normalized first and padded afterwards. The result
    moves with the voxels under flips and permutations of the axes.

    Args:
        array: [I, J, K] intensities.

    Returns:
        [I, J, K] bool mask, and the background value (the outer one if there are two; 0 for an
        array without any finite voxel).
    """
    background = background_value(array)
    finite = np.isfinite(array)
    if background is None:
        background = _smallest(array, finite)
        return finite & (array != background), background
    mask = finite & (array != array.dtype.type(background))
    return _without_second_constant(array, mask, background), background


def _smallest(array: np.ndarray, finite: np.ndarray) -> float:
    """The smallest finite value; 0 without any."""
    if not finite.any():
        return 0.0
    return float(array[finite].min())


def _without_second_constant(array: np.ndarray, mask: np.ndarray, background: float) -> np.ndarray:
    """The mask without a constant that covers most of the faces of what it holds."""
    box = bounding_box(mask)
    if box is None:
        return mask
    inner = _dominant(_faces(array[box]), least=LEAST_INNER_SHARE)
    if inner is None or inner == background:
        return mask
    return mask & (array != array.dtype.type(inner))


def find_foreground(array: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Foreground:
    """What is brain in a skull-stripped scan.

    Background may be nearly constant (noise, ringing, lobes of an interpolation), and what lies
    apart from the brain (stray voxels, markers, letters) is no part of it. A scan without any
    background is foreground as a whole, but for its smallest value. The result moves with the
    voxels under flips and permutations of the axes.

    Args:
        array: [I, J, K] intensities.
        spacing: [3] mm.
    """
    box, part = _part_of(array, spacing)
    mask = part.exact
    background = part.background
    faint = None
    if part.surrounding or part.finite.any():
        faint = _faint_background(part, spacing)
    if faint is not None:
        mask, background = faint
    body = np.zeros(array.shape, bool)
    body[box] = largest_parts(mask, spacing)
    apart = int(np.count_nonzero(mask)) - int(np.count_nonzero(body[box]))
    return Foreground(body, background, apart, is_constant=faint is None)


def foreground(array: np.ndarray) -> tuple[np.ndarray, float]:
    """Mask and background of ``find_foreground``, for voxels of 1 mm."""
    result = find_foreground(array)
    return result.mask, result.background


def _part_of(array: np.ndarray, spacing: Sequence[float]) -> tuple[tuple[slice, ...], _Part]:
    """The part of a scan that can be brain, and the box that it fills."""
    faces = _faces(array)
    background = _dominant(faces, least=LEAST_CONSTANT_SHARE)
    box: tuple[slice, ...] = (slice(None),) * 3
    if background is None:
        finite = np.isfinite(array)
        background = _smallest(array, finite)
        exact = finite & (array != background)
        return box, _Part(array, finite, exact, background, faces, 0)
    differs = array != array.dtype.type(background)
    # Only where the background is that of most of the faces: else a nearly constant background may
    # have another value, and then the air is to be compared with it, too.
    if np.count_nonzero(faces == background) > faces.size / 2:
        box = _whole_cells(differs, spacing)
    inner = array[box]
    finite = np.isfinite(inner)
    exact = _without_second_constant(inner, finite & differs[box], background)
    return box, _Part(inner, finite, exact, background, faces, array.size - inner.size)


def _whole_cells(mask: np.ndarray, spacing: Sequence[float]) -> tuple[slice, ...]:
    """The smallest box of whole cells around a mask; everything for an empty one."""
    box = bounding_box(mask)
    if box is None:
        return (slice(None),) * 3
    sides = []
    for side, count, size in zip(box, cell_counts(spacing), mask.shape, strict=True):
        start = side.start // count * count
        stop = -(-side.stop // count) * count
        sides.append(slice(start, min(stop, size)))
    return tuple(sides)


def _faint_background(part: _Part, spacing: Sequence[float]) -> tuple[np.ndarray, float] | None:
    """The mask where the background is only nearly constant; None where it is constant."""
    # A single hot voxel would widen the range, and with it what counts as background.
    low, high = _quantiles(part, (0.001, 0.999))
    width = float(high - low)
    if width <= 0:
        return None
    outer = _dense_level(part.faces, TOLERANCE * width, LEAST_SHARE)
    if outer is None:
        return None
    above, below = _sides(part, outer)
    has_lobes = _has_lobes(above, below)
    mask = part.finite & _beyond(above, below)
    box = bounding_box(mask)
    if box is None:
        return None
    # Noise may have been padded with a constant.
    inner = _dense_level(_faces(part.array[box]), TOLERANCE * width, LEAST_INNER_SHARE)
    if inner is not None and inner != outer:
        mask = mask & _beyond(*_sides(part, inner))
        if not mask.any():
            return None
    # Ringing that was rounded to integers ends next to the brain instead of filling the air.
    if not has_lobes and not _is_in_air(part.exact & ~mask, mask, spacing):
        return None
    return mask, outer.value


@dataclass(frozen=True)
class _Side:
    """Voxels on one side of a level: [I, J, K] bool in a part, and their number in the scan."""

    mask: np.ndarray
    voxels: int


def _sides(part: _Part, level: _Level) -> tuple[_Side, _Side]:
    """What lies clearly above and clearly below a level."""
    highest = level.value + level.tolerance
    lowest = level.value - level.tolerance
    with np.errstate(invalid="ignore"):
        above = part.array > highest
        below = part.array < lowest
    voxels_above = int(np.count_nonzero(above))
    voxels_below = int(np.count_nonzero(below))
    if part.background > highest:
        voxels_above += part.surrounding
    elif part.background < lowest:
        voxels_below += part.surrounding
    return _Side(above, voxels_above), _Side(below, voxels_below)


def _has_lobes(above: _Side, below: _Side) -> bool:
    """Whether some voxels lie below the background, but too few for a z-scored brain."""
    return LEAST_LOBES * above.voxels < below.voxels < FEW_BELOW * above.voxels


def _beyond(above: _Side, below: _Side) -> np.ndarray:
    """[I, J, K] bool: clearly no background.

    Where nearly everything lies above the background, what lies below it is the lobes of an
    interpolation; a z-scored brain has values on both sides of its background.
    """
    if below.voxels < FEW_BELOW * max(1, above.voxels):
        return above.mask
    return above.mask | below.mask


def _quantiles(part: _Part, shares: Sequence[float]) -> np.ndarray:
    """Quantiles of the scan's finite voxels; a background of one value is counted, not sorted.

    Args:
        part: of the scan.
        shares: of the voxels that are smaller, 0..1.
    """
    background = part.background
    values = part.array[part.exact]
    voxels = part.surrounding + int(np.count_nonzero(part.finite))
    background_voxels = voxels - values.size
    constant_voxels = part.surrounding + int(np.count_nonzero(part.array == background))
    if not values.size or constant_voxels != background_voxels:
        surrounding = np.full(part.surrounding, background, part.array.dtype)
        return np.quantile(np.concatenate([part.array[part.finite], surrounding]), shares)
    below = int(np.count_nonzero(values < background))
    ranks = np.array(shares) * (voxels - 1)
    lower = np.floor(ranks).astype(int)
    upper = np.minimum(lower + 1, voxels - 1)
    # Numbers of the voxels in ascending order. Without the background's, those above it move down.
    numbers = np.concatenate([lower, upper])
    is_background = (numbers >= below) & (numbers < below + background_voxels)
    numbers -= np.where(numbers >= below + background_voxels, background_voxels, 0)
    numbers[is_background] = 0
    ends = np.where(is_background, background, order_statistics(values, numbers)).astype(float)
    low_ends = ends[: len(shares)]
    high_ends = ends[len(shares) :]
    return low_ends + (high_ends - low_ends) * (ranks - lower)


def _is_in_air(faint: np.ndarray, clear: np.ndarray, spacing: Sequence[float]) -> bool:
    """Whether faint voxels fill space where nothing is clear.

    Dark fluid, and values of a z-scored brain that happen to be near its background's, lie among
    clear voxels; noise and ringing lie apart from them.
    """
    most_faint = FEW_FAINT * int(np.count_nonzero(clear))
    if int(np.count_nonzero(faint)) <= most_faint:
        return False
    counts = cell_counts(spacing)
    is_empty = filling_of_cells(clear, counts) == 0
    faint_share = filling_of_cells(faint, counts)
    voxels_per_cell = float(np.prod(counts))
    in_air = float(faint_share[is_empty].sum()) * voxels_per_cell
    return in_air > most_faint


def _dense_level(values: np.ndarray, tolerance: float, least: float) -> _Level | None:
    """The narrow band of values that holds most of them, if it holds the share ``least``."""
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    common = _common_value(values)
    if np.count_nonzero(values == common) > values.size / 2:
        # The band that holds it has it as its median, and no deviation.
        return _Level(common, tolerance)
    ordered = np.sort(values)
    # A window over the sorted values, not a histogram: its bins would split a narrow background.
    stop = np.searchsorted(ordered, ordered + 2 * tolerance, side="right")
    counts = stop - np.arange(ordered.size)
    start = int(counts.argmax())
    if counts[start] < least * ordered.size:
        return None
    band = ordered[start : stop[start]]
    middle = float(np.median(band))
    # 1.4826: the standard deviation of a normal distribution in median absolute deviations.
    deviation = 1.4826 * float(np.median(np.abs(band - middle)))
    return _Level(middle, max(tolerance, NOISE_DEVIATIONS * deviation))


def _faces(array: np.ndarray) -> np.ndarray:
    faces = []
    for axis in range(3):
        for end in (0, -1):
            # Not by np.take, which first copies all of a box that is not contiguous.
            faces.append(np.moveaxis(array, axis, 0)[end].ravel())
    return np.concatenate(faces)


def _dominant(values: np.ndarray, least: float) -> float | None:
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    common = _common_value(values)
    if np.count_nonzero(values == common) >= 0.75 * values.size:
        return common
    distinct, counts = np.unique(values, return_counts=True)
    top = int(counts.argmax())
    runner_up = np.delete(counts, top).max(initial=0)
    if counts[top] < max(least * values.size, 3 * runner_up):
        return None
    return float(distinct[top])


def _common_value(values: np.ndarray) -> float:
    """The most frequent of a few values: that of all where most are alike, and found at once."""
    sampled = values[:: max(1, values.size // FEW_VALUES)]
    distinct, counts = np.unique(sampled, return_counts=True)
    return float(distinct[int(counts.argmax())])
