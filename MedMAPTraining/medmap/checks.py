"""Checks on scans before anything is computed from them. numpy only, so that they also live inside Slicer.

What cannot be used is refused (``InputDataError``, ``UsageError``); what can be used but should be known is a
``Finding`` that goes into the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

import numpy as np

from medmap.errors import InputDataError, UsageError
from medmap.task import Task
from medmap.volume import Grid, Volume

SPACING_MM = (0.2, 10.0)
"""Voxel sizes outside are a wrong unit or a damaged header, not a brain scan."""
FARTHEST_MM = 1e5
"""No scan begins farther from the world's origin."""
LARGEST_SHEAR = 1e-3
"""Largest cosine between two voxel axes that should be perpendicular; 0.001 moves a corner of a brain by 0.2 mm."""
FEW_NOT_FINITE = 1e-3
"""Share of NaN or infinite voxels up to which they are replaced."""
BRAIN_ML = (300.0, 2200.0)
"""Plausible brain with its CSF, after skull-stripping; adults lie between 1000 and 1900 ml."""
LEAST_BACKGROUND = 0.10
"""A skull-stripped scan has more background: a tight box about a brain has 45 %, about a slab of one 20 %."""
SAME_GRID_VOXELS = 0.1
"""Grids that agree this well at every corner count as one."""
OVERLAP = (0.10, 0.85)
"""Below the first share brains do not overlap (refused); below the second they overlap badly (warning)."""
THICK_MM = 4.0
"""Slices thicker than this are mentioned."""
CUT = 0.10
"""A face that shows more than this share of the largest cross-section cuts the brain."""


@dataclass(frozen=True)
class Finding:
    """One thing worth saying about an input.

    Attributes:
        level: ``info`` or ``warning``.
        check: short id of what was looked at (``skull-strip``).
        message: what was seen, in one sentence that begins with the scan.
        remedy: what the user can do; empty if nothing needs doing.
    """

    level: Literal["info", "warning"]
    check: str
    message: str
    remedy: str = ""


def background_value(array: np.ndarray) -> float | None:
    """The constant around a skull-stripped brain: 0 mostly, something else after a z-score; None if there is none.

    It is the most frequent exact value on the six faces of the volume, if it makes up 5 % of them and is three times
    as frequent as any other value (else it may be quantised noise in air).

    Args:
        array: [I, J, K] intensities; NaN and Inf are left out.
    """
    return _dominant(_faces(array), least=0.05)


def foreground(array: np.ndarray) -> tuple[np.ndarray, float]:
    """What is brain in a skull-stripped scan: finite voxels that differ from the background.

    Without a constant background (``background_value`` is None) the smallest value takes its place, so that nearly
    everything is foreground. A second constant that covers most of the faces of what is left is background, too:
    scans that were normalised first and padded afterwards. The result moves with the voxels under flips and
    permutations of the axes; the cost is a few passes over the array.

    Args:
        array: [I, J, K] intensities.

    Returns:
        [I, J, K] bool mask, and the background value (the outer one if there are two; 0 for an array without any
        finite voxel).
    """
    background = background_value(array)
    finite = np.isfinite(array)
    if background is None:
        background = float(array.min(where=finite, initial=np.inf)) if finite.any() else 0.0
        return finite & (array != background), background
    mask = finite & (array != array.dtype.type(background))
    box = bounding_box(mask)
    if box is not None:
        inner = _dominant(_faces(array[box]), least=0.5)
        if inner is not None and inner != background:
            mask &= array != array.dtype.type(inner)
    return mask, background


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Smallest box [I, J, K] of slices around the True voxels of a mask; None when there are none."""
    rows = mask.any(axis=2)
    profiles = (rows.any(axis=1), rows.any(axis=0), mask.any(axis=(0, 1)))
    if not profiles[0].any():
        return None
    ends = [np.flatnonzero(profile)[[0, -1]] for profile in profiles]
    return tuple(slice(int(first), int(last) + 1) for first, last in ends)


def replace_not_finite(array: np.ndarray, name: str) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Put the background value (0 if there is none) where a few voxels are NaN or infinite.

    Args:
        array: [I, J, K] float intensities; not changed.
        name: how messages call the scan.

    Returns:
        The array (the same one if nothing was replaced) and what to say about it.

    Raises:
        InputDataError: more than 0.1 % of the voxels are not finite.
    """
    bad = ~np.isfinite(array)
    count = int(np.count_nonzero(bad))
    if not count:
        return array, ()
    if count == array.size:
        raise InputDataError(f"{name}: every voxel is NaN or infinite.", "Export the scan again, or leave it out.")
    if count > FEW_NOT_FINITE * array.size:
        raise InputDataError(
            f"{name}: {count} voxels ({count / array.size:.1%}) are NaN or infinite.",
            "Save the scan with a number (0 outside the brain) in every voxel.",
        )
    value = background_value(array) or 0.0
    message = f"{name}: {count} voxels ({count / array.size:.2%}) are NaN or infinite and were set to {value:g}."
    return np.where(bad, array.dtype.type(value), array), (Finding("warning", "not-finite", message),)


