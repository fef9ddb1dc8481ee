"""Odd but sound studies are read as they are meant.

Each test writes what a scanner, an archive, or an anonymizer is known to write.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest
from generated_study import grid_affine, write_enhanced, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    MediaStorageDirectoryStorage,
)
from Testing.medmap.dicom.small_scans import (
    SHAPE,
    all_series,
    check_equal,
    edited,
    only_series,
    scan,
)

from medmap.commands.cohort_studies import find_studies
from medmap.dicom.pixels import read_volume
from medmap.dicom.study import read_studies


def smooth(points):
    """[...] signal at world positions [..., 3] in mm: smooth, so that interpolation is exact."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 500 + 200 * np.sin(x / 9) * np.cos(y / 11) + 80 * np.sin(z / 13)


def world_of(affine, shape):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def tilted_scan(degrees, axis=1, plane="axial"):
    """Slices that a gantry tilted about the rows (axis 1) or the columns (0) has displaced."""
    shape = (24, 28, 12)
    affine = grid_affine(shape, (1.5, 2.0, 4.0), (3.0, -5.0, 8.0), (10.0, 20.0), plane)
    along = affine[:3, axis] / np.linalg.norm(affine[:3, axis])
    affine[:3, 2] += np.tan(np.radians(degrees)) * 4.0 * along
    return scan(array=smooth(world_of(affine, shape)), affine=affine)


@pytest.mark.parametrize(("degrees", "axis"), [(12, 1), (-20, 1), (9, 0)])
def test_a_gantry_tilt_is_undone(tmp_path, degrees, axis):
    written = tilted_scan(degrees, axis)
    write_series(tmp_path, written)
    series = only_series(tmp_path)
    assert series.unusable == ""
    assert series.notes == (f"a gantry tilt of {abs(degrees)}° was undone",)
    volume = read_volume(series)
    columns = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(columns.T @ columns, np.eye(3), atol=1e-5)
    # Every pixel that was recorded shows what lies there, in the scanner's coordinates.
    points = world_of(volume.affine, volume.array.shape)
    source = (points - written.affine[:3, 3]) @ np.linalg.inv(written.affine[:3, :3]).T
    upper = np.array(written.array.shape) - 1
    inside = ((source > -1e-6) & (source < upper + 1e-6)).all(axis=-1)
    assert inside.sum() > 0.95 * (written.array.size - 2 * 28 * 12)
    assert np.abs(volume.array - smooth(points))[inside].max() < 3.0


def test_labels_of_a_tilted_series_return_to_its_images(tmp_path):
    from medmap.dicom.segmentation_object import labels_object
    from medmap.task import BRATS

    written = tilted_scan(15)
    write_series(tmp_path, written)
    series = only_series(tmp_path)
    volume = read_volume(series)
    bright = 560.0
    labels = np.where(volume.array > bright, 2, 0).astype(np.uint8)
    segmentation = labels_object(labels, BRATS, series, "bundle")
    marked = segmentation.pixel_array.sum()
    expected = np.count_nonzero(written.array > bright)
    assert abs(int(marked) - expected) < 0.03 * expected
    # Frame by frame the label lies where the image is bright.
    positions = [item.position for item in series.slices]
    overlap = 0
    for frame, image in zip(
        segmentation.PerFrameFunctionalGroupsSequence, segmentation.pixel_array, strict=True
    ):
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        number = int(np.argmin([np.linalg.norm(np.subtract(p, place)) for p in positions]))
        overlap += np.count_nonzero(image.T & (written.array[:, :, number] > bright))
    assert overlap > 0.95 * expected


def test_acquisitions_of_one_series_are_volumes_of_their_own(tmp_path):
    written = [scan(series_uid="1.2.3", extra={"AcquisitionNumber": n}) for n in (1, 2)]
    written[1].array = written[1].array[::-1].copy()
    for number, entry in enumerate(written):
        write_series(tmp_path / str(number), entry)
    first, second = all_series(tmp_path)
    assert (first.key, second.key) == ("5a", "5b")
    check_equal(first, written[0])
    check_equal(second, written[1])


def test_slices_that_two_acquisitions_share_in_turn_are_one_volume(tmp_path):
    written = scan()

    def change(dataset, number):
        dataset.AcquisitionNumber = 1 + number % 2

    edited(write_series(tmp_path, written), change)
    check_equal(only_series(tmp_path), written)


@pytest.mark.parametrize("order", ["one after the other", "in turns"])
def test_repetitions_that_only_the_image_numbers_distinguish_are_divided(tmp_path, order):
    written = [scan(series_uid="1.2.3"), scan(series_uid="1.2.3")]
    written[1].array = written[1].array[::-1].copy()
    for repetition, entry in enumerate(written):

        def change(dataset, number, repetition=repetition):
            dataset.InstanceNumber = number + 1 + 10 * repetition
            if order == "in turns":
                dataset.InstanceNumber = 2 * number + repetition + 1

        edited(write_series(tmp_path / str(repetition), entry), change)
    first, second = all_series(tmp_path)
    check_equal(first, written[0])
    check_equal(second, written[1])


