"""Checks on images before anything is computed from them. numpy only; it runs inside Slicer.

Unusable inputs are refused (``InputDataError``, ``UsageError``). Usable inputs with a remark
yield a ``Finding`` that goes into the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from medmap.appearance import describe_appearance, mismatches
from medmap.errors import InputDataError, UsageError
from medmap.foreground import background_value
from medmap.task import Task
from medmap.volume import Grid, Volume

MIN_SPACING_MM = 0.2
MAX_SPACING_MM = 30.0
"""Other voxel sizes are a wrong unit or a damaged header; cardiac slices lie up to 23 mm apart."""
MAX_ORIGIN_MM = 1e5
"""No image begins farther from the world's origin."""
MAX_SHEAR = 1e-3
"""Largest cosine between perpendicular voxel axes; 0.001 moves a corner of a brain by 0.2 mm."""
MAX_NOT_FINITE = 1e-3
"""Fraction of NaN or infinite voxels up to which they are replaced."""
MIN_BRAIN_ML = 300.0
MAX_NOISY_BRAIN_ML = 1900.0
"""The same where the background is noisy: adults lie between 1000 and 1900 ml with their CSF."""
MAX_BRAIN_ML = 2200.0
"""Plausible brain with its CSF after skull-stripping; adults lie between 1000 and 1900 ml."""
MIN_APART_ML = 0.1
"""Volume apart from the brain from which a warning is worth it; less is a few stray voxels."""
MIN_BACKGROUND = 0.10
"""A skull-stripped image has more background: a tight box about a brain has 45 %, about a limited
field of view 20 %."""
MIN_RELATIVE_CONTRAST = 1e-6
"""Range of intensities, relative to their size, that float32 can just distinguish from none."""
MAX_LABEL_VALUES = 16
"""Images have hundreds of different values, label maps a handful."""
SAME_GRID_VOXELS = 0.1
"""Grids that agree this well at every corner count as one."""
MIN_OVERLAP = 0.10
"""Below this fraction brains do not overlap (refused)."""
GOOD_OVERLAP = 0.85
"""Below this fraction they overlap badly (warning)."""
THICK_SLICE_MM = 4.0
"""Slices thicker than this are mentioned."""
CUT_FACE = 0.10
"""A face that shows more than this fraction of the largest cross-section cuts the brain."""
MIN_UNCOVERED = 0.02
MIN_UNCOVERED_ML = 5.0
"""Share and volume of a brain outside the reference image from which a warning is worth it."""
SAMPLED_VOXELS = 20_000
"""Fractions and value counts are taken from about this many voxels."""

FACE_NAMES = (("left", "right"), ("back", "front"), ("bottom", "top"))
"""Names of the lower and upper face along the world axes R, A, S."""


@dataclass(frozen=True)
class Finding:
    """One remark about an input or a result.

    Attributes:
        level: ``info``, ``warning``, or ``error`` for what a run will refuse.
        check: short id of the check (``skull-strip``).
        message: the observation, one sentence that begins with the modality.
        remedy: what the user can do; empty if nothing needs doing.
        modalities: which modalities it is about; empty where the reporter does not know.
    """

    level: Literal["info", "warning", "error"]
    check: str
    message: str
    remedy: str = ""
    modalities: tuple[str, ...] = ()


