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

from medmap.appearance import Look, doubts, look
from medmap.errors import InputDataError, UsageError
from medmap.foreground import background_value
from medmap.task import Task
from medmap.volume import Grid, Volume

SPACING_MM = (0.2, 30.0)
"""Voxel sizes outside are a wrong unit or a damaged header; the slices of a heart lie up to 23 mm apart."""
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
LEAST_CONTRAST = 1e-6
"""Range of intensities, relative to their size, that float32 can just tell from none."""
FEW_VALUES = 16
"""Scans have hundreds of different values, label maps a handful."""
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
        raise InputDataError(
            f"{name}: every voxel is NaN or infinite.", "Export the scan again, or leave it out."
        )
    if count > FEW_NOT_FINITE * array.size:
        raise InputDataError(
            f"{name}: {count} voxels ({count / array.size:.1%}) are NaN or infinite.",
            "Save the scan with a number (0 outside the brain) in every voxel.",
        )
    value = background_value(array) or 0.0
    message = f"{name}: {count} voxels ({count / array.size:.2%}) are NaN or infinite and were set to {value:g}."
    return np.where(bad, array.dtype.type(value), array), (
        Finding("warning", "not-finite", message),
    )


def affine_problem(affine: np.ndarray) -> str | None:
    """Why a [4, 4] voxel-to-world matrix cannot be used, as the end of a sentence; None if it can.

    It must be finite and invertible, its axes perpendicular, and its voxels 0.2 to 30 mm large.
    """
    if not np.isfinite(affine).all():
        return "holds numbers that are not finite"
    axes = affine[:3, :3]
    with np.errstate(all="ignore"):
        sizes = np.linalg.norm(axes, axis=0)
    if not sizes.all():
        return "gives a voxel no extent along an axis"
    if not (SPACING_MM[0] <= sizes.min() and sizes.max() <= SPACING_MM[1]):
        return f"gives voxels of {_sizes(sizes)} mm (0.2 to 30 mm are possible)"
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


@dataclass(frozen=True)
class _Scan(Volume):
    """A volume with what several checks look at.

    Attributes:
        source: the volume that was given, which remembers its foreground for the preprocessing.
    """

    source: Volume | None = None

    @property
    def brain(self) -> np.ndarray:
        return self.source.foreground

    @cached_property
    def brain_ml(self) -> float:
        return float(np.count_nonzero(self.brain)) * self.grid.voxel_ml

    @cached_property
    def look(self) -> Look | None:
        return look(self, self.brain)


def _scan(volume: Volume) -> _Scan:
    if isinstance(volume, _Scan):
        return volume
    return _Scan(volume.array, volume.affine, volume.name, volume.notes, source=volume)


def usable(volumes: dict[str, Volume], task: Task) -> Iterable[Finding]:
    """Refuse what is no 3-D array of finite numbers at a possible place in space."""
    for name, volume in volumes.items():
        if volume.array.ndim != 3 or min(volume.array.shape) < 2:
            raise InputDataError(
                f"{name} has the shape {_times(volume.array.shape)}: MedMAP needs a 3-D volume.",
                "Give the whole scan.",
            )
        if not np.isfinite(volume.array).all():
            raise InputDataError(
                f"{name} holds voxels that are NaN or infinite.", "Replace them first."
            )
        problem = affine_problem(np.asarray(volume.affine, dtype=float))
        if problem:
            raise InputDataError(
                f"The voxel-to-world matrix of {name} {problem}.", "Export the scan again."
            )
    return ()


def contrast(volumes: dict[str, Volume], task: Task) -> Iterable[Finding]:
    """Refuse a scan that is one value everywhere, or one value and background."""
    for name, volume in volumes.items():
        low, high = float(volume.array.min()), float(volume.array.max())
        if high - low <= LEAST_CONTRAST * max(abs(low), abs(high)):
            raise InputDataError(
                f"{name} has no contrast: every voxel is {low:g}.", "Leave this modality out."
            )
        values = volume.array[_scan(volume).brain]
        if not values.size or values.min() == values.max():
            raise InputDataError(
                f"{name} has no contrast within the {task.organ}.", "Leave this modality out."
            )
    return ()