def test_equal_instance_numbers_do_not_matter(tmp_path):
    written = scan()
    edited(
        write_series(tmp_path, written), lambda dataset, _: setattr(dataset, "InstanceNumber", 1)
    )
    check_equal(only_series(tmp_path), written)


@pytest.mark.parametrize("kind", ["signed", "8 bits", "big-endian", "deflated", "burnt overlay"])
def test_every_way_to_store_integers_is_read(tmp_path, kind):
    written = scan(array=np.rint(np.random.default_rng(1).uniform(0, 250, SHAPE)))

    def change(dataset, number):
        image = written.array[:, :, number].T
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        stored = image.astype("<u2")
        if kind == "signed":
            dataset.PixelRepresentation = 1
            dataset.RescaleIntercept = 100
            stored = (image - 100).astype("<i2")
        if kind == "8 bits":
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
            stored = image.astype(np.uint8)
        if kind == "big-endian":
            dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
            stored = image.astype(">u2")
        if kind == "deflated":
            dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        if kind == "burnt overlay":
            # Old scanners kept graphics in the bits above those of the image.
            stored = (image.astype("<u2") | 0x8000).astype("<u2")
        dataset.PixelData = stored.tobytes()

    for number, path in enumerate(write_series(tmp_path, written)):
        dataset = pydicom.dcmread(path)
        change(dataset, number)
        # Elements that were not looked at would be written as they were read.
        for _ in dataset.iterall():
            pass
        is_little = kind != "big-endian"
        pydicom.dcmwrite(
            path, dataset, implicit_vr=False, little_endian=is_little, force_encoding=True
        )
    check_equal(only_series(tmp_path), written)


def test_scaling_may_differ_from_slice_to_slice(tmp_path):
    written = scan()

    def change(dataset, number):
        image = written.array[:, :, number].T
        slope = 0.5 + 0.1 * number
        stored = np.rint((image + 20 * number) / slope).astype(np.uint16)
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, -20 * number
        dataset.PixelData = stored.tobytes()

    edited(write_series(tmp_path, written), change)
    volume = read_volume(only_series(tmp_path))
    np.testing.assert_allclose(volume.array, written.array, atol=0.8)


def test_inverted_gray_values_are_inverted_alike_in_every_slice(tmp_path):
    written = scan()

    def change(dataset, number):
        stored = np.frombuffer(dataset.PixelData, np.uint16)
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.RescaleSlope = 900 / 4095
        inverted = 4095 - np.rint(stored * float(number + 1) / 10).astype(np.uint16)
        dataset.PixelData = inverted.tobytes()

    edited(write_series(tmp_path, written), change)
    array = read_volume(only_series(tmp_path)).array
    share = array.max(axis=(0, 1)) / array.max()
    np.testing.assert_allclose(share, np.arange(1, 11) / 10, atol=0.01)


def test_padding_takes_the_smallest_value(tmp_path):
    written = scan()

    def change(dataset, number):
        stored = np.frombuffer(dataset.PixelData, np.uint16).copy()
        stored[:3] = 4095
        dataset.add_new("PixelPaddingValue", "US", 4095)
        dataset.PixelData = stored.tobytes()

    edited(write_series(tmp_path, written), change)
    array = read_volume(only_series(tmp_path)).array
    assert array[:3, 0, 4].max() <= array[:, :, 4].min() + 1e-3


def test_projections_stored_with_a_volume_are_left_out(tmp_path):
    written = scan(series_uid="1.2.3")
    projections = scan(series_uid="1.2.3", image_type=("DERIVED", "SECONDARY", "MIP"))
    projections.array = projections.array[:, :, :3]
    # Their folder comes first, so that the first file of the series is one of them.
    write_series(tmp_path / "a", projections)
    write_series(tmp_path / "b", written)
    series = only_series(tmp_path)
    assert "3 slices left out: a projection" in series.notes
    check_equal(series, written)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SeriesNumber", "five"),
        ("InstanceNumber", "1.5"),
        ("EchoTime", "12,5"),
        ("AcquisitionNumber", "1.0e"),
        ("StudyDate", "last May"),
        ("PatientBirthDate", "unknown"),
        ("ImageComments", "x" * 20000),
    ],
)
def test_an_invalid_value_of_minor_importance_costs_no_file(tmp_path, keyword, value):
    written = scan()
    paths = write_series(tmp_path, written)
    for path in paths:
        dataset = pydicom.dcmread(path)
        tag = pydicom.datadict.tag_for_keyword(keyword)
        vr = pydicom.datadict.dictionary_VR(tag)
        raw = value.encode() + b" " * (len(value) % 2)
        dataset[tag] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(tag), vr, len(raw), raw, 0, False, True, True
        )
        dataset.save_as(path)
    studies, remarks = read_studies(tmp_path)
    assert remarks == []
    assert len(studies) == 1
    check_equal(studies[0].series[0], written)


