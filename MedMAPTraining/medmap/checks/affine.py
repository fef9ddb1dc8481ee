"""Whether a voxel-to-world matrix can be used."""

from __future__ import annotations

import numpy as np

from medmap.checks.finding import sizes_text

MIN_SPACING_MM = 0.2
MAX_SPACING_MM = 30.0
"""Other voxel sizes are a wrong unit or a damaged header; cardiac slices lie up to 23 mm apart."""
MAX_ORIGIN_MM = 1e5
"""No image begins farther from the world's origin."""
MAX_SHEAR = 1e-3
"""Largest cosine between perpendicular voxel axes; 0.001 moves a corner of a brain by 0.2 mm."""


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
        return f"gives voxels of {sizes_text(sizes)} mm (0.2 to 30 mm are possible)"
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