def label_map(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when a scan has so few different values that it may be a segmentation."""
    for name, volume in volumes.items():
        values = volume.array[_scan(volume).brain]
        count = np.unique(values[:: max(1, values.size // 20000)]).size
        if count <= FEW_VALUES and values.size > 10 * FEW_VALUES:
            message = f"{name} has only {count} different values: is it a label map?"
            yield Finding("warning", "label-map", message, "Give the scan itself.")


def same_image(volumes: dict[str, Volume], task: Task) -> Iterable[Finding]:
    """Refuse one image given for two modalities."""
    for (one, a), (two, b) in combinations(volumes.items(), 2):
        if a.array.shape == b.array.shape and np.array_equal(a.array, b.array):
            raise InputDataError(
                f"{one} and {two} are the same image.", "Give each modality its own scan."
            )
    return ()


def skull_strip(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when a scan does not look skull-stripped: hardly any exact background, or more than a brain can be.

    A head is told by its volume only if the air around it is exactly 0; a thin slab of one passes.
    """
    if not task.skull_stripped:
        return
    for name, volume in volumes.items():
        seen = _more_than_brain(_scan(volume))
        if seen:
            message = f"{name} does not look skull-stripped: {seen}."
            yield Finding(
                "warning",
                "skull-strip",
                message,
                "Skull-strip all scans first: the model knows brains only.",
            )


def brain_volume(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Say when the brain is implausibly small: part of a brain (info), or a wrong voxel size (warning)."""
    if not task.skull_stripped:
        return
    for name, volume in volumes.items():
        scan = _scan(volume)
        if scan.brain_ml >= BRAIN_ML[0]:
            continue
        seen = f"{name} shows {scan.brain_ml:.0f} ml of brain (an adult has 1000 to 1900)"
        if _cut_faces(scan):
            yield Finding("info", "brain-volume", f"{seen}: part of a brain.")
        else:
            yield Finding(
                "warning", "brain-volume", f"{seen}.", "Check voxel size and skull-stripping."
            )


def field_of_view(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Say where the volume ends before the brain does."""
    if not task.skull_stripped:
        return
    for faces, names in _grouped(volumes, lambda volume: _cut_faces(_scan(volume))):
        if faces:
            message = f"{_listed(names)}: the brain is cut at the {_listed(faces)}. What lies outside is not found."
            yield Finding("info", "field-of-view", message)


def thick_slices(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Say that thick slices blur what is smaller; where a task is read slice by slice they are the rule."""
    if not task.skull_stripped:
        return
    for name, volume in volumes.items():
        spacing = volume.grid.spacing
        if spacing.max() > THICK_MM:
            message = f"{name} has slices {spacing.max():.1f} mm apart: small parts and borders are less certain."
            yield Finding("info", "thick-slices", message)


def grids(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when scans lie on different grids: they will be resampled."""
    different: list[tuple[Grid, list[str]]] = []
    for name, volume in volumes.items():
        same = (
            names
            for grid, names in different
            if _voxels_apart(grid, volume.grid) <= SAME_GRID_VOXELS
        )
        names = next(same, None)
        if names is None:
            different.append((volume.grid, [name]))
        else:
            names.append(name)
    if len(different) < 2:
        return
    shown = "; ".join(f"{_listed(names)} {_described(grid)}" for grid, names in different)
    apart = _voxels_apart(different[0][0], different[1][0])
    moved = (
        f" (up to {apart:.1f} voxels apart)" if len(different) == 2 and np.isfinite(apart) else ""
    )
    message = f"The scans lie on different grids{moved}: {shown}. They are resampled to the reference scan."
    yield Finding("warning", "grids", message, "Resample them yourself to control how it is done.")


def overlap(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Refuse scans whose brains (or fields of view) lie apart in space; warn when they overlap badly."""
    what = "brains" if task.skull_stripped else "fields of view"
    for (one, a), (two, b) in combinations(volumes.items(), 2):
        share = _overlap(_scan(a), _scan(b))
        if share < OVERLAP[0]:
            raise InputDataError(
                f"{one} and {two} do not show the same place: their {what} overlap by {share:.0%}.",
                "Register the scans to each other first, and check that they are of one patient.",
            )
        if share < OVERLAP[1]:
            message = f"The {what} in {one} and {two} overlap by {share:.0%} only."
            yield Finding("warning", "overlap", message, "Register the scans to each other first.")


def modality(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when a brain scan looks like another modality than that of its slot (``medmap.appearance``).

    Nothing is said of T1 against T1ce, of what is not skull-stripped, and of what is hardly a brain.
    """
    if not task.skull_stripped or task.organ != "brain":
        return
    scans = {task.find(name): _scan(volume) for name, volume in volumes.items()}
    brains = {
        name: scan.look
        for name, scan in scans.items()
        if scan.brain_ml >= BRAIN_ML[0] and not _more_than_brain(scan)
    }
    for names, seen in doubts(brains):
        message = f"{' and '.join(task.modality(name).title for name in names)} {seen}."
        yield Finding(
            "warning", "modality", message, "Check that every scan is in the slot of its modality."
        )


Check = Callable[[dict[str, Volume], Task], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    usable,
    contrast,
    same_image,
    label_map,
    overlap,
    grids,
    skull_strip,
    modality,
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
        raise UsageError(
            "No scan was given.", f"Give at least one of {', '.join(task.modality_names)}."
        )
    ordered = {name: _scan(volumes[name]) for name in sorted(volumes, key=task.index)}
    notes = [note for volume in ordered.values() for note in volume.notes]
    return (*notes, *(finding for check in CHECKS for finding in check(ordered, task)))


def _overlap(a: _Scan, b: _Scan) -> float:
    """Share of the smaller brain's voxels that lie inside the other brain, from about 20 000 of them."""
    small, large = (a, b) if a.brain_ml <= b.brain_ml else (b, a)
    inside = np.flatnonzero(small.brain)
    ijk = np.stack(
        np.unravel_index(inside[:: max(1, inside.size // 20000)], small.brain.shape), axis=1
    )
    to_other = np.linalg.inv(large.affine) @ small.affine
    other = np.rint(ijk @ to_other[:3, :3].T + to_other[:3, 3]).astype(int)
    other = other[((other >= 0) & (other < large.brain.shape)).all(axis=1)]
    return float(np.count_nonzero(large.brain[tuple(other.T)])) / len(ijk)


def _more_than_brain(scan: _Scan) -> str:
    share = 1.0 - np.count_nonzero(scan.brain) / scan.brain.size
    if share < LEAST_BACKGROUND:
        return f"only {share:.0%} of its voxels are exact background; a skull-stripped scan has more than 30 %"
    if scan.brain_ml > BRAIN_ML[1]:
        return f"{scan.brain_ml / 1000:.1f} liters are not background; a brain has at most {BRAIN_ML[1] / 1000}"
    return ""


def _cut_faces(scan: _Scan) -> tuple[str, ...]:
    """Anatomical names of the faces at which the brain is cut off; none if the foreground is no brain alone."""
    if _more_than_brain(scan):
        return ()
    found = []
    for axis in range(3):
        profile = np.count_nonzero(scan.brain, axis=tuple(a for a in range(3) if a != axis))
        direction = scan.affine[:3, axis]
        world = int(np.abs(direction).argmax())
        low, high = (("left", "right"), ("back", "front"), ("bottom", "top"))[world]
        if direction[world] < 0:
            low, high = high, low
        found += [
            word for word, end in ((low, 0), (high, -1)) if profile[end] > CUT * profile.max()
        ]
    return tuple(sorted(found))


def _voxels_apart(a: Grid, b: Grid) -> float:
    return a.distance(b) / float(a.spacing.min())


def _grouped(
    volumes: dict[str, Volume], key: Callable[[Volume], tuple]
) -> list[tuple[tuple, list[str]]]:
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