def test_frames_with_groups_of_their_own_are_read(tmp_path):
    """Orientation, spacing, and echo may stand in each frame instead of in the shared groups."""
    written = scan()
    path = write_enhanced(tmp_path / "frames", written)
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
            setattr(frame, keyword, Sequence([shared[keyword][0]]))
        frame.FrameVOILUTSequence = Sequence([Dataset()])
    del shared.PixelMeasuresSequence, shared.PlaneOrientationSequence
    dataset.save_as(path)
    check_equal(only_series(tmp_path), written)


def test_a_series_of_several_enhanced_files_is_one_volume(tmp_path):
    written = scan(series_uid="1.2.3")
    halves = [(0, 5), (5, 10)]
    for number, (start, stop) in enumerate(halves):
        affine = written.affine.copy()
        affine[:3, 3] += start * affine[:3, 2]
        half = replace(written, array=written.array[:, :, start:stop], affine=affine)
        write_enhanced(tmp_path / f"{number}.dcm", half)
    check_equal(only_series(tmp_path), written)
    from medmap.commands.study import _missing_for_objects

    assert _missing_for_objects(only_series(tmp_path)) == "several files with several frames each"


@pytest.mark.parametrize("uid", ["", "1.2.3.4"])
def test_images_without_uids_of_their_own_are_told_apart_by_place(tmp_path, uid):
    """Anonymizers remove UIDs, or give all images one."""
    written = scan()

    def change(dataset, number):
        dataset.SOPInstanceUID = uid
        dataset.SeriesInstanceUID = ""
        dataset.StudyInstanceUID = ""

    edited(write_series(tmp_path / "a", written), change)
    other = scan(number=6, description="AX T2", array=written.array[::-1].copy())
    edited(write_series(tmp_path / "b", other), change)
    first, second = all_series(tmp_path)
    check_equal(first, written)
    check_equal(second, other)
    from medmap.commands.study import _missing_for_objects

    assert _missing_for_objects(first) == "no UIDs that distinguish its images"


def test_a_directory_of_another_name_is_no_study(tmp_path):
    written = scan()
    write_series(tmp_path, written)
    directory = pydicom.dcmread(next(tmp_path.glob("*.dcm")), stop_before_pixels=True)
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    for element in list(directory):
        del directory[element.tag]
    directory.FileSetID = "DISC"
    directory.save_as(tmp_path / "INDEX.DCM")
    check_equal(only_series(tmp_path), written)


def test_documents_of_another_day_are_no_second_study(tmp_path):
    written = scan()
    write_series(tmp_path / "images", written)
    (path, *_) = write_series(tmp_path / "report", scan(series_uid="1.9", date="20240301"))
    for other in sorted((tmp_path / "report").iterdir())[1:]:
        other.unlink()
    dataset = pydicom.dcmread(path)
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(dataset, keyword)
    dataset.Modality = "SR"
    dataset.save_as(path)
    check_equal(only_series(tmp_path), written)


def test_a_cohort_never_mixes_patients_that_an_anonymizer_made_equal(tmp_path):
    for number in (1, 2, 3):
        entry = scan(study_uid=f"1.2.3.{number}", patient=("ANON", "ANON"))
        write_series(tmp_path / f"case{number}", entry)
    studies, _ = find_studies(tmp_path)
    assert len(studies) == 3
    # Series of one study in folders side by side are one study.
    for number in (4, 5):
        entry = scan(study_uid="1.2.3.9", number=number, patient=("OTHER", "OTHER"))
        write_series(tmp_path / f"series{number}", entry)
    studies, _ = find_studies(tmp_path)
    assert sorted(len(study.series) for study in studies.values()) == [1, 1, 1, 2]


def test_a_cohort_of_files_without_a_preamble_is_read(tmp_path):
    from medmap.commands.cohort import CohortOptions, list_cohort

    for path in write_series(tmp_path / "case", scan()):
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        dataset.preamble = None
        dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    listing = list_cohort(tmp_path, CohortOptions())
    assert len(listing.studies) == 1


def test_patients_without_an_id_are_kept_apart_by_their_studies(tmp_path):
    for number in (1, 2):
        entry = scan(study_uid=f"1.2.3.{number}", patient=("", ""))
        write_series(tmp_path / f"{number}", entry)
    studies, _ = read_studies(tmp_path)
    assert len(studies) == 2


def test_two_series_with_one_uid_and_other_contrast_are_not_mixed(tmp_path):
    """A tool that copied UIDs: T1 and T2 of one place under one series UID."""
    write_series(tmp_path / "a", scan(series_uid="1.2.3"))
    timing = (4000.0, 100.0, None)
    write_series(tmp_path / "b", scan(series_uid="1.2.3", timing=timing, description="AX T2"))
    keys = [series.key for series in all_series(tmp_path)]
    assert keys == ["5a", "5b"]
