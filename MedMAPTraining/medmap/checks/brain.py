"""Checks of the brain in a skull-stripped image: size, skull, what is cut off, appearance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from medmap.appearance import describe_appearance, mismatches
from medmap.checks.finding import Finding, listed
from medmap.task import Task
from medmap.threads import in_threads
from medmap.volume import Volume

MIN_BRAIN_ML = 300.0
MAX_BRAIN_ML = 2200.0
"""Plausible brain with its CSF after skull-stripping; adults lie between 1000 and 1900 ml."""
MAX_NOISY_BRAIN_ML = 1900.0
"""The same where the background is noisy: adults lie between 1000 and 1900 ml with their CSF."""
MIN_APART_ML = 0.1
"""Volume apart from the brain from which a warning is worth it; less is a few stray voxels."""
MIN_BACKGROUND = 0.10
"""A skull-stripped image has more background: a tight box about a brain has 45 %, about a limited
field of view 20 %."""
CUT_FACE = 0.10
"""A face that shows more than this fraction of the largest cross-section cuts the brain."""
FACE_NAMES = (("left", "right"), ("back", "front"), ("bottom", "top"))
"""Names of the lower and upper face along the world axes R, A, S."""


def brain_ml(volume: Volume) -> float:
    """Volume of the foreground in ml."""
    return float(np.count_nonzero(volume.foreground)) * volume.grid.voxel_ml


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
    cut_faces = in_threads(_cut_faces, volumes.values())
    for name, faces in zip(volumes, cut_faces, strict=True):
        # One sentence for all modalities that are cut at the same faces.
        names_of_faces.setdefault(faces, []).append(name)
    for faces, names in names_of_faces.items():
        if faces:
            message = (
                f"{listed(names)}: the brain is cut at the {listed(faces)}. "
                "What lies outside is not found."
            )
            yield Finding("info", "field-of-view", message)


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


def check_modality_appearance(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when a brain image looks like another modality than its own (``medmap.appearance``).

    T1 is not compared with T1ce. Images that are not skull-stripped or show hardly any brain are
    left alone.
    """
    if not task.skull_stripped or task.organ != "brain":
        return
    brains = {}
    for given_name, volume in volumes.items():
        has_brain = brain_ml(volume) >= MIN_BRAIN_ML
        if has_brain and not more_than_brain(volume):
            brains[task.find(given_name)] = volume
    descriptions = in_threads(
        lambda volume: describe_appearance(volume, volume.foreground),
        brains.values(),
    )
    appearances = dict(zip(brains, descriptions, strict=True))
    for names, observation in mismatches(appearances):
        titles = " and ".join(task.modality(name).title for name in names)
        remedy = "Check that every image is in the slot of its modality."
        yield Finding("warning", "modality", f"{titles} {observation}.", remedy)


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
