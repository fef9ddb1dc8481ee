"""Cases for brain extraction: the mask is the patient's brain, the head around it is generated."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "MedMAPTraining/experiments"))

from brain_cases import STEP_MM, write_composed_case

from medmap.io.nifti import read_nifti, write_labels, write_volume
from medmap.volume import Grid

SHAPE = (72, 84, 78)
GRID = Grid(SHAPE, np.diag([2.0, 2.0, 2.0, 1.0]))


def ellipsoid(shape: tuple[int, int, int], radii: tuple[float, float, float]) -> np.ndarray:
    """[I, J, K] distance from the middle; 1 is the surface."""
    axes = []
    for size, radius in zip(shape, radii, strict=True):
        axes.append((np.arange(size) - (size - 1) / 2) / radius)
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return np.sqrt(x**2 + y**2 + z**2)


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """A composed case, and the stripped scan that it was made of."""
    folder = tmp_path_factory.mktemp("brain_cases")
    ids = np.zeros((140, 160, 150), np.int16)
    radius = ellipsoid(ids.shape, (62.0, 74.0, 68.0))
    for limit, value in ((1.0, 511), (0.93, 515), (0.86, 24), (0.8, 2)):
        ids[radius < limit] = value
    label_map = folder / "map.nii.gz"
    write_labels(label_map, ids, Grid(ids.shape, np.eye(4)))
    # Wider and shorter than the brain of the label map, with a dent as a sulcus or a resection has.
    brain = ellipsoid(SHAPE, (28.0, 30.0, 24.0)) < 1
    brain[:8] = False
    noise = np.random.default_rng(0).uniform(80, 120, SHAPE)
    scan = folder / "PATIENT_t2.nii.gz"
    write_volume(scan, np.where(brain, noise, 0).astype(np.float32), GRID.affine)
    write_composed_case(folder, 0, scan, "t2", [label_map])
    return folder / "PATIENT_t2", brain


def test_the_mask_is_the_brain_of_the_scan(composed):
    case, brain = composed
    mask = read_nifti(case / f"{case.name}_seg.nii.gz", modality="labels")
    volume_ml = float((np.asarray(mask.array) > 0).sum()) * STEP_MM**3 / 1000
    # The border is interpolated over voxels of 2 mm.
    assert volume_ml == pytest.approx(brain.sum() * 0.008, rel=0.12)


def test_a_head_lies_around_the_brain_and_its_air_is_dark(composed):
    case, _ = composed
    image = np.asarray(read_nifti(case / f"{case.name}_mr.nii.gz").array)
    mask = np.asarray(read_nifti(case / f"{case.name}_seg.nii.gz", modality="labels").array) > 0
    is_head = ~mask & (image > 0.2 * np.median(image[mask]))
    assert is_head.sum() > 0.1 * mask.sum()
    assert np.median(image[:3]) < 0.2 * np.median(image[mask])


def test_the_head_follows_the_surface_of_the_brain(composed):
    case, _ = composed
    image = np.asarray(read_nifti(case / f"{case.name}_mr.nii.gz").array)
    mask = np.asarray(read_nifti(case / f"{case.name}_seg.nii.gz", modality="labels").array) > 0
    # Along the lateral axis through the middle, the head ends within 30 mm of the brain.
    middle = [size // 2 for size in mask.shape]
    inside = np.flatnonzero(mask[:, middle[1], middle[2]])
    head = np.flatnonzero(image[:, middle[1], middle[2]] > 0.2 * np.median(image[mask]))
    left_mm = (inside[0] - head[0]) * STEP_MM
    right_mm = (head[-1] - inside[-1]) * STEP_MM
    assert 2 < left_mm < 30
    assert 2 < right_mm < 30
