"""Rigid motions in world coordinates, and how far they move a brain. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medmap.volume import apply_affine

SAMPLED_POINTS = 2000
"""Distances are means over about this many points of a brain: their error is below 1 %."""


def mask_points(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """[N, 3] world positions in mm of about ``SAMPLED_POINTS`` voxels, evenly spread over a mask.

    Args:
        mask: [I, J, K] bool with at least one voxel.
        affine: [4, 4] voxel index -> world RAS in mm.
    """
    inside = np.flatnonzero(mask)
    stride = max(1, inside.size // SAMPLED_POINTS)
    sampled = inside[::stride]
    indices = np.unravel_index(sampled, mask.shape)
    voxels = np.stack(indices, axis=1)
    return apply_affine(affine, voxels)


def rotation_about(axis: int, degrees: float) -> np.ndarray:
    """[3, 3] rotation about a world axis (0 right, 1 anterior, 2 superior)."""
    first = (axis + 1) % 3
    second = (axis + 2) % 3
    angle = np.radians(degrees)
    cos = np.cos(angle)
    sin = np.sin(angle)
    rotation = np.eye(3)
    rotation[first, first] = cos
    rotation[second, second] = cos
    rotation[second, first] = sin
    rotation[first, second] = -sin
    return rotation


@dataclass(frozen=True)
class Motion:
    """A rigid motion of the world.

    Attributes:
        matrix: [4, 4] in RAS, mm.
        center: [3] point about which further rotations turn: the middle of the brain.
    """

    matrix: np.ndarray
    center: np.ndarray

    @staticmethod
    def identity(center: np.ndarray) -> Motion:
        """No motion."""
        return Motion(np.eye(4), np.asarray(center, float))

    def apply(self, points: np.ndarray) -> np.ndarray:
        """[N, 3] moved points."""
        return apply_affine(self.matrix, points)

    def shifted(self, shift: np.ndarray) -> Motion:
        """This motion, then a shift by [3] mm."""
        matrix = self.matrix.copy()
        matrix[:3, 3] += shift
        return Motion(matrix, self.center)

    def turned(self, axis: int, degrees: float) -> Motion:
        """A rotation about the center first, then this motion."""
        rotation = np.eye(4)
        rotation[:3, :3] = rotation_about(axis, degrees)
        about_axis = rotation[:3, :3]
        # The center is where it was: x -> R (x - c) + c.
        rotation[:3, 3] = self.center - about_axis @ self.center
        return Motion(self.matrix @ rotation, self.center)

    def then(self, other: Motion) -> Motion:
        """This motion, and the other one after it."""
        return Motion(other.matrix @ self.matrix, self.center)

    def distance_mm(self, other: Motion, points: np.ndarray) -> float:
        """Mean distance in mm between where two motions put [N, 3] points."""
        apart = self.apply(points) - other.apply(points)
        return float(np.linalg.norm(apart, axis=1).mean())

    def degrees(self) -> float:
        """Angle of the rotation."""
        cosine = (np.trace(self.matrix[:3, :3]) - 1) / 2
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
