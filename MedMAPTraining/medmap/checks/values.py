"""Checks of voxels: their number, their values, and whether two images are the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np

from medmap.checks.affine import affine_problem
from medmap.checks.finding import Finding, times_text
from medmap.errors import InputDataError
from medmap.foreground import background_value
from medmap.task import Task
from medmap.threads import in_threads
from medmap.volume import Volume

SAMPLED_VOXELS = 20_000
"""Fractions and value counts are taken from about this many voxels."""
MAX_NOT_FINITE = 1e-3
"""Fraction of NaN or infinite voxels up to which they are replaced."""
MIN_RELATIVE_CONTRAST = 1e-6
"""Range of intensities, relative to their size, that float32 can just distinguish from none."""
MAX_LABEL_VALUES = 16
"""Images have hundreds of different values, label maps a handful."""


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


def check_array(volumes: dict[str, Volume], task: Task) -> Iterable[Finding]:
    """Refuse anything but a 3-D array of finite numbers at a possible place in space."""
    for name, volume in volumes.items():
        if volume.array.ndim != 3 or min(volume.array.shape) < 2:
            shape = times_text(volume.array.shape)
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

    def check(scan: tuple[str, Volume]) -> None:
        name, volume = scan
        low = float(volume.array.min())
        high = float(volume.array.max())
        if high - low <= MIN_RELATIVE_CONTRAST * max(abs(low), abs(high)):
            raise InputDataError(
                f"{name} has no contrast: every voxel is {low:g}.", "Leave this modality out."
            )
        # The foreground is looked for here, once and for all later checks.
        values = volume.array[volume.foreground]
        if values.size == 0 or values.min() == values.max():
            raise InputDataError(
                f"{name} has no contrast within the {task.organ}.", "Leave this modality out."
            )

    in_threads(check, volumes.items())
    return ()


def check_label_map(volumes: dict[str, Volume], task: Task) -> Iterator[Finding]:
    """Warn when an image has so few different values that it may be a segmentation."""
    for name, volume in volumes.items():
        values = volume.array[volume.foreground]
        step = max(1, values.size // SAMPLED_VOXELS)
        sampled = values[::step]
        count = np.unique(sampled).size
        # A tiny brain has few values whatever it is.
        is_large = values.size > 10 * MAX_LABEL_VALUES
        if count <= MAX_LABEL_VALUES and is_large:
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
