"""A small scan as DICOM files, changes to them, and what is read from them."""

from __future__ import annotations

import numpy as np
import pydicom
from generated_study import Scan, grid_affine

from medmap.dicom.pixels import read_volume
from medmap.dicom.study import choose_study, read_studies

SHAPE = (16, 20, 10)


def scan(**changes) -> Scan:
    """A small scan: 16 x 20 pixels, 10 slices, oblique."""
    array = np.random.default_rng(5).uniform(0, 900, SHAPE)
    affine = grid_affine(SHAPE, (1.5, 2.0, 4.0), (3.0, -5.0, 8.0), (10.0, 20.0))
    fields = {"number": 5, "description": "AX T1", "array": array, "affine": affine}
    return Scan(**(fields | changes))


def edited(paths, change):
    """Change the data sets of files: ``change(dataset, number)``."""
    for number, path in enumerate(paths):
        dataset = pydicom.dcmread(path)
        change(dataset, number)
        dataset.save_as(path)
    return paths


def only_study(folder):
    studies, _ = read_studies(folder)
    return choose_study(studies, None)


def all_series(folder):
    return only_study(folder).series


def only_series(folder):
    (series,) = all_series(folder)
    return series


def check_equal(series, written):
    volume = read_volume(series)
    np.testing.assert_allclose(volume.array, written.array, atol=written.array.max() / 3000)
    np.testing.assert_allclose(volume.affine, written.affine, atol=1e-3)
