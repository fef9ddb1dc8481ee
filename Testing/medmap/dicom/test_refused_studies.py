"""Faulty studies are refused, and say why.

Each test writes what a scanner, an archive, or an anonymizer is known to write.
"""

from __future__ import annotations

import shutil

import numpy as np
import pydicom
import pytest
from generated_study import grid_affine, write_enhanced, write_series
from Testing.medmap.dicom.command_line import medmap
from Testing.medmap.dicom.small_scans import (
    SHAPE,
    edited,
    only_series,
    scan,
)

from medmap.dicom.pixels import read_volume
from medmap.dicom.study import read_studies
from medmap.errors import InputDataError, MissingInputError


def with_value(keyword, value, which=slice(None)):
    def write(folder):
        paths = write_series(folder, scan())
        edited(paths[which], lambda dataset, _: setattr(dataset, keyword, value))

    return write


def without(keyword, which=slice(None)):
    def write(folder):
        paths = write_series(folder, scan())
        edited(paths[which], lambda dataset, _: dataset.pop(keyword))

    return write


def scattered(folder):
    """Slices displaced along themselves at random, as after wrong positions were written."""
    rng = np.random.default_rng(2)
    paths = write_series(folder, scan())

    def change(dataset, _):
        column = np.array(dataset.ImageOrientationPatient[3:], float)
        position = np.array(dataset.ImagePositionPatient, float) + rng.uniform(-4, 4) * column
        dataset.ImagePositionPatient = [float(value) for value in position]

    edited(paths[1:-1], change)


def steep(folder):
    affine = grid_affine(SHAPE, (1.5, 2.0, 4.0))
    affine[:3, 2] += 6.0 * affine[:3, 1] / np.linalg.norm(affine[:3, 1])
    write_series(folder, scan(affine=affine))


def incomplete_repetition(folder):
    write_series(folder / "a", scan(series_uid="1.2.3"))
    for path in write_series(folder / "b", scan(series_uid="1.2.3"))[4:]:
        path.unlink()


def time_resolved(folder):
    for number in range(6):
        extra = {"TemporalPositionIdentifier": number + 1}
        write_series(folder / str(number), scan(series_uid="1.2.3", extra=extra))


def frames_without_groups(folder):
    path = write_enhanced(folder / "frames", scan())
    edited([path], lambda dataset, _: dataset.pop("PerFrameFunctionalGroupsSequence"))


def frames_without_positions(folder):
    path = write_enhanced(folder / "frames", scan())

    def change(dataset, _):
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            del frame.PlanePositionSequence

    edited([path], change)


NO_PLACE = "its slices do not say where they lie"


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (without("ImageOrientationPatient"), NO_PLACE),
        (without("ImagePositionPatient"), NO_PLACE),
        (without("PixelSpacing"), NO_PLACE),
        (with_value("PixelSpacing", [-1.5, 2.0]), NO_PLACE),
        (with_value("PixelSpacing", [0, 0]), NO_PLACE),
        (with_value("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]), NO_PLACE),
        (with_value("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), NO_PLACE),
        (without("ImagePositionPatient", slice(4, 5)), "a slice is missing"),
        (scattered, "its slices are displaced along themselves, by up to"),
        (steep, "its slices are displaced along themselves (by 56°)"),
        (incomplete_repetition, "it holds 2 images at one place"),
        (time_resolved, "it holds 6 images at one place"),
        (frames_without_groups, NO_PLACE),
        (frames_without_positions, NO_PLACE),
        (with_value("ImageType", ["DERIVED", "PRIMARY", "T1 MAP", "T1"]), "a parameter map"),
        (with_value("SamplesPerPixel", 3), "a color image"),
    ],
)
def test_what_makes_no_volume_is_named(tmp_path, write, reason):
    write(tmp_path)
    assert only_series(tmp_path).unusable.startswith(reason)
    done = medmap("segment", tmp_path, "--list")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def fewer_frames(path):
    dataset = pydicom.dcmread(path)
    dataset.PixelData = dataset.PixelData[: 7 * dataset.Rows * dataset.Columns * 2]
    dataset.NumberOfFrames = 7
    dataset.save_as(path)


def test_fewer_frames_than_groups_are_refused(tmp_path):
    fewer_frames(write_enhanced(tmp_path / "frames", scan()))
    with pytest.raises(InputDataError, match="damaged or cut off"):
        read_volume(only_series(tmp_path))


def test_a_scaling_that_is_no_number_is_refused(tmp_path):
    for path in write_series(tmp_path, scan()):
        content = path.read_bytes()
        slope = pydicom.dcmread(path)["RescaleSlope"].value
        text = str(slope).encode()
        assert content.count(text) == 1
        path.write_bytes(content.replace(text, b"x" * len(text)))
    with pytest.raises(InputDataError, match="the scaling of a file cannot be read"):
        read_volume(only_series(tmp_path))


def test_a_directory_without_its_files_says_so(tmp_path):
    from pydicom.fileset import FileSet

    fileset = FileSet()
    for path in write_series(tmp_path / "source", scan()):
        fileset.add(path)
    fileset.write(tmp_path / "disc")
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "disc/DICOMDIR", tmp_path / "alone")
    with pytest.raises(MissingInputError) as caught:
        read_studies(tmp_path / "alone")
    assert caught.value.cause == (
        "The folder holds a DICOMDIR, but none of the 10 files that it lists."
    )


def test_a_folder_of_damaged_files_says_so(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    with pytest.raises(MissingInputError, match=r"All DICOM files of the folder are damaged \(3\)"):
        read_studies(tmp_path)