def affine_problem(affine: np.ndarray) -> str | None:
    """Why a [4, 4] voxel-to-world matrix cannot be used, as the end of a sentence; None if it can.

    It must be finite and invertible, its axes perpendicular, and its voxels 0.2 to 10 mm large.
    """
    if not np.isfinite(affine).all():
        return "holds numbers that are not finite"
    axes = affine[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    if not sizes.all():
        return "gives a voxel no extent along an axis"
    if not (SPACING_MM[0] <= sizes.min() and sizes.max() <= SPACING_MM[1]):
        return f"gives voxels of {_sizes(sizes)} mm (0.2 to 10 mm are possible)"
    if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        return "puts the scan more than 100 m away from the origin"
    cosines = (axes / sizes).T @ (axes / sizes) - np.eye(3)
    i, j = np.unravel_index(np.abs(cosines).argmax(), (3, 3))
    if abs(cosines[i, j]) <= LARGEST_SHEAR:
        return None
    if abs(np.linalg.det(axes / sizes)) < LARGEST_SHEAR:
        return "is singular: voxels lie in a plane"
    degrees = np.degrees(np.arccos(np.clip(cosines[i, j], -1, 1)))
    return f"is sheared: axes {'ijk'[min(i, j)]} and {'ijk'[max(i, j)]} meet at {degrees:.1f} instead of 90 degrees"


class _Scan(Volume):
    """A volume whose brain is looked for once."""

    @cached_property
    def brain(self) -> np.ndarray:
        return foreground(self.array)[0]

    @cached_property
    def box(self) -> tuple[slice, slice, slice]:
        return bounding_box(self.brain) or (slice(0, 0),) * 3

    @cached_property
    def brain_ml(self) -> float:
        return float(np.count_nonzero(self.brain)) * self.grid.voxel_ml


def _scan(volume: Volume) -> _Scan:
    if isinstance(volume, _Scan):
        return volume
    return _Scan(volume.array, volume.affine, volume.name, volume.notes)


def usable(volumes: dict[str, Volume], task: Task) -> Iterable[Finding]:
    """Refuse what is no 3-D array of finite numbers at a possible place in space."""
    for name, volume in volumes.items():
        if volume.array.ndim != 3 or min(volume.array.shape) < 2:
            raise InputDataError(
                f"{name} has the shape {_times(volume.array.shape)}: MedMAP needs a 3-D volume.", "Give the whole scan."
            )
        if not np.isfinite(volume.array).all():
            raise InputDataError(f"{name} holds voxels that are NaN or infinite.", "Replace them first.")
        problem = affine_problem(np.asarray(volume.affine, dtype=float))
        if problem:
            raise InputDataError(f"The voxel-to-world matrix of {name} {problem}.", "Export the scan again.")
    return ()


def contrast(volumes: dict[str, Volume], task: Task) -> Iterable[Finding]:
    """Refuse a scan that is one value everywhere, or has nothing but background."""
    for name, volume in volumes.items():
        low, high = float(volume.array.min()), float(volume.array.max())
        if high - low <= 1e-6 * max(abs(low), abs(high)) or not _scan(volume).brain.any():
            raise InputDataError(f"{name} has no contrast: every voxel is {low:g}.", "Leave this modality out.")
    return ()


def same_image(volumes: dict[str, Volume], task: Task) -> Iterable[Finding]:
    """Refuse one image given for two modalities."""
    for (one, a), (two, b) in combinations(volumes.items(), 2):
        if a.array.shape == b.array.shape and np.array_equal(a.array, b.array):
            raise InputDataError(f"{one} and {two} are the same image.", "Give each modality its own scan.")
    return ()


def skull_strip(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when a scan does not look skull-stripped: hardly any exact background, or more than a brain can be."""
    remedy = "Skull-strip all scans first: the model knows brains only."
    for name, volume in volumes.items():
        scan = _scan(volume)
        share = 1.0 - np.count_nonzero(scan.brain) / scan.brain.size
        if share < LEAST_BACKGROUND:
            seen = f"only {share:.0%} of its voxels are exact background; a skull-stripped scan has more than 30 %"
        elif scan.brain_ml > BRAIN_ML[1]:
            seen = f"{scan.brain_ml / 1000:.1f} litres are not background; a brain has at most 2.2"
        else:
            continue
        yield Finding("warning", "skull-strip", f"{name} does not look skull-stripped: {seen}.", remedy)


def brain_volume(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Say when the brain is implausibly small: part of a brain (info), or a wrong voxel size (warning)."""
    for name, volume in volumes.items():
        scan = _scan(volume)
        if scan.brain_ml >= BRAIN_ML[0]:
            continue
        seen = f"{name} shows {scan.brain_ml:.0f} ml of brain (an adult has 1000 to 1900)"
        if _cut_faces(scan):
            yield Finding("info", "brain-volume", f"{seen}: part of a brain.")
        else:
            yield Finding("warning", "brain-volume", f"{seen}.", "Check voxel size and skull-stripping.")


def field_of_view(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Say where the volume ends before the brain does."""
    for faces, names in _grouped(volumes, lambda volume: _cut_faces(_scan(volume))):
        if faces:
            message = f"{_listed(names)}: the brain is cut at the {_listed(faces)}. What lies outside is not found."
            yield Finding("info", "field-of-view", message)


def thick_slices(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Say that thick slices blur what is smaller."""
    for name, volume in volumes.items():
        spacing = volume.grid.spacing
        if spacing.max() > THICK_MM:
            message = f"{name} has slices {spacing.max():.1f} mm apart: small parts and borders are less certain."
            yield Finding("info", "thick-slices", message)


def grids(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when scans lie on different grids: they will be resampled."""
    different: list[tuple[Grid, list[str]]] = []
    for name, volume in volumes.items():
        same = (names for grid, names in different if _voxels_apart(grid, volume.grid) <= SAME_GRID_VOXELS)
        names = next(same, None)
        if names is None:
            different.append((volume.grid, [name]))
        else:
            names.append(name)
    if len(different) < 2:
        return
    shown = "; ".join(f"{_listed(names)} {_described(grid)}" for grid, names in different)
    apart = _voxels_apart(different[0][0], different[1][0])
    moved = f" (up to {apart:.1f} voxels apart)" if len(different) == 2 and np.isfinite(apart) else ""
    message = f"The scans lie on different grids{moved}: {shown}. They are resampled to the reference scan."
    yield Finding("warning", "grids", message, "Resample them yourself to control how it is done.")


def overlap(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Refuse scans whose brains lie apart in space; warn when they overlap badly."""
    for (one, a), (two, b) in combinations(volumes.items(), 2):
        share = _overlap(_scan(a), _scan(b))
        if share < OVERLAP[0]:
            raise InputDataError(
                f"{one} and {two} do not show the same place: their brains overlap by {share:.0%}.",
                "Register the scans to each other first, and check that they are of one patient.",
            )
        if share < OVERLAP[1]:
            message = f"The brains in {one} and {two} overlap by {share:.0%} only."
            yield Finding("warning", "overlap", message, "Register the scans to each other first.")


Check = Callable[[dict[str, Volume], Task], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    usable,
    contrast,
    same_image,
    overlap,
    grids,
    skull_strip,
    brain_volume,
    field_of_view,
    thick_slices,
)
"""Refusals first: later checks rely on what earlier ones made sure of."""


def check_inputs(volumes: dict[str, Volume], task: Task) -> tuple[Finding, ...]:
    """Look at all scans of one case.

    Args:
        volumes: modality name -> scan, any non-empty subset of the task's modalities, in any order.
        task: what modalities there are.

    Returns:
        The notes that the volumes carry from reading, then what the checks found, in the task's modality order.

    Raises:
        UsageError: no modality is given, or one that the task does not have.
        InputDataError: a scan cannot be used, two are the same image, or two show different places.
    """
    if not volumes:
        raise UsageError("No scan was given.", f"Give at least one of {', '.join(task.modality_names)}.")
    ordered = {name: _scan(volumes[name]) for name in sorted(volumes, key=task.index)}
    notes = [note for volume in ordered.values() for note in volume.notes]
    return (*notes, *(finding for check in CHECKS for finding in check(ordered, task)))


def _faces(array: np.ndarray) -> np.ndarray:
    return np.concatenate([np.take(array, end, axis).ravel() for axis in range(3) for end in (0, -1)])


def _dominant(values: np.ndarray, least: float) -> float | None:
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    distinct, counts = np.unique(values, return_counts=True)
    top = int(counts.argmax())
    runner_up = np.delete(counts, top).max(initial=0)
    return float(distinct[top]) if counts[top] >= max(least * values.size, 3 * runner_up) else None


def _overlap(a: _Scan, b: _Scan) -> float:
    """Share of the smaller brain's voxels that lie inside the other brain, from about 20 000 of them."""
    small, large = (a, b) if a.brain_ml <= b.brain_ml else (b, a)
    inside = np.flatnonzero(small.brain)
    ijk = np.stack(np.unravel_index(inside[:: max(1, inside.size // 20000)], small.brain.shape), axis=1)
    to_other = np.linalg.inv(large.affine) @ small.affine
    other = np.rint(ijk @ to_other[:3, :3].T + to_other[:3, 3]).astype(int)
    other = other[((other >= 0) & (other < large.brain.shape)).all(axis=1)]
    return float(np.count_nonzero(large.brain[tuple(other.T)])) / len(ijk)


def _cut_faces(scan: _Scan) -> tuple[str, ...]:
    """Anatomical names of the faces at which the brain is cut off."""
    found = []
    for axis in range(3):
        profile = np.count_nonzero(scan.brain, axis=tuple(a for a in range(3) if a != axis))
        direction = scan.affine[:3, axis]
        world = int(np.abs(direction).argmax())
        low, high = (("left", "right"), ("back", "front"), ("bottom", "top"))[world]
        if direction[world] < 0:
            low, high = high, low
        found += [word for word, end in ((low, 0), (high, -1)) if profile[end] > CUT * profile.max()]
    return tuple(sorted(found))


def _voxels_apart(a: Grid, b: Grid) -> float:
    return a.distance(b) / float(a.spacing.min())


def _grouped(volumes: dict[str, Volume], key: Callable[[Volume], tuple]) -> list[tuple[tuple, list[str]]]:
    groups: dict[tuple, list[str]] = {}
    for name, volume in volumes.items():
        groups.setdefault(key(volume), []).append(name)
    return list(groups.items())


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _described(grid: Grid) -> str:
    return f"{_times(grid.shape)} at {_sizes(grid.spacing)} mm"


def _times(shape: Iterable[int]) -> str:
    return " x ".join(str(int(n)) for n in shape)


def _sizes(spacing: Iterable[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in spacing)