def replace_not_finite(array: np.ndarray, name: str) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Replace a few NaN or infinite voxels by the background value (0 if there is none).

    Args:
        array: [I, J, K] float intensities; not changed.
        name: the image's name in messages.

    Returns:
        The array (the same one if nothing was replaced) and what to report about it.

    Raises:
        InputDataError: more than 0.1 % of the voxels are not finite.
    """
    not_finite = ~np.isfinite(array)
    count = int(np.count_nonzero(not_finite))
    if count == 0:
        return array, ()
    fraction = count / array.size
    if count == array.size:
        raise InputDataError(
            f"{name}: every voxel is NaN or infinite.", "Export the image again, or leave it out."
        )
    if count > MAX_NOT_FINITE * array.size:
        raise InputDataError(
            f"{name}: {count} voxels ({fraction:.1%}) are NaN or infinite.",
            "Save the image with a number (0 outside the brain) in every voxel.",
        )
    # Zero inside a z-scored image would be tissue of average intensity.
    value = background_value(array) or 0.0
    replaced = np.where(not_finite, array.dtype.type(value), array)
    message = (
        f"{name}: {count} voxels ({fraction:.2%}) are NaN or infinite and were set to {value:g}."
    )
    return replaced, (Finding("warning", "not-finite", message),)


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
    if sizes.min() < MIN_SPACING_MM or not sizes.max() <= MAX_SPACING_MM:
        return f"gives voxels of {_sizes_text(sizes)} mm (0.2 to 30 mm are possible)"
    if np.abs(affine[:3, 3]).max() > MAX_ORIGIN_MM:
        return "puts the image more than 100 m away from the origin"
    return _shear_problem(axes / sizes)


def _shear_problem(directions: np.ndarray) -> str | None:
    """The same for unit vectors [3, 3] in columns that should be perpendicular."""
    # Cosines between axes stand off the diagonal.
    cosines = directions.T @ directions - np.eye(3)
    first, second = np.unravel_index(np.abs(cosines).argmax(), (3, 3))
    cosine = cosines[first, second]
    if abs(cosine) <= MAX_SHEAR:
        return None
    if abs(np.linalg.det(directions)) < MAX_SHEAR:
        return "is singular: voxels lie in a plane"
    degrees = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    axis_names = sorted("ijk"[axis] for axis in (first, second))
    return (
        f"is sheared: axes {axis_names[0]} and {axis_names[1]} meet at {degrees:.1f} instead of "
        "90 degrees"
    )


def brain_ml(volume: Volume) -> float:
    """Volume of the foreground in ml."""
    return float(np.count_nonzero(volume.foreground)) * volume.grid.voxel_ml


def check_array(volumes: dict[str, Volume], task: Task) -> Iterable[Finding]:
    """Refuse anything but a 3-D array of finite numbers at a possible place in space."""
    for name, volume in volumes.items():
        if volume.array.ndim != 3 or min(volume.array.shape) < 2:
            shape = _times_text(volume.array.shape)
            raise InputDataError(
                f"{name} has the shape {shape}: MedMAP needs a 3-D volume.", "Use the whole image."
            )
        if not np.isfinite(volume.array).all():
            raise InputDataError(
                f"{name} holds voxels that are NaN or infinite.", "Replace them first."
            )
        problem = affine_problem(np.asarray(volume.affine, dtype=float))
        if problem:
            raise InputDataError(
                f"The voxel-to-world matrix of {name} {problem}.", "Export the image again."
            )
    return ()


def check_contrast(volumes: dict[str, Volume], task: Task) -> Iterable[Finding]:
    """Refuse an image that is one value everywhere, or one value and background."""
    for name, volume in volumes.items():
        low = float(volume.array.min())
        high = float(volume.array.max())
        if high - low <= MIN_RELATIVE_CONTRAST * max(abs(low), abs(high)):
            raise InputDataError(
                f"{name} has no contrast: every voxel is {low:g}.", "Leave this modality out."
            )
        values = volume.array[volume.foreground]
        if values.size == 0 or values.min() == values.max():
            raise InputDataError(
                f"{name} has no contrast within the {task.organ}.", "Leave this modality out."
            )
    return ()


def check_label_map(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when an image has so few different values that it may be a segmentation."""
    for name, volume in volumes.items():
        values = volume.array[volume.foreground]
        step = max(1, values.size // SAMPLED_VOXELS)
        count = np.unique(values[::step]).size
        if count <= MAX_LABEL_VALUES and values.size > 10 * MAX_LABEL_VALUES:
            message = f"{name} has only {count} different values: is it a label map?"
            yield Finding("warning", "label-map", message, "Use the image itself.")


def check_same_image(volumes: dict[str, Volume], task: Task) -> Iterable[Finding]:
    """Refuse one image given for two modalities."""
    for (name, volume), (other_name, other) in combinations(volumes.items(), 2):
        if volume.array.shape != other.array.shape:
            continue
        if np.array_equal(volume.array, other.array):
            raise InputDataError(
                f"{name} and {other_name} are the same image.",
                "Use a different image for each modality.",
            )
    return ()


def check_skull_strip(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when an image does not look skull-stripped.

    It then has hardly any exact background, or more foreground than a brain can have. An image with
    a skull is recognized by its volume only if the air around it is exactly 0; a limited field of
    view of one passes.
    """
    if not task.skull_stripped:
        return
    for name, volume in volumes.items():
        observation = more_than_brain(volume)
        if observation:
            message = f"{name} does not look skull-stripped: {observation}."
            remedy = "Skull-strip all images first: the model knows brains only."
            yield Finding("warning", "skull-strip", message, remedy)


def check_brain_volume(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Report a very small brain: part of a brain (info), or a wrong voxel size (warning)."""
    if not task.skull_stripped:
        return
    for name, volume in volumes.items():
        volume_ml = brain_ml(volume)
        if volume_ml >= MIN_BRAIN_ML:
            continue
        observation = f"{name} shows {volume_ml:.0f} ml of brain (an adult has 1000 to 1900)"
        if _cut_faces(volume):
            yield Finding("info", "brain-volume", f"{observation}: part of a brain.")
        else:
            remedy = "Check voxel size and skull-stripping."
            yield Finding("warning", "brain-volume", f"{observation}.", remedy)


def check_field_of_view(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Report where the field of view ends before the brain does."""
    if not task.skull_stripped:
        return
    names_of_faces: dict[tuple[str, ...], list[str]] = {}
    for name, volume in volumes.items():
        # One sentence for all modalities that are cut at the same faces.
        names_of_faces.setdefault(_cut_faces(volume), []).append(name)
    for faces, names in names_of_faces.items():
        if faces:
            message = (
                f"{_listed(names)}: the brain is cut at the {_listed(faces)}. "
                "What lies outside is not found."
            )
            yield Finding("info", "field-of-view", message)


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
    listed_grids = "; ".join(f"{_listed(names)} {describe_grid(grid)}" for grid, names in groups)
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


def check_modality_appearance(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when a brain image looks like another modality than its own (``medmap.appearance``).

    T1 is not compared with T1ce. Images that are not skull-stripped or show hardly any brain are
    left alone.
    """
    if not task.skull_stripped or task.organ != "brain":
        return
    appearances = {}
    for given_name, volume in volumes.items():
        if brain_ml(volume) >= MIN_BRAIN_ML and not more_than_brain(volume):
            appearance = describe_appearance(volume, volume.foreground)
            appearances[task.find(given_name)] = appearance
    for names, observation in mismatches(appearances):
        titles = " and ".join(task.modality(name).title for name in names)
        remedy = "Check that every image is in the slot of its modality."
        yield Finding("warning", "modality", f"{titles} {observation}.", remedy)


def check_apart(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Report what lies apart from the brain and is not segmented: voxels, markers, letters."""
    if not task.skull_stripped:
        return
    for name, volume in volumes.items():
        voxels = volume.foreground_parts.apart
        if not voxels:
            continue
        volume_ml = voxels * volume.grid.voxel_ml
        level: Literal["info", "warning"] = "info" if volume_ml < MIN_APART_ML else "warning"
        message = (
            f"{name}: {voxels} voxels ({volume_ml:.2g} ml) lie apart from the {task.organ} "
            "and were ignored."
        )
        remedy = f"Check the skull-stripping if they belong to the {task.organ}."
        yield Finding(level, "apart", message, remedy)


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


def _fraction_outside(volume: Volume, grid: Grid) -> float:
    """Fraction of a brain's voxels that lie outside of a grid, 0..1."""
    inside = np.flatnonzero(volume.foreground)
    sampled = inside[:: max(1, inside.size // SAMPLED_VOXELS)]
    if not sampled.size:
        return 0.0
    voxels = np.stack(np.unravel_index(sampled, volume.array.shape), axis=1)
    to_grid = np.linalg.inv(grid.affine) @ volume.affine
    positions = voxels @ to_grid[:3, :3].T + to_grid[:3, 3]
    # The outermost voxels reach half a voxel beyond their centers.
    last = np.array(grid.shape) - 0.5
    is_covered = ((positions >= -0.5) & (positions <= last)).all(axis=1)
    return 1.0 - float(np.count_nonzero(is_covered)) / len(voxels)


Check = Callable[[dict[str, Volume], Task], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    check_array,
    check_contrast,
    check_same_image,
    check_label_map,
    check_overlap,
    check_grids,
    check_skull_strip,
    check_apart,
    check_modality_appearance,
    check_brain_volume,
    check_field_of_view,
    check_slice_thickness,
)
"""Refusals first: later checks rely on what earlier ones made sure of."""


def check_inputs(volumes: Mapping[str, Volume], task: Task) -> tuple[Finding, ...]:
    """Check all images of one case.

    Args:
        volumes: modality name -> image, any non-empty subset of the task's modalities.
        task: the modalities.

    Returns:
        The notes that the volumes carry from reading, then the findings of the checks, in the
        task's modality order.

    Raises:
        UsageError: no modality is given, or one that the task does not have.
        InputDataError: an image cannot be used, two are the same, or two show different places.
    """
    if not volumes:
        raise UsageError(
            "No image was given.", f"Use at least one of {', '.join(task.modality_names)}."
        )
    ordered = {name: volumes[name] for name in sorted(volumes, key=task.index)}
    findings: list[Finding] = []
    for volume in ordered.values():
        findings.extend(volume.notes)
    for check in CHECKS:
        findings.extend(check(ordered, task))
    return tuple(findings)


def describe_grid(grid: Grid) -> str:
    """A grid in messages: ``240 x 240 x 155 at 1 x 1 x 1 mm``."""
    return f"{_times_text(grid.shape)} at {_sizes_text(grid.spacing)} mm"


def brain_overlap(volume: Volume, other: Volume) -> float:
    """Fraction of the smaller brain's voxels that lie inside the other brain, 0..1."""
    small, large = (volume, other) if brain_ml(volume) <= brain_ml(other) else (other, volume)
    inside = np.flatnonzero(small.foreground)
    # Some voxels are enough for a fraction, and the smaller brain may have millions.
    sampled = inside[:: max(1, inside.size // SAMPLED_VOXELS)]
    voxels = np.stack(np.unravel_index(sampled, small.array.shape), axis=1)
    to_large = np.linalg.inv(large.affine) @ small.affine
    positions = np.rint(voxels @ to_large[:3, :3].T + to_large[:3, 3]).astype(int)
    within = ((positions >= 0) & (positions < large.array.shape)).all(axis=1)
    in_brain = large.foreground[tuple(positions[within].T)]
    return float(np.count_nonzero(in_brain)) / len(voxels)


def more_than_brain(volume: Volume) -> str:
    """Why the foreground is no brain alone, as the end of a sentence; empty if it may be one."""
    background = 1.0 - np.count_nonzero(volume.foreground) / volume.foreground.size
    if background < MIN_BACKGROUND:
        return (
            f"only {background:.0%} of its voxels are background; a skull-stripped image has "
            "more than 30 %"
        )
    # Air that is not one exact value is what scanners write; tools that
    # strip the skull write zeros.
    most_ml = MAX_BRAIN_ML if volume.foreground_parts.is_constant else MAX_NOISY_BRAIN_ML
    volume_ml = brain_ml(volume)
    if volume_ml > most_ml:
        return (
            f"{volume_ml / 1000:.1f} liters are not background; a brain has at most "
            f"{most_ml / 1000}"
        )
    return ""


def _cut_faces(volume: Volume) -> tuple[str, ...]:
    """Anatomical names of the faces at which the brain is cut off.

    None if the foreground is no brain alone.
    """
    if more_than_brain(volume):
        return ()
    cut_faces = []
    for axis in range(3):
        other_axes = tuple(other for other in range(3) if other != axis)
        # Cross-sections of the brain along this axis, in voxels.
        areas = np.count_nonzero(volume.foreground, axis=other_axes)
        direction = volume.affine[:3, axis]
        world_axis = int(np.abs(direction).argmax())
        first_face, last_face = FACE_NAMES[world_axis]
        if direction[world_axis] < 0:
            first_face, last_face = last_face, first_face
        if areas[0] > CUT_FACE * areas.max():
            cut_faces.append(first_face)
        if areas[-1] > CUT_FACE * areas.max():
            cut_faces.append(last_face)
    return tuple(sorted(cut_faces))


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


def _listed(words: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *leading, last = words
    if not leading:
        return last
    return f"{', '.join(leading)} and {last}"


def _times_text(shape: Iterable[int]) -> str:
    return " x ".join(str(int(size)) for size in shape)


def _sizes_text(spacing: Iterable[float]) -> str:
    return " x ".join(f"{size:.3g}" for size in spacing)
