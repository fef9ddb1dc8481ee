"""An image in space: an array and where its voxels lie. numpy only; it runs inside Slicer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np

from medmap.foreground import Foreground, find_foreground

REFERENCE_ORDER = ("t1ce", "flair", "t1", "t2")
"""Preferred references among equally fine grids: the sequences in which readers look at tumors."""
REFERENCE_TOLERANCE = 1.01
"""Grids whose voxels are at most this many times as large as the smallest count as equally fine."""


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[N, 3] points [N, 3] under a [4, 4] affine map, one point per row."""
    linear = affine[:3, :3]
    translation = affine[:3, 3]
    return points @ linear.T + translation


@dataclass(frozen=True)
class Grid:
    """Where voxels lie.

    Attributes:
        shape: number of voxels along i, j, k.
        affine: [4, 4] float64, voxel index (i, j, k, 1) -> world RAS in mm, as in NIfTI and
            MRML's IJKToRAS.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """[3] voxel size in mm along i, j, k."""
        edges = self.affine[:3, :3]
        return np.linalg.norm(edges, axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        edges = self.affine[:3, :3]
        # Negative where the axes are left-handed.
        signed_mm3 = np.linalg.det(edges)
        return float(abs(signed_mm3)) / 1000.0

    def corners(self) -> np.ndarray:
        """[8, 3] world RAS positions in mm of the eight corner voxel centers."""
        ends = np.array(list(product((0, 1), repeat=3)))
        last_voxel = np.array(self.shape) - 1
        return self.world(ends * last_voxel)

    def world(self, voxels: np.ndarray) -> np.ndarray:
        """[N, 3] world RAS positions in mm of voxel indices [N, 3], which may be fractions."""
        return apply_affine(self.affine, voxels)

    def distance(self, other: Grid) -> float:
        """Largest distance in mm between corresponding corners; infinite when the shapes differ."""
        if self.shape != other.shape:
            return float("inf")
        # Affine maps differ most at a corner of the box.
        differences = self.corners() - other.corners()
        distances = np.linalg.norm(differences, axis=1)
        return float(distances.max())


@dataclass(frozen=True)
class Volume:
    """One scan.

    Attributes:
        array: [I, J, K] float32 intensities, indexed (i, j, k) as the affine means it.
        affine: [4, 4] float64, voxel index -> world RAS in mm.
        name: its name in messages: the file's name without folders, or a node's ID.
        notes: findings of reading it (``medmap.checks.Finding``), carried into the report.
    """

    array: np.ndarray
    affine: np.ndarray
    name: str = ""
    notes: tuple = field(default=())

    @property
    def grid(self) -> Grid:
        """The grid that the voxels lie on."""
        i, j, k = self.array.shape
        shape = (int(i), int(j), int(k))
        return Grid(shape, self.affine)

    @cached_property
    def foreground_parts(self) -> Foreground:
        """What is brain, and what lies apart from it (``medmap.foreground``), looked for once."""
        spacing = self.grid.spacing
        return find_foreground(self.array, spacing.tolist())

    @property
    def foreground(self) -> np.ndarray:
        """[I, J, K] bool: voxels of the brain, neither background nor apart from it."""
        return self.foreground_parts.mask


def choose_reference(grids: Mapping[str, Grid]) -> str:
    """Choose the modality whose grid carries the result unless the user chooses another.

    Labels lose least detail on the grid with the smallest voxels (by volume, 1 % tolerance). Among
    equally fine grids ``REFERENCE_ORDER`` decides, then the alphabet.

    Args:
        grids: modality name -> grid, at least one.
    """
    smallest_ml = min(grid.voxel_ml for grid in grids.values())
    largest_ml = REFERENCE_TOLERANCE * smallest_ml
    finest = sorted(name for name, grid in grids.items() if grid.voxel_ml <= largest_ml)
    for name in REFERENCE_ORDER:
        if name in finest:
            return name
    return finest[0]
