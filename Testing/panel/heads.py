"""Heads with skull and scalp, of ellipsoids: small enough that preparing them takes a second."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from medmap.volume import Volume

SHAPE = (52, 60, 48)
SPACING_MM = 4.0
BRAIN_MM = np.array([66.0, 82.0, 60.0])
"""Half axes of the brain."""
SKULL_MM = 8.0
SCALP_MM = 8.0
INTENSITIES = {
    "t1": {"scalp": 380.0, "brain": 400.0, "ventricle": 150.0, "edema": 330.0, "core": 300.0},
    "t1ce": {"scalp": 380.0, "brain": 400.0, "ventricle": 150.0, "edema": 330.0, "core": 800.0},
    "t2": {"scalp": 250.0, "brain": 300.0, "ventricle": 600.0, "edema": 520.0, "core": 450.0},
    "flair": {"scalp": 250.0, "brain": 300.0, "ventricle": 90.0, "edema": 650.0, "core": 420.0},
}
"""Mean intensity of each part; ventricles and tumor are what an alignment goes by."""
BONE = 15.0


def affine() -> np.ndarray:
    """[4, 4] with the middle of the head near the origin."""
    result = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0])
    result[:3, 3] = -SPACING_MM * (np.array(SHAPE) - 1) / 2
    return result


@lru_cache(maxsize=1)
def positions() -> np.ndarray:
    """[I, J, K, 3] world positions in mm."""
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
    return ijk * SPACING_MM + affine()[:3, 3]


def ellipsoid(half_axes_mm: np.ndarray, center_mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    """[I, J, K] bool."""
    return np.linalg.norm((positions() - np.array(center_mm)) / half_axes_mm, axis=-1) <= 1


def brain() -> np.ndarray:
    """[I, J, K] bool."""
    return ellipsoid(BRAIN_MM)


def head(name: str) -> Volume:
    """A raw scan of that contrast."""
    intensities = INTENSITIES[name]
    image = np.zeros(SHAPE)
    image[ellipsoid(BRAIN_MM + SKULL_MM + SCALP_MM)] = intensities["scalp"]
    image[ellipsoid(BRAIN_MM + SKULL_MM)] = BONE
    # Gyri, so that turning the head costs agreement.
    waves = np.sin(positions() / 9.0).sum(axis=-1)
    tissue = intensities["brain"] * (1 + 0.1 * waves)
    image = np.where(brain(), tissue, image)
    image[ellipsoid(np.array([9.0, 30.0, 14.0]), (0.0, 6.0, 4.0))] = intensities["ventricle"]
    image[ellipsoid(np.full(3, 22.0), (30.0, 20.0, 14.0))] = intensities["edema"]
    image[ellipsoid(np.full(3, 12.0), (30.0, 20.0, 14.0))] = intensities["core"]
    noise = np.random.default_rng(len(name)).rayleigh(2.0, SHAPE)
    return Volume((image + noise).astype(np.float32), affine(), name)


def add_volume(scene, name: str, volume: Volume, class_name: str = "vtkMRMLScalarVolumeNode"):
    """A volume node of a volume."""
    import slicer.util

    from MedMAPSegmentLib.mrml.geometry import matrixFromArray

    node = scene.AddNewNodeByClass(class_name, name)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    node.SetIJKToRASMatrix(matrixFromArray(volume.affine))
    node.CreateDefaultDisplayNodes()
    return node
