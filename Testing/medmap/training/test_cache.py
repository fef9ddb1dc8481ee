"""Prepared cases: labels are read by their place in the world; arrays never outlive files."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from medmap.errors import InputDataError
from medmap.io.cohorts import find_cases
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.cache import cache_case, open_case, read_label

SPEC = PreprocessSpec(spacing=2.0)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def write(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture
def data(tmp_path):
    """A case with two scans; the label has no symmetry."""
    rng = np.random.default_rng(0)
    brain = np.zeros((24, 28, 20), bool)
    brain[3:21, 3:25, 3:17] = True
    for name in ("t1", "flair"):
        scan = np.where(brain, 100 + 10 * rng.standard_normal(brain.shape), 0)
        write(tmp_path / f"data/A/A_{name}.nii.gz", scan.astype(np.float32))
    label = np.zeros(brain.shape, np.uint8)
    label[5:11, 6:12, 5:9] = 2
    label[6:8, 7:9, 6:8] = 1
    write(tmp_path / "data/A/A_seg.nii.gz", label)
    return tmp_path / "data"


def cached_label(data, cache):
    case = find_cases(data, BRATS)[0]
    return np.array(open_case(cache_case(case, BRATS, SPEC, cache)).label)


def test_labels_stored_in_another_orientation_land_at_the_same_place(data, tmp_path):
    expected = cached_label(data, tmp_path / "one")
    assert set(np.unique(expected)) == {0, 1, 2}
    path = data / "A/A_seg.nii.gz"
    image = nibabel.load(path)
    lps = image.as_reoriented([[0, -1], [1, -1], [2, 1]])
    assert (np.asarray(lps.dataobj) != np.asarray(image.dataobj)).any()
    write(path, np.asarray(lps.dataobj), lps.affine)
    assert (cached_label(data, tmp_path / "two") == expected).all()


def test_labels_of_another_place_are_refused(data, tmp_path):
    path = data / "A/A_seg.nii.gz"
    labels = np.asarray(nibabel.load(path).dataobj)
    moved = AFFINE.copy()
    moved[0, 3] = 30.0
    write(path, labels, moved)
    with pytest.raises(InputDataError, match="grid of none of the scans"):
        cached_label(data, tmp_path / "cache")


def test_labels_on_the_grid_of_another_scan_of_the_case_are_resampled(data):
    """Every voxel of a grid twice as fine takes the label of the voxel that it lies in."""
    scan = nibabel.load(data / "A/A_t1.nii.gz")
    fine_affine = np.diag([1.0, 1.0, 1.0, 1.0])
    fine_affine[:3, 3] = -0.5
    fine_scan = np.asarray(scan.dataobj).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    write(data / "A/A_t1ce.nii.gz", fine_scan, fine_affine)
    case = find_cases(data, BRATS)[0]
    volumes = case.read(["t1", "t1ce"])
    labels = read_label(case, BRATS, volumes, volumes["t1"].grid)
    assert set(np.unique(labels)) == {0, 1, 2}
    fine_labels = read_label(case, BRATS, volumes, volumes["t1ce"].grid)
    assert np.array_equal(fine_labels, labels.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_corrected_labels_are_prepared_anew(data, tmp_path):
    """Even if neither size nor time of the file tells: the content does."""
    before = cached_label(data, tmp_path / "cache")
    path = data / "A/A_seg.nii.gz"
    labels = np.array(nibabel.load(path).dataobj)
    labels[labels == 1] = 2
    write(path, labels)
    after = cached_label(data, tmp_path / "cache")
    assert (before == 1).any()
    assert not (after == 1).any()


def test_unchanged_cases_are_prepared_once(data, tmp_path, monkeypatch):
    case = find_cases(data, BRATS)[0]
    folder = cache_case(case, BRATS, SPEC, tmp_path / "cache")
    monkeypatch.setattr("medmap.training.cache.prepare_volumes", None)
    assert cache_case(case, BRATS, SPEC, tmp_path / "cache") == folder


def test_another_preprocessing_or_selection_has_arrays_of_its_own(data, tmp_path):
    case = find_cases(data, BRATS)[0]
    folders = {
        cache_case(case, BRATS, SPEC, tmp_path / "cache"),
        cache_case(case, BRATS, PreprocessSpec(spacing=3.0), tmp_path / "cache"),
        cache_case(case, BRATS, SPEC, tmp_path / "cache", BRATS.presence(["t1"])),
    }
    assert len(folders) == 3
